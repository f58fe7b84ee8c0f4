"""A report holds what the folder holds, escaped, alone, and always the same."""

import hashlib
import html
import json
import random
import re
from pathlib import Path

import pytest
from synthetic_run import about, audit, build, edit, picture
from synthetic_scores import old_scores, scores, snapshots, tradeoff

from poise.artifacts import RunDir, append_jsonl, write_bytes, write_json
from poise.errors import ArtifactError
from poise.report.report import write_report

HOSTILE = "<script>alert(1)</script>"


def page_of(run: RunDir) -> str:
    """The page without plotly's own code, with entities as they are."""
    from plotly.offline import get_plotlyjs

    return write_report(run).read_text(encoding="utf-8").replace(get_plotlyjs(), "")


def words_of(run: RunDir) -> str:
    """What a reader reads."""
    page = re.sub(r"<(script|style).*?</\1>", " ", page_of(run), flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def figures_of(page: str) -> list[dict]:
    """The figures as plotly gets them."""
    found = re.findall(r'<script type="application/json">(.*?)</script>', page, flags=re.S)
    return [json.loads(text) for text in found]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return build(tmp_path / "run")


def test_numbers_of_the_folder_are_on_the_page(run: RunDir) -> None:
    words = words_of(run)
    for planted in (
        "nano model of 612 k parameters",
        "1,797 images of sklearn:digits (8 × 8 pixels",
        "3 min 20 s",
        "400 k images seen; the run finished",
        "3 updates were not finite and were skipped (0.096 % of all)",
        "0.741 (0.641 to 0.841), 1.04 times the 0.713",
        "coverage is 0.945 (0.905 to 0.985) where real images reach 0.955",
        "16 scored snapshots, 200 samples each",
        "Copies of training images were first flagged after 350 k images seen (2).",
        "300 samples for each point",
        "three/broken.png Truncated file.",
        "one/c.png, seven/d.png",
        "Validation error was still falling at the end",
        "poise run digits --minutes 4",
        "settings differ from the defaults Setting Value Meaning training.lr 0.004 ",
        "loss not a number",
    ):
        assert planted in words, planted


def test_scores_of_an_older_version_are_shown_and_judged(run: RunDir) -> None:
    for split in ("val", "test"):
        write_json(run.scores(split), old_scores(split))
    run.log("scores").unlink()
    (run.root / "tradeoff.json").unlink()
    words = words_of(run)
    for planted in (
        "1.87, 2.62 times the 0.713",
        "coverage is 0.610 where real images reach 0.955",
        "Precision 0.710 0.804 Share of samples that lie among real images",
        "Caution: 180 reference images: scores are noisy.",
        "500 against 180",
    ):
        assert planted in words, planted
    assert "Scores over training" not in words and "Class by class" not in words


def test_copying_is_judged_against_held_out_images(run: RunDir) -> None:
    for split in ("val", "test"):
        write_json(run.scores(split), old_scores(split))
        edit(run.scores(split), copying={"median_ratio": 0.4, "flagged": 12})
    words = words_of(run)
    assert "12 samples are nearer to a training image than chance allows" in words
    assert "0.400 times the distance of real test images: the model copies" in words


def test_overfitting_is_named_with_the_place_where_it_began(run: RunDir) -> None:
    run.log("validation").unlink()
    for i, loss in enumerate((0.9, 0.5, 0.3, 0.4, 0.6), start=1):
        append_jsonl(
            run.log("validation"),
            {"images_seen": i * 80_000, "weights": "ema_0.100", "loss": loss, "bands": []},
        )
    assert "lowest at 240 k images (0.300) and has risen to 0.600" in words_of(run)


def test_everything_hostile_is_escaped(run: RunDir) -> None:
    facts = about()
    facts["data"]["label_names"] = [HOSTILE]
    facts |= {"source": HOSTILE, "preset": HOSTILE, "command": [HOSTILE], "status": HOSTILE}
    facts["environment"] = {HOSTILE: HOSTILE}
    write_json(run.run, facts)
    found = audit()
    found["classes"] = {HOSTILE: 3}
    found["unreadable"] = [{"path": HOSTILE, "reason": HOSTILE}]
    found["duplicates"] = [{"kind": HOSTILE, "paths": [HOSTILE], "cross_class": True}]
    found |= {"warnings": [HOSTILE], "verdict": [HOSTILE], "sizes": {HOSTILE: 1}}
    found["ignored"] = {"count": 1, "examples": [HOSTILE]}
    write_json(run.audit, found)
    given = scores("test")
    given["metrics"][HOSTILE] = {"value": 1.0, "real": 1.0, "n": [1, 1], "better": HOSTILE}
    given |= {"weights": HOSTILE, "warnings": [HOSTILE], "copying": {HOSTILE: HOSTILE}}
    given |= {"guidance": {HOSTILE: HOSTILE}, "sampler": {"name": HOSTILE}, "data": HOSTILE}
    given["features"] = dict.fromkeys(("name", "digest", "resizer", "dimensions"), HOSTILE)
    given["metrics"]["recall"] |= {"mark": HOSTILE, "kind": HOSTILE, "protocol": {HOSTILE: HOSTILE}}
    given["per_class"][0] |= {"name": HOSTILE, "mark": HOSTILE, "samples": HOSTILE}
    given["classes"] |= {"names": [HOSTILE] * 10, "note": HOSTILE, "missing": [HOSTILE]}
    given["classes"]["overfull"] = [HOSTILE]
    given["denoising"]["curves"][HOSTILE] = given["denoising"]["curves"]["val"]
    write_json(run.scores("test"), given)
    row = {**snapshots()[-1], "weights": HOSTILE}
    append_jsonl(run.log("scores"), row)
    write_json(run.root / "tradeoff.json", {**tradeoff(), "samples": HOSTILE})
    event = {"severity": "error", "kind": HOSTILE, "message": HOSTILE, HOSTILE: HOSTILE}
    append_jsonl(run.log("events"), {"images_seen": 400_000, **event})
    bands = [{"sigma": 1.0, "loss": 1.0}]
    row = {"images_seen": 400_000, "weights": HOSTILE, "loss": 1.0, "bands": bands}
    append_jsonl(run.log("validation"), row)
    page = page_of(run)
    assert HOSTILE not in page and "<script>alert" not in page.lower()
    assert page.count(html.escape(HOSTILE)) > 15
    names = [trace["name"] for figure in figures_of(page) for trace in figure["data"]]
    assert html.escape(HOSTILE) in names  # plotly itself reads HTML in names
    assert f"{html.escape(HOSTILE)} images" in names
    bars = [trace["x"] for f in figures_of(page) for trace in f["data"] if trace["type"] == "bar"]
    assert bars and all(set(x) == {html.escape(HOSTILE)} for x in bars)


def test_settings_that_are_not_known_are_shown_escaped(run: RunDir) -> None:
    write_bytes(run.config, f'[data]\nnew = "{HOSTILE}"\n'.encode())
    page = page_of(run)
    assert HOSTILE not in page and html.escape(HOSTILE, quote=False) in page


def test_nothing_is_fetched(run: RunDir) -> None:
    page = page_of(run)
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert links and all(link.startswith(("data:image/", "#")) for link in links)
    assert "default-src 'none'" in page
    assert "@import" not in page and "url(" not in page


def test_same_folder_same_bytes(run: RunDir) -> None:
    first = write_report(run).read_bytes()
    run.report.unlink()
    assert write_report(run).read_bytes() == first
    assert write_report(run).read_bytes() == first


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("metrics.jsonl", "No training has been logged yet."),
        ("timing.jsonl", "No timing has been logged yet."),
        ("validation.jsonl", "There has been no validation yet."),
        ("events.jsonl", "Nothing out of the ordinary has been recorded."),
        ("audit.json", "The data has not been audited yet."),
        ("config.toml", "The settings have not been written yet."),
        ("samples/closest.png", "No samples have been compared"),
    ],
)
def test_what_is_missing_is_said(run: RunDir, missing: str, said: str) -> None:
    assert said not in words_of(run)
    (run.root / missing).unlink()
    assert said in words_of(run)


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    facts = about("running", 0) | {"data": {"resolution": 8, "channels": 3, "label_names": []}}
    write_json(run.run, facts)
    words = words_of(run)
    assert "colour, no classes" in words
    assert "still going, after 0 of 400 k planned images" in words
    assert "No samples have been drawn yet." in words
    assert "The samples have not been scored yet." in words


def test_an_empty_run_json_still_gives_a_page(tmp_path: Path) -> None:
    write_json(RunDir(tmp_path).run, {})
    assert "the state of the run is not known" in words_of(RunDir(tmp_path))


def test_one_early_row_and_interruption(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write_json(run.run, about("interrupted", 128))
    append_jsonl(run.log("metrics"), {"images_seen": 128, "step": 1, "loss": None, "skipped": 0})
    append_jsonl(run.log("validation"), {"images_seen": 128, "weights": "raw", "loss": 1.0})
    words = words_of(run)
    assert "interrupted after 128 of 400 k planned images" in words
    assert "There are no finite values to draw yet." in words
    assert "too few validations" in words


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"run\.json does not exist"):
        write_report(RunDir(tmp_path))


def test_damaged_files_are_named(run: RunDir) -> None:
    run.audit.write_text("{")
    run.scores("val").write_text("[1, 2]")
    (run.samples / "000000400000.png").write_bytes(b"not a picture")
    words = words_of(run)
    assert "audit.json cannot be read" in words
    assert "scores-val.json is not what its name says" in words
    assert "000000400000.png cannot be read" in words


def test_names_that_are_not_utf8_do_not_stop_the_page(run: RunDir) -> None:
    found = audit()
    found["unreadable"] = [{"path": "caf\udce9.png", "reason": "odd"}]
    write_json(run.audit, found)
    assert "caf?.png" in words_of(run)


def test_digests_and_checks_are_in_the_provenance(run: RunDir) -> None:
    run.snapshots.mkdir()
    for seen in (200_000, 400_000):
        run.snapshot_at(seen).write_bytes(b"%d" % seen)
    words = words_of(run)
    for path, content in ((run.config, run.config.read_bytes()), (run.snapshot_at(400_000), None)):
        name = path.relative_to(run.root).as_posix()
        digest = hashlib.sha256(content or b"400000").hexdigest()
        assert f"SHA-256 of {name} {digest}" in words
    assert "000000200000.safetensors" not in words


def test_without_a_tradeoff_the_snapshots_show_fidelity_and_diversity(run: RunDir) -> None:
    assert "Fidelity and diversity" not in words_of(run)
    (run.root / "tradeoff.json").unlink()
    page = page_of(run)
    assert "Fidelity and diversity" in page
    figure = next(f for f in figures_of(page) if f["layout"]["xaxis"]["title"]["text"] == "Recall")
    rows = [row for row in snapshots() if row["weights"] == "ema_0.100"]
    line, star = figure["data"][0], figure["data"][-1]
    assert line["x"] == pytest.approx([row["values"]["recall"] for row in rows], rel=1e-5)
    assert line["y"] == pytest.approx([row["values"]["precision"] for row in rows], rel=1e-5)
    assert line["text"][0] == "50 k" and line["text"][-1] == "400 k" and not any(line["text"][1:-1])
    assert star["name"] == "real images" and star["marker"]["symbol"] == "star"


def test_what_was_chosen_afterwards_is_told(run: RunDir) -> None:
    record = {
        "metric": "frechet_distance",
        "confirmed": {"before": 2.0, "after": 1.5, "better": True},
        "tried": [{"candidate": "ema_0.080", "frechet_distance": 1.25}],
    }
    choices = {"weights": {"name": "ema_0.080", **record}, "guidance": {"strength": 1.7}}
    write_json(run.choices, choices)
    words = words_of(run)
    assert "from EMA 0.080, chosen by Fréchet distance: 1.50 on fresh seeds, before 2.00." in words
    assert "1 candidate tried Candidate Fréchet distance ema_0.080 1.25" in words
    assert "with guidance of strength 1.70." in words


def test_a_study_has_its_section(run: RunDir) -> None:
    assert 'id="tuning"' not in page_of(run)
    sentences = [
        "What to set: a rate of 0.02.",
        "How sure we are: fairly.",
        "Warm-up did not matter.",
    ]
    study = {"best": {"number": 3, "settings": {"training.lr": 0.02}, "sentences": sentences}}
    write_json(run.root / "tuning.json", study)
    page = page_of(run)
    assert 'id="tuning"' in page and "a rate of 0.02." in page
    assert "poise tune" not in page


def test_waiting_for_images_is_told(run: RunDir) -> None:
    for row in range(500):
        append_jsonl(run.log("timing"), {"images_seen": 400_000 + row, "waited_share": 0.125})
    assert "wall clock logged, 12.5 % of it waiting for images." in words_of(run)


def test_the_page_stays_small(tmp_path: Path) -> None:
    run = build(tmp_path, rows=3000)
    chance = random.Random(1)
    for name in ("scored", "neighbours"):
        picture(run.samples / f"{name}.png", chance)
    for path in run.samples.glob("*.png"):
        picture(path, chance, (1280, 1024))
    page = page_of(run)
    assert run.report.stat().st_size < 9_000_000
    assert all(len(t["x"]) <= 400 for figure in figures_of(page) for t in figure["data"])
    assert "Shown compressed" in page


def test_figures_do_not_trap_touch_and_mark_incidents(run: RunDir) -> None:
    figures = figures_of(page_of(run))
    assert len(figures) == 12 + 3 + 8 + 3  # of the run, of the record, snapshots, trade-off
    for figure in figures:
        assert figure["layout"]["dragmode"] is False
        assert figure["layout"]["xaxis"]["fixedrange"] and figure["layout"]["yaxis"]["fixedrange"]
    bands = next(f for f in figures if len(f["data"]) == 7)
    assert len(bands["data"]) == 7 and bands["layout"]["yaxis"]["type"] == "log"
    assert [note["text"] for note in bands["layout"]["annotations"]] == ["1", "3"]
    assert [shape["x0"] for shape in bands["layout"]["shapes"]] == [90_000, 210_000]
