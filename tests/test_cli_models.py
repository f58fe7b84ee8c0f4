"""Commands on trained models, what they print and write, and wrong use, which ends in 2."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny

from poise import api, flops
from poise.artifacts import RunDir, load_tensors, read_json
from poise.config import presets
from poise.sampling import Guidance, Weights, chosen_model, write_choice

Said = Callable[[], tuple[str, str]]
END = tiny.IMAGES


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Standard output and standard error since the last call; never a traceback."""

    def read() -> tuple[str, str]:
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return out, err

    return read


@pytest.fixture(scope="module")
def run(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; what one test chooses here another may find."""
    return Path(shutil.copytree(undisturbed, tmp_path_factory.mktemp("cli") / "run"))


@pytest.fixture(autouse=True)
def elsewhere(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POISE_DEBUG", raising=False)
    yield
    RunDir(run).choices.unlink(missing_ok=True)


def images_of(path: str) -> np.ndarray:
    with np.load(path) as found:
        images: np.ndarray = found["arr_0"]
    return images


def test_an_average_is_made_told_and_sampled(run: Path, said: Said) -> None:
    assert tiny.call("ema", str(run), "--std", "0.08") == 0
    out, _ = said()
    assert out.startswith("ema_0.080 after 2,000 images, from ")
    assert "profile error" in out and "noise gain" in out
    assert f"poise sample {run} --out new --weights 0.08" in out
    assert tiny.call("ema", str(run), "--std", "0.08", "--out", "a.safetensors") == 0
    assert "poise sample a.safetensors --out new" in said()[0]
    assert load_tensors(Path("a.safetensors"))[1]["weights"][-1] == "ema_0.080"
    for command in (["a.safetensors"], [str(run), "--weights", "0.08"]):
        assert tiny.call("sample", *command, "--out", f"{len(command)}.npz", "-n", "3") == 0
    assert np.array_equal(images_of("1.npz"), images_of("3.npz"))


def test_an_average_ends_where_it_was_asked_to(run: Path, said: Said) -> None:
    at = int(RunDir(run).snapshot_files()[-3].stem)
    assert tiny.call("ema", str(run), "--std", "0.1", "--at", str(at)) == 0
    assert said()[0].startswith(f"ema_0.100 after {at:,} images, from 1 snapshots")


def test_a_doubtful_width_comes_with_a_note(run: Path, said: Said) -> None:
    assert tiny.call("ema", str(run), "--std", "0.03") == 0
    assert "note: " in (out := said()[0]) and "is off by" in out


def test_a_sweep_prints_its_table_and_keeps_its_choice(run: Path, said: Said) -> None:
    assert tiny.call("ema", "sweep", str(run), "-n", "20", "--metric", "kernel_distance") == 0
    out = said()[0]
    choice = read_json(RunDir(run).choices)["weights"]
    assert choice["metric"] == "kernel_distance"
    for row in choice["tried"]:
        assert f"{row['kernel_distance']:.4g}   {row['candidate']}" in out
    kept = "kept from now on" if choice["confirmed"]["better"] else "nothing was changed"
    assert kept in out
    assert chosen_model(RunDir(run)).snapshot.weights == choice["name"]


def test_a_guide_is_searched_and_printed(run: Path, said: Said) -> None:
    assert tiny.call("guide", str(run), "-n", "20", "--steps", "2") == 0
    out = said()[0]
    assert "no guidance" in out and "no labels" in out and "The best on fresh seeds" in out
    kept = RunDir(run).choices.exists()
    assert ("kept from now on" if kept else "nothing was changed") in out


def test_samples_are_drawn_as_asked(run: Path) -> None:
    early = int(RunDir(run).snapshot_files()[0].stem)
    write_choice(RunDir(run), "guidance", Guidance(3.0, Weights("raw", early)).to_json(), END)
    asked = {
        "plain": [],
        "same": ["--guidance", "3"],
        "unguided": ["--guidance", "1"],
        "solver": ["--solver", "unipc", "--steps", "5"],
        "weights": ["--weights", "raw"],
        "all": ["--solver", "euler", "--guidance", "2", "--weights", "ema_0.050", "--steps", "4"],
    }
    for name, options in asked.items():
        assert tiny.call("sample", str(run), "--out", f"{name}.npz", "-n", "4", *options) == 0
    images = {name: images_of(f"{name}.npz") for name in asked}
    assert np.array_equal(images["plain"], images["same"])
    assert len({each.tobytes() for each in images.values()}) == len(asked) - 1
    wanted = api.load(run).sample(4, solver="euler", guidance=2, weights="ema_0.050", steps=4)
    assert np.array_equal(images["all"], wanted)


def test_noise_is_proposed_or_refused_with_the_reason(run: Path, said: Said) -> None:
    """Two thousand images may teach too little for a proposal."""
    code = tiny.call("noise", str(run))
    out, err = said()
    if code == 0:
        assert "--set diffusion.P_mean=" in out and "--set diffusion.P_std=" in out
    else:
        assert code == 2 and out == "" and "What to do: " in err


def test_a_checkpoint_of_the_reference_is_imported_and_samples(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent / "interop")
    import snapshots
    from test_state_dicts import TINY, edm2

    weights, cfg = edm2()
    kwargs = {key: cfg[key] for key in TINY}
    file = Path("network-snapshot-0000100-0.130.pkl")
    snapshots.write(file, snapshots.pickled(snapshots.snapshot(weights, kwargs)))
    assert tiny.call("import", str(file), "x.safetensors") == 0
    out = said()[0]
    assert "723,691 parameters" in out and "BY-NC-SA" in out
    assert "poise sample x.safetensors --out new.npz" in out
    args = ["sample", "x.safetensors", "--out", "new.npz", "-n", "2", "--steps", "2"]
    assert tiny.call(*args) == 0
    assert images_of("new.npz").shape == (2, 16, 16, 3)
    assert tiny.call(*args, "--guidance", "2") == 2  # it never saw an image without its class
    assert "cannot guide itself" in said()[1]
    file.write_bytes(file.read_bytes()[:1000])
    assert tiny.call("import", str(file), "y.safetensors") == 1
    assert said()[1].startswith("Error: ") and not Path("y.safetensors").exists()


def test_presets_are_listed_with_parameters_and_operations(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = list[tuple[int, int, int]]()

    def size(config: object, *shape: int) -> tuple[int, int]:
        shapes.append(shape)  # type: ignore[arg-type]
        return 1_234_567, 7_654_321_000

    monkeypatch.setattr(flops, "network_size", size)
    assert tiny.call("presets") == 0
    head, *lines, foot = said()[0].splitlines()
    assert "Mparam" in head and "GMAC" in head and "multiply-adds" in foot
    assert shapes == [preset.counted_at for preset in presets()]
    for line, preset in zip(lines, presets(), strict=True):
        words = line.split()
        assert words[0] == preset.name
        assert words[1] == f"{preset.resolutions[0]}-{preset.resolutions[1]}"
        assert words[3:5] == ["1.23", "7.654"] and line.endswith(preset.description)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["ema"], ["poise ema --help"]),
        (["ema", "RUN"], ["--std 0.08", "poise ema sweep RUN"]),
        (["ema", "sweep"], ["--std 0.08"]),
        (["ema", "sweep", "RUN", "--std", "0.1"], ["poise ema sweep RUN"]),
        (["ema", "sweep", "RUN", "--out", "x.safetensors"], ["no --at"]),
        (["ema", "sweep", "RUN", "--at", "3"], ["no --at"]),
        (["ema", "RUN", "RUN", "--std", "0.1"], ["poise ema RUN --std"]),
        (["ema", "RUN", "--std", "0.28"], ["width 0.28", "a width of", "cadence.snapshots"]),
        (["ema", "RUN", "--std", "0.4"], ["between 0 and 0.2887"]),
        (["ema", "RUN", "--std", "0.1", "--at", "3"], ["after 3 images", "the nearest"]),
        (["ema", "sweep", "RUN", "--metric", "fid"], ["'fid'", "frechet_distance"]),
        (["ema", "sweep", "RUN", "-n", "9"], ["9 samples", "10 samples or more"]),
        (["guide", "RUN", "--metric", "recal"], ["'recall'"]),
        (["guide", "RUN", "-n", "9"], ["10 samples or more"]),
        (["guide", "RUN", "--steps", "1"], ["2 steps or more"]),
        (["sample", "RUN", "--out", "x", "--solver", "unipic"], ["'unipc'"]),
        (["sample", "RUN", "--out", "x", "--weights", "ema"], ["'ema'", "raw"]),
        (["sample", "RUN", "--out", "x", "--weights", "0.28"], ["width 0.28", "a width of"]),
        (["sample", "RUN", "--out", "x", "--guidance", "much"], ["--guidance"]),
        (["import", "a.pkl"], ["poise import --help"]),
        (["config", "--set", "model.ladder=H"], ["model.ladder", "'G'"]),
        (["config", "--set", "model.init=he"], ["model.ladder=C"]),
    ],
)
def test_wrong_use_ends_in_two_and_says_what_to_do(
    run: Path, said: Said, args: list[str], words: list[str]
) -> None:
    assert tiny.call(*[str(run) if arg == "RUN" else arg for arg in args]) == 2
    out, err = said()
    assert out == "" and "Error: " in err
    assert "Expected: " in err or "What to do: " in err
    text = err.replace("COMMAND", args[0])
    assert [word for word in words if word not in text] == []
    assert list(Path.cwd().iterdir()) == [] and not RunDir(run).choices.exists()


def test_a_snapshot_has_no_past_to_average_or_to_be_guided_by(run: Path, said: Said) -> None:
    path = str(RunDir(run).snapshot_at(END))
    for args in (["ema", path, "--std", "0.08"], ["ema", "sweep", path], ["guide", path]):
        assert tiny.call(*args) == 1
        assert "the run folder it came from" in said()[1]
    assert tiny.call("noise", path) == 1
