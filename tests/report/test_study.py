"""The page of a study shows what was planted in its record, escaped, and at any moment of it."""

import copy
import html
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_run import edit, picture

from poise.artifacts import write_json
from poise.errors import ArtifactError
from poise.report import page, studyfigures, studymaps
from poise.report.study import study_section, write_study
from poise.report.studyrecord import LOST, read_study

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"
IMAGES = 120_000
RUNGS = (IMAGES // 9, IMAGES // 3, IMAGES)
BEST_LR = 0.02  # the planted optimum; nothing but the learning rate changes the value
_RANGE: dict[str, Any] = {"low": None, "high": None, "log": False, "choices": [], "when": {}}
SPACE: dict[str, Any] = {
    "training.lr": _RANGE | {"kind": "float", "low": 1e-3, "high": 1.0, "log": True},
    "training.batch_size": _RANGE | {"kind": "choice", "choices": [64, 128, 256]},
    "model.dropout": _RANGE | {"kind": "float", "low": 0.0, "high": 0.3},
    "diffusion.sigma": _RANGE | {"kind": "choice", "choices": ["lognormal", "uniform"]},
    "training.warmup": _RANGE | {"kind": "int", "low": 0, "high": 2000},
    "weights": _RANGE | {"kind": "choice", "choices": ["raw", 0.05, 0.1], "free": True},
    "sampling.steps": _RANGE | {"kind": "int", "low": 8, "high": 32, "free": True},
}
DEFAULT = {
    "training.lr": 0.1,
    "training.batch_size": 128,
    "model.dropout": 0.0,
    "diffusion.sigma": "lognormal",
    "training.warmup": 500,
}
FREE = {"weights": "ema_0.100", "sampling.steps": 18}


def value(lr: float) -> float:
    return 2.0 + 1.5 * math.log10(lr / BEST_LR) ** 2


def trial(number: int, point: dict[str, Any], role: str = "search", **changes: Any) -> dict:
    """A trial that was not stopped; above a learning rate of 0.5 it diverges."""
    reached = value(point["training.lr"])
    row = {
        "number": number,
        "role": role,
        "of": None,
        "seed": 0,
        "state": "complete",
        "settings": point,
        "free": FREE,
        "values": {"frechet_distance": reached, "recall": 0.9 - reached / 10 - number / 200},
        "proxy": [[seen, math.log(reached) - 1 - i / 3] for i, seen in enumerate(RUNGS)],
        "images_seen": IMAGES,
        "images": IMAGES,
        "cost_s": 21.4,
        "diagnosis": "",
        "folder": f"trials/{number:04d}",
        "started": f"2026-01-01T10:{number:02d}:00",
        "ended": f"2026-01-01T10:{number:02d}:30",
        "tried": [
            {"free": {"weights": "raw", "sampling.steps": 8}, "frechet_distance": reached + 1},
            {"free": FREE, "frechet_distance": reached},
        ],
    }
    lost = {"values": None, "free": {}, "tried": []}
    if point["training.lr"] > 0.5:
        told = "The learning rate is too high: the loss exploded after 4,000 images."
        row |= lost | {"state": "diverged", "diagnosis": told, "cost_s": 3.0}
        row["proxy"] = row["proxy"][:1]
    elif reached > 3.0 and role == "search":
        row |= lost | {"state": "stopped", "cost_s": 2.4, "proxy": row["proxy"][:1]}
    return row | changes


def study(trials: int = 40, metrics: tuple[str, ...] = ("frechet_distance",)) -> dict[str, Any]:
    """A finished study."""
    chance = random.Random(0)
    rows = [trial(0, DEFAULT, "default")]
    for number in range(1, trials - 2):
        point = {
            "training.lr": 10 ** chance.uniform(-3, 0),
            "training.batch_size": chance.choice([64, 128, 256]),
            "model.dropout": chance.uniform(0, 0.3),
            "diffusion.sigma": chance.choice(["lognormal", "uniform"]),
        }
        if point["diffusion.sigma"] == "lognormal":
            point["training.warmup"] = chance.randrange(2000)
        rows.append(trial(number, point))
    rows[5] |= {"state": "failed", "values": None, "diagnosis": "Out of memory at batch 256."}
    finished = [row for row in rows if row["values"]]
    best = min(finished, key=lambda row: row["values"]["frechet_distance"])
    for number, of in ((trials - 2, 0), (trials - 1, best["number"])):
        own = rows[of]["settings"]
        rows.append(trial(number, own, "repeat", of=of, seed=1))
    found = best["values"]["frechet_distance"]
    return {
        "source": "photos/",
        "command": ["poise", "tune", "photos/", "--budget", "10m"],
        "created": "2026-01-01T10:00:00",
        "seconds": 612.0,
        "status": "finished",
        "phase": "done",
        "plan": {
            "sampler": "tpe",
            "metrics": list(metrics),
            "better": ["higher" if name == "recall" else "lower" for name in metrics],
            "budget_seconds": 600.0,
            "preset": "nano",
            "workers": 1,
            "space": "default",
        },
        "space": SPACE,
        "default": DEFAULT,
        "trials": rows,
        "best": {
            "number": best["number"],
            "settings": best["settings"],
            "free": FREE,
            "values": best["values"],
            "folder": "best",
            "repeats": {
                "default": {"frechet_distance": [2.73, 2.80, 2.69], "recall": [0.5, 0.52, 0.51]},
                "best": {"frechet_distance": [found, 2.05, 2.03], "recall": [0.6, 0.61, 0.62]},
            },
            "difference": {
                "frechet_distance": {
                    "mean": -0.7,
                    "low": -0.8,
                    "high": -0.6,
                    "relative": -0.25,
                    "seeds": 3,
                }
            },
            "verdict": "better",
            "sentences": [
                "What to set: training.lr = 0.02 instead of 0.1.",
                "How sure we are: better with 3 of 3 seeds, by 25 % (0.600 to 0.800).",
                "What did not matter: the batch size, the dropout and the warm-up.",
            ],
        },
        "importance": {
            "training.batch_size": 0.03,
            "training.lr": 0.93,
            "model.dropout": 0.02,
            "diffusion.sigma": 0.01,
            "training.warmup": 0.01,
        },
        "proxy_agreement": 0.83,
        "pareto": [row["number"] for row in finished[:3]],
        "errors": [],
    }


def lr_range(side: int = 5) -> dict[str, Any]:
    """A map of learning rate and batch size."""
    rows = [trial(0, DEFAULT, "default")]
    for i in range(side):
        for batch in (64, 128, 256):
            point = {
                "training.lr": 0.001 * 10 ** (3 * i / (side - 1)),
                "training.batch_size": batch,
            }
            rows.append(trial(len(rows), point))
    record = study()
    record["plan"]["space"] = "lr-range"
    record["space"] = {name: SPACE[name] for name in ("training.lr", "training.batch_size")}
    return record | {"trials": rows}


def write(folder: Path, record: Any) -> Path:
    folder.mkdir(exist_ok=True)
    write_json(folder / "study.json", record)
    return write_study(folder)


def read(path: Path) -> str:
    from plotly.offline import get_plotlyjs

    return path.read_text(encoding="utf-8").replace(get_plotlyjs(), "")


def words(markup: str) -> str:
    text = re.sub(r"<(script|style).*?</\1>", " ", markup, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def test_the_page_says_what_was_planted(tmp_path: Path) -> None:
    told = words(read(write(tmp_path / "study", study())))
    for said in (
        "Settings searched by tpe around the nano preset on photos/: 40 trials (",
        "the study finished",
        "Good How sure we are: better with 3 of 3 seeds",
        "training.lr 0.1 0.0",
        "poise train photos/ --preset nano \\ --set training.lr=0.0",
        "poise sample RUN/best --out samples \\ --weights 0.100 \\ --steps 18",
        "-0.700 -0.800 to -0.600 -25 % 3 seeds",
        "much as the metric does (rank correlation 0.83)",
        "failed 5 Out of memory at batch 256.",
        "repeat of 0, seed 1",
        "The other 20 trials",
        "poise tune photos/ --budget 10m",
        "the final run and all else",
    ):
        assert said in told, said


def test_it_is_small_the_same_twice_and_fetches_nothing(tmp_path: Path) -> None:
    first = write(tmp_path, study(400)).read_bytes()
    assert write_study(tmp_path).read_bytes() == first
    assert len(first) < 10e6
    assert not re.search(r'(src|href)="(?!data:|#)', read(tmp_path / "study.html"))


def test_the_best_so_far_only_gets_better_and_repeats_do_not_compete() -> None:
    record = study()
    record["trials"][-1]["values"]["frechet_distance"] = 0.1
    found = read_study(record)
    (metric,) = found.metrics
    for by_time in (False, True):
        figure = studyfigures.history(found, metric, by_time=by_time)
        line = next(t for t in figure["data"] if t["name"] == "best so far")
        assert line["y"] == sorted(line["y"], reverse=True)
        assert line["x"] == sorted(line["x"])
        assert line["y"][-1] == pytest.approx(found.best["values"]["frechet_distance"], rel=1e-5)


def test_every_trial_that_ended_without_a_value_is_marked() -> None:
    record = study()
    found = read_study(record)
    figure = studyfigures.history(found, found.metrics[0], by_time=False)
    drawn = {t["name"]: len(t["x"]) for t in figure["data"] if t.get("yaxis") == "y2"}
    states = [row["state"] for row in record["trials"]]
    assert drawn == {name: states.count(name) for name in ("stopped", "diverged", "failed")}
    (diverged,) = (t for t in figure["data"] if t["name"] == "diverged")
    assert "learning rate is too high" in diverged["hovertext"][0]


def test_stopped_trials_end_where_they_were_stopped() -> None:
    figure = studyfigures.proxies(read_study(study()))
    (stopped,) = (t for t in figure["data"] if t["name"] == "stopped")
    (complete,) = (t for t in figure["data"] if t["name"] == "complete")
    assert {x for x in stopped["x"] if x} == {RUNGS[0]}
    assert complete["x"][:4] == [*map(float, RUNGS), None]
    reached = value(DEFAULT["training.lr"])
    (default,) = (t for t in figure["data"] if t["name"] == "default")
    assert default["y"][2] == pytest.approx(reached * math.exp(-1 - 2 / 3), rel=1e-5)


def test_the_setting_that_matters_comes_first() -> None:
    record = study()
    bars = studyfigures.importance(read_study(record))["data"][0]
    assert bars["y"][-1] == "training.lr" and bars["x"] == sorted(bars["x"])
    told = "".join(study_section(record))
    assert "What did not matter: the batch size" in told and "Importance of the settings" in told


def test_a_free_setting_shows_all_that_was_tried() -> None:
    found = read_study(study())
    metric = found.metrics[0]
    dimension = next(d for d in found.dimensions if d.name == "weights")
    figure = studyfigures.slices(found, dimension, metric)
    (own,) = (t for t in figure["data"] if t["name"] == "trial")
    complete = [t for t in found.searched if t.state == "complete"]
    assert len(own["x"]) == 2 * len(complete)
    assert set(own["x"]) == {"raw weights", "EMA 0.100"}


def test_parallel_lines_lead_from_the_setting_to_the_value() -> None:
    found = read_study(study())
    figure = studymaps.parallel(found, found.metrics[0])
    best = figure["data"][-1]
    assert best["name"] == "best fifth"
    first = best["hovertext"].index("")
    values = [t.values["frechet_distance"] for t in found.ranked(found.metrics[0])]
    assert best["y"][first - 1] == 0.0  # the best value at the lower end of the last axis
    rates = [t.settings["training.lr"] for t in found.ranked(found.metrics[0])]
    ends = [math.log10(end) for end in (min(rates), max(rates))]
    planted = (math.log10(rates[0]) - ends[0]) / (ends[1] - ends[0])
    assert best["y"][0] == pytest.approx(planted, rel=1e-5)
    assert min(values) == values[0]


def test_where_most_trials_were_stopped_settings_are_shown_by_what_all_have(tmp_path: Path) -> None:
    record = study()
    assert read_study(record).telling == read_study(record).metrics[0]
    for row in record["trials"][1:36]:
        if row["state"] == "complete" and row["number"] > 8:
            row |= {"state": "stopped", "values": None, "proxy": row["proxy"][:1]}
    record["trials"][3] |= {"state": "stopped", "values": None, "proxy": [[RUNGS[0], 9.0]]}
    found = read_study(record)
    rate = next(d for d in found.dimensions if d.name == "training.lr")
    drawn = {t["name"]: t for t in studyfigures.slices(found, rate, found.telling)["data"]}
    first = {t.settings["training.lr"]: t.proxy[0][1] for t in found.searched if t.proxy}
    pairs = list(zip(drawn["trial"]["x"], drawn["trial"]["y"], strict=True))
    assert len(pairs) > 25
    assert all(first[x] == pytest.approx(y, rel=1e-4) for x, y in pairs if x in first)
    far = found.trials[3].settings["training.lr"]
    assert all(x != pytest.approx(far, rel=1e-4) for x, _ in pairs)
    assert far in [pytest.approx(x, rel=1e-4) for n in LOST if n in drawn for x in drawn[n]["x"]]
    high = studyfigures.proxies(found)["layout"]["yaxis"]["range"][1]
    assert high < math.log10(math.exp(9.0))
    told = words(read(write(tmp_path, record)))
    assert "Validation error after the first stretch of each trial over one setting" in told
    assert "From the settings to validation error after the first stretch" in told


def test_samples_are_drawn_from_the_trial_where_there_is_no_last_training(tmp_path: Path) -> None:
    record = study()
    record["best"]["folder"] = "trials/0011"
    told = words(read(write(tmp_path, record)))
    assert "the trial that was trained so" in told
    assert "poise sample RUN/trials/0011 --out samples" in told and "RUN/best" not in told


def test_two_metrics_have_a_front() -> None:
    record = study(metrics=("frechet_distance", "recall"))
    found = read_study(record)
    line, *_ = studyfigures.front(found, *found.metrics)["data"]
    assert line["name"] == "front" and len(line["x"]) == 3
    assert not found.metrics[1].lower
    ranked = [t.values["recall"] for t in found.ranked(found.metrics[1])]
    assert ranked == sorted(ranked, reverse=True)


def test_a_grid_of_two_settings_is_a_map_with_its_failures(tmp_path: Path) -> None:
    record = lr_range()
    found = read_study(record)
    figure = studymaps.cells(found, found.metrics[0])
    assert figure is not None
    heat = figure["data"][0]
    assert (len(heat["z"]), len(heat["z"][0])) == (3, 5)
    for row, texts in zip(heat["z"], heat["text"], strict=True):
        assert [z is None for z in row] == [text == "" for text in texts]
    best = min(z for row in heat["z"] for z in row if z is not None)
    columns = {i for row in heat["z"] for i, z in enumerate(row) if z == best}
    rates = sorted({row["settings"]["training.lr"] for row in record["trials"][1:]})
    assert min(rates, key=value) in {rates[i] for i in columns}
    (lost,) = (t for t in figure["data"] if t.get("name") == "diverged")
    assert len(lost["x"]) == 3 and set(lost["x"]) == {heat["x"][-1]}
    assert "loss exploded" in lost["hovertext"][0]
    assert "over training.lr and training.batch_size" in words(read(write(tmp_path, record)))
    scattered = read_study(study())
    assert studymaps.cells(scattered, scattered.metrics[0]) is None


def test_samples_of_the_best_stand_side_by_side(tmp_path: Path) -> None:
    record, chance = study(), random.Random(0)
    for number in range(40):
        for seen in (RUNGS[0], IMAGES):
            picture(tmp_path / "trials" / f"{number:04d}" / "samples" / f"{seen}.png", chance)
    picture(tmp_path / "best" / "samples" / "600000.png", chance)
    (tmp_path / "best" / "samples" / "700000.png").write_bytes(b"half a picture")
    page_of = read(write(tmp_path, record))
    ranked = read_study(record).ranked(read_study(record).metrics[0])
    expected = [f"Samples of trial {t.number}" for t in ranked if t.role != "default"][:4]
    shown = re.findall(r'alt="(.*?)"', page_of)
    assert shown == ["Samples of the final run", *expected, "Samples of trial 0 (default)"]


@pytest.mark.parametrize("ended", [0, 1, 7])
def test_an_unfinished_study_says_what_is_there(tmp_path: Path, ended: int) -> None:
    record = study() | {"status": "running", "phase": "search", "best": None, "importance": {}}
    record["trials"] = record["trials"][:ended]
    told = words(read(write(tmp_path, record | {"pareto": [], "proxy_agreement": None})))
    assert "the study is still going" in told
    assert "The study has not chosen settings yet." in told
    said = "Best so far is trial" if ended else "It was searching. No trial has a value yet."
    assert said in told


def test_what_was_chosen_is_typed_as_a_shell_reads_it(tmp_path: Path) -> None:
    record = study() | {"source": "my photos; rm -rf"}
    record["best"]["settings"] = {"training.betas": [0.9, 0.99], "training.lr": 0.1}
    told = words(read(write(tmp_path, record)))
    assert "poise train 'my photos; rm -rf'" in told
    assert "--set 'training.betas=[0.9, 0.99]'" in told
    assert "--set training.lr" not in told  # the default has it


@pytest.mark.parametrize("content", ["[1]", "{", None])
def test_a_folder_without_a_record_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    with pytest.raises(ArtifactError):
        write_study(tmp_path)


def test_an_empty_record_still_gives_a_page(tmp_path: Path) -> None:
    assert "No trial has begun." in words(read(write(tmp_path, {})))
    assert study_section({}) is not None


def hostile(record: Any) -> Any:
    """The same with markup in place of every text, and beside it in every key but known ones."""
    if isinstance(record, dict):
        return {**{key: hostile(item) for key, item in record.items()}, HOSTILE: HOSTILE}
    if isinstance(record, list):
        return [hostile(item) for item in record]
    return HOSTILE if isinstance(record, str) else record


def test_hostile_records_are_inert(tmp_path: Path) -> None:
    record = study(metrics=("frechet_distance", "recall"))
    half = hostile(record) | {"plan": record["plan"]}
    for row, was in zip(half["trials"], record["trials"], strict=True):
        row |= {"role": was["role"], "state": was["state"]}
        row["settings"][HOSTILE] = row["free"][HOSTILE] = 3
    half["space"][HOSTILE] = SPACE["model.dropout"]
    half["importance"][HOSTILE] = 0.5
    for one in (hostile(record), half, hostile(lr_range()) | {"plan": lr_range()["plan"]}):
        found = read(write(tmp_path, one))
        assert "<script>alert" not in found and "\x1b" not in found and "\u202e" not in found
        assert "&lt;script&gt;alert" in found and "\\u202e" in found
        section = page.join(study_section(one))
        assert "<script>alert" not in section and "\x1b" not in section


JUNK = st.sampled_from([None, 0, -1, 1e308, True, "", "x", [], [None], {}, {"a": 1}])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_damaged_record_still_gives_a_page(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    record = data.draw(st.sampled_from([_SMALL, _MAP]))
    record = json.loads(json.dumps(record))
    for _ in range(data.draw(st.integers(1, 6))):
        _damage(record, data)
    assert study_section(record) is not None
    found = read_study(record)
    for metric in found.metrics:
        figures = [studyfigures.repeats(found, metric), studymaps.parallel(found, metric)]
        figures += [studyfigures.history(found, metric, by_time=b) for b in (True, False)]
        figures += [studyfigures.slices(found, d, metric) for d in found.dimensions]
        for figure in [*figures, studyfigures.proxies(found), studymaps.cells(found, metric) or {}]:
            json.dumps(figure, allow_nan=False)


def _damage(record: Any, data: st.DataObject) -> None:
    """Put junk somewhere in the tree."""
    while True:
        keys = list(record) if isinstance(record, dict) else list(range(len(record)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        below = record[key]
        if not isinstance(below, dict | list) or data.draw(st.integers(0, 4)) == 0:
            record[key] = copy.deepcopy(data.draw(JUNK))  # a later damage may go into it
            return
        record = below


_SMALL, _MAP = study(14, ("frechet_distance", "recall")), lr_range(4)


def test_junk_in_every_place_of_the_record_still_gives_a_page(tmp_path: Path) -> None:
    write(tmp_path, study())
    for key in study():
        for junk in (None, "x", [1], {"a": [None]}, 3):
            edit(tmp_path / "study.json", **{**study(14), key: junk})
            write_study(tmp_path)
