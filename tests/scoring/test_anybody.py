"""Anybody's samples through the command line: files in, record, pictures and page out."""

from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from poise import api
from poise.artifacts import read_json
from poise.errors import DataError, UsageError
from poise.evaluation.extractors.fixed import Pixels
from poise.evaluation.features import extract
from poise.evaluation.fidelity import frechet_distance
from poise.evaluation.kernels import kernel_distance


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as people have them: a folder of classes, arrays, and a folder of samples."""
    from sklearn.datasets import load_digits

    root, raw = tmp_path_factory.mktemp("anybody"), load_digits()
    order = np.random.default_rng(0).permutation(len(raw.images))
    x, y = (raw.images * 15.9).round().astype(np.uint8)[order], raw.target[order]
    for part, rows in (("train", slice(0, 700)), ("test", slice(700, 1100))):
        for i in range(*rows.indices(len(x))):
            folder = root / "real" / part / f"digit {y[i]}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x[i]).save(folder / f"{i:04d}.png")
    np.savez(root / "reference.npz", arr_0=x[700:1100], arr_1=y[700:1100])
    np.savez(root / "samples.npz", arr_0=x[1100:1500], arr_1=y[1100:1500])
    (root / "samples").mkdir()
    for i in range(1100, 1500):
        Image.fromarray(x[i]).save(root / "samples" / f"{i:04d}.png")
    names = "".join(f"{i:04d}.png,{y[i]},digit {y[i]}\n" for i in range(1100, 1500))
    (root / "samples" / "labels.csv").write_text("file,label,name\n" + names)
    return root


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("POISE_CACHE", str(place / "cache"))


def test_an_evaluation_asks_for_nothing(place: Path, capsys: pytest.CaptureFixture[str]):
    assert tiny.call("evaluate", "samples", "--reference", "real", "--json", "m.json") == 0
    out = capsys.readouterr().out
    assert "Good: " in out and "evaluations/samples/evaluation.html" in out
    metrics = read_json(Path("m.json"))
    assert metrics["copies"]["value"] == 0
    assert metrics["class_agreement"]["value"] > 0.85  # labels.csv was understood
    record = read_json(Path("evaluations/samples/evaluation.json"))
    assert record["split"] == "held-out images of the reference"
    assert record["metrics"]["frechet_distance"]["n"] == [400, 400]
    assert record["classes"]["names"] == [f"digit {i}" for i in range(10)]
    for name in ("scored", "closest", "worst", "best"):
        with Image.open(f"evaluations/samples/{name}.png") as picture:
            assert picture.width > 100
    page = Path("evaluations/samples/evaluation.html").read_text("utf-8")
    assert "digit 3" in page and "http-equiv" in page


def test_values_are_those_of_the_whole_sets(place: Path):
    record, _ = api.evaluate_samples("samples.npz", "reference.npz", features="pixels")
    with np.load("samples.npz") as s, np.load("reference.npz") as r:
        f, g = (extract(Pixels(), a["arr_0"][:, None]) for a in (s, r))
    metrics = record["metrics"]
    assert metrics["frechet_distance"]["value"] == pytest.approx(frechet_distance(f, g), rel=1e-9)
    assert metrics["kernel_distance"]["value"] == pytest.approx(kernel_distance(f, g), rel=1e-9)
    assert metrics["frechet_distance"]["protocol"]["real_n"] == [200, 200]
    assert record["split"] == "all of the reference"
    assert metrics["precision"]["n"] == [400, 400]


def test_copies_of_one_folder_are_found_without_a_split(place: Path):
    with np.load("reference.npz") as r:
        some = r["arr_0"]
    with np.load("samples.npz") as s:
        mixed = s["arr_0"].copy()
    mixed[:60] = some[100:160]
    mixed[60:90] = some[200:230, :, ::-1]
    np.savez("copies.npz", arr_0=mixed)
    record, _ = api.evaluate_samples("copies.npz", "reference.npz", out="copies")
    assert record["copying"]["exact_duplicates"] >= 90  # the mirrored ones, too
    assert any(line.startswith("Weak: ") and "copies" in line for line in api.verdict_lines(record))


def test_the_training_split_is_searched_where_there_is_one(place: Path):
    train = sorted(Path("real/train").rglob("*.png"))
    Path("stolen").mkdir(exist_ok=True)
    for i, path in enumerate(train[:120]):
        Image.open(path).save(f"stolen/{i}.png")
    record, _ = api.evaluate_samples("stolen", "real", features="pixels")
    assert record["copying"]["exact_duplicates"] == 120
    assert record["copying"]["calibration"]["held_out"] == 400


def test_a_reference_is_made_once(place: Path, capsys: pytest.CaptureFixture[str]):
    assert tiny.call("reference", "real", "--out", "real.npz") == 0
    assert "400 images (held-out images of the reference)" in capsys.readouterr().out
    saved, page = api.evaluate_samples("samples", "real.npz", out="saved")
    direct, _ = api.evaluate_samples("samples", "real", out="direct")
    for name in ("frechet_distance", "kernel_distance", "precision", "coverage"):
        one, other = (record["metrics"][name]["value"] for record in (saved, direct))
        assert one == pytest.approx(other, rel=1e-6), name
    assert saved["classes"] is None and page.exists()
    with np.load("real.npz") as file:
        np.savez("theirs.npz", mu=file["mu"], sigma=file["sigma"])
    theirs, page = api.evaluate_samples("samples", "theirs.npz", features="pixels", out="theirs")
    assert list(theirs["metrics"]) == ["frechet_distance"] and page.exists()
    assert theirs["metrics"]["frechet_distance"]["mark"]
    value = direct["metrics"]["frechet_distance"]["value"]
    assert theirs["metrics"]["frechet_distance"]["value"] == pytest.approx(value, rel=1e-6)
    with pytest.raises(UsageError, match="holds pixels features"):
        api.evaluate_samples("samples", "real.npz", features="random_conv", out="wrong")
    with pytest.raises(UsageError, match="not the images"):
        api.evaluate_samples("samples", "real.npz", split="test", out="wrong")


def test_pairs_are_compared_image_by_image(place: Path, capsys: pytest.CaptureFixture[str]):
    with np.load("samples.npz") as s:
        rough = (s["arr_0"] // 32 * 32).astype(np.uint8)
    np.savez("rough.npz", arr_0=rough)
    command = ("evaluate", "rough.npz", "--paired", "--reference", "samples.npz")
    assert tiny.call(*command, "--json", "pairs.json") == 0
    metrics = read_json(Path("pairs.json"))
    assert 20 < metrics["psnr"]["value"] < 30 and metrics["psnr"]["low"] < metrics["psnr"]["high"]
    assert "psnr" in capsys.readouterr().out
    with pytest.raises(DataError, match="400 copies"):
        api.evaluate_pairs("rough.npz", "real", quiet=True)


def test_wrong_use_says_what_to_do(place: Path, capsys: pytest.CaptureFixture[str]):
    for command, words in (
        (("samples",), "--reference SOURCE"),
        (("samples", "--reference", "real", "-n", "5"), "-n means nothing"),
        (("samples", "--reference", "real", "--split", "vall"), "has no split 'vall'"),
        (("samples", "--reference", "real", "--features", "incepton"), "inception"),
        (("samples", "--reference", "real", "--feature-weights", "x.pth"), "no such file"),
        (("samples", "--reference", "nowhere"), "does not exist"),
        (("samples.npz", "--paired"), "--reference SOURCE"),
        (("samples", "--paired", "--reference", "real", "--train", "x"), "--train means nothing"),
    ):
        assert tiny.call("evaluate", *command) in (1, 2), command
        assert words in capsys.readouterr().err, command
    assert tiny.call("reference", "real", "--out", "real.txt") == 2


def test_grey_samples_of_a_colour_reference_are_compared_in_colour(place: Path):
    with np.load("reference.npz") as r:
        colour = np.repeat(r["arr_0"][..., None], 3, axis=-1)
    colour[..., 0] //= 2
    np.savez("colour.npz", arr_0=colour)
    record, _ = api.evaluate_samples("samples.npz", "colour.npz", features="pixels", out="grey")
    assert record["features"]["dimensions"] == 192
    assert record["metrics"]["frechet_distance"]["value"] > 1
