"""The catalogue of faults, the file that names them, and the names of layers in it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fault_bench import Bench, config_of, left_out, tell
from PIL import Image

from poise.config import resolve
from poise.drill.disturbance import STARTS
from poise.drill.faults import (
    FILE_KINDS,
    KINDS,
    RUN_KINDS,
    TRAPS,
    fault,
    from_toml,
    options_from_toml,
    overrides,
)
from poise.drill.file_faults import damage_files
from poise.drill.place import ROLES, layers, one_layer, tensors
from poise.errors import DataError, UsageError
from poise.stability.causes import CAUSES
from poise.training.loop import weights_of


def test_every_kind_acts_or_lies_in_settings_or_files() -> None:
    by_settings = {
        f
        for f in (*RUN_KINDS, *TRAPS)
        if overrides([fault(f)], config_of("edm2")) or f == "clean-resume"
    }
    assert set(STARTS) | by_settings == RUN_KINDS.keys() | TRAPS.keys()
    assert not set(STARTS) & by_settings
    for kind in KINDS.values():
        assert (kind.cause == "") == (kind.name in TRAPS)
        assert not kind.cause or kind.cause in CAUSES
        assert set(kind.uses) <= {"at", "duration", "magnitude", "tensor", "band", "share", "seed"}
        assert kind.sentence.endswith(".") and kind.row
        fault(kind.name)  # its defaults are in range


def test_seed_and_tensor_choose_the_place() -> None:
    def spoilt(**given: Any) -> str:
        story = tell(fault("inf-gradient", at=1, **given), updates=2)
        return next(k for k, g in story.grads[1].items() if not g.isfinite().all())

    assert spoilt(seed=1) == spoilt(seed=1)
    assert len({spoilt(seed=seed) for seed in range(6)}) > 2
    assert spoilt(tensor="out_conv") == "network.out_conv.weight"
    assert ".dec.8x8_in1." in spoilt(tensor="*dec.8x8_in1*")
    assert "conv_res1" in spoilt(tensor=r"enc\..*conv_res[12]\.weight$")


@pytest.mark.parametrize("architecture", ["edm2", "adm", "dit"])
def test_roles_mean_something_in_every_network(architecture: str) -> None:
    place = Bench(architecture=architecture).place()
    named = {role: list(layers(place, fault("overflow", tensor=role))) for role in ROLES}
    assert all(named.values())
    assert [len(named[role]) for role in ("first", "middle", "last")] == [1, 1, 1]
    assert not set(named["encoder"]) & set(named["decoder"])
    assert named["first"][0] in named["encoder"] and named["last"][0] in named["decoder"]
    for role in ROLES:
        assert tensors(place, fault("nan-weight", tensor=role))
    assert len(tensors(place, fault("nan-weight"))) == len(weights_of(place.state.denoiser))


def test_a_tensor_names_its_layer_and_a_wrong_name_is_refused() -> None:
    place = Bench().place()
    name, _ = one_layer(place, fault("overflow", tensor="network.enc.8x8_conv.weight"))
    assert name == "network.enc.8x8_conv"
    with pytest.raises(UsageError, match="Did you mean 'middle'"):
        one_layer(place, fault("overflow", tensor="midle"))
    with pytest.raises(UsageError, match="matches nothing"):
        tensors(place, fault("nan-weight", tensor="no[such"))


@pytest.mark.parametrize(
    "kind", ["overflow", "nan-weight", "weight-growth", "labels-zeroed", "dead-units"]
)
@pytest.mark.parametrize("architecture", ["adm", "dit"])
def test_other_networks_break_too(architecture: str, kind: str) -> None:
    story = tell(fault(kind, at=1), updates=2, architecture=architecture)
    assert len(story.records) == 2


@pytest.mark.parametrize("kind", list(TRAPS))
def test_traps_stay_in_range(kind: str) -> None:
    story = tell(fault(kind, at=0), updates=3, channels=3)
    assert all(b.images.dtype == torch.uint8 for b in story.batches)
    assert not left_out(story)
    if kind == "grayscale":
        images = story.batches[0].images
        assert torch.equal(images[:, :1].expand_as(images), images)


def test_faults_of_settings() -> None:
    config = config_of("edm2")

    def changed(kind: str, **given: Any) -> dict[str, Any]:
        return overrides([fault(kind, **given)], config)

    assert changed("lr-setting", magnitude=16) == {"training.lr": config.training.lr * 16}
    assert changed("lr-low", magnitude=0.02) == {"training.lr": config.training.lr * 0.02}
    assert changed("planned-rate-drop") == {"training.lr": config.training.lr * 0.1}
    assert changed("momentum-high", magnitude=3, share=0.98) == {
        "training.lr": config.training.lr * 3,
        "training.betas": (0.98, config.training.betas[1]),
    }
    assert changed("batch-8") == {"training.batch": 8}
    assert changed("noise-shift", magnitude=1) == {"diffusion.P_mean": config.diffusion.P_mean + 1}
    assert changed("nan-pixel") == {}
    resolve(None, changed("momentum-high") | changed("batch-8") | changed("noise-shift"))


def test_a_file_of_faults() -> None:
    text = """
base = 30
seeds = [3, 4]
[[fault]]
kind = "range-batch"
at = 37
magnitude = 120
[[fault]]
kind = "lr-jump"
together = "pair"
duration = "for good"
[[fault]]
kind = "nan-pixel"
[[fault]]
kind = "ema-nan"
together = "pair"
tensor = "dec"
"""
    runs = from_toml(text)
    assert [[f.kind for f in run] for run in runs] == [
        ["range-batch"],
        ["lr-jump", "ema-nan"],
        ["nan-pixel"],
    ]
    assert runs[0][0].parameters() == {"at": 37, "duration": 1, "magnitude": 120.0, "seed": 0}
    assert runs[1][0].duration is None and runs[2][0].duration == 1
    assert options_from_toml(text) == {"base": 30, "seeds": [3, 4]}
    assert from_toml("") == [] and options_from_toml("") == {}


def test_parameters_that_mean_nothing_are_named() -> None:
    given = fault("nan-pixel", magnitude=5, band=2)
    assert given.ignored == ("magnitude", "band")
    assert "magnitude" not in given.parameters()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[fault]]\nkind = 'nan-pixle'", "Did you mean 'nan-pixel'"),
        ("[[fault]]\nkind = 'lr-jump'\nmagnitud = 3", "Did you mean 'magnitude'"),
        ("[[fault]]\nat = 3", "names no kind"),
        ("[[fault]]\nkind = 'lr-jump'\nat = -1", "at = -1"),
        ("[[fault]]\nkind = 'lr-jump'\nat = true", "at = True"),
        ("[[fault]]\nkind = 'lr-jump'\nduration = 0", "duration = 0"),
        ("[[fault]]\nkind = 'lr-jump'\nmagnitude = nan", "magnitude = nan"),
        ("[[fault]]\nkind = 'lr-jump'\nmagnitude = 0.5", "magnitude = 0.5"),
        ("[[fault]]\nkind = 'band-error'\nband = 8", "band = 8"),
        ("[[fault]]\nkind = 'range-shard'\nshare = 0", "share = 0"),
        ("[[fault]]\nkind = 'nan-weight'\ntensor = 3", "tensor = 3"),
        ("[[fault]]\nkind = 'nan-weight'\ntogether = 3", "is no name"),
        ("[fault]\nkind = 'nan-weight'", "no list of tables"),
        ("kind = ", "no TOML"),
    ],
)
def test_a_wrong_file_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        from_toml(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("step = 3", "Did you mean 'steps'"),
        ("steps = 0", "steps = 0"),
        ("seeds = 'a'", "seeds = 'a'"),
        ("base = 1.5", "base = 1.5"),
    ],
)
def test_wrong_options_are_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        options_from_toml(text)


def _folder(root: Path, count: int = 10) -> Path:
    for i in range(count):
        path = root / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return root


@pytest.mark.parametrize("kind", list(FILE_KINDS))
def test_files_are_damaged_as_told(kind: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    before = {p: p.read_bytes() for p in folder.rglob("*.png")}
    given = {"share": 0.5} if "share" in FILE_KINDS[kind].uses else {"magnitude": 3}
    changed = damage_files(folder, fault(kind, **given))
    assert len(changed) == (5 if "share" in given else 3)
    assert all(p.read_bytes() == b for p, b in before.items() if p.exists() and p not in changed)
    if kind == "mixed-modes":
        modes = []
        for path in changed:
            with Image.open(path) as image:
                modes.append("turned" if image.getexif() else image.mode)
        assert sorted(modes) == ["CMYK", "I;16", "P", "RGBA", "turned"]
        return
    for path in changed:
        with pytest.raises(OSError, match=r"\w"), Image.open(path) as image:
            image.load()
        content = path.read_bytes()
        if kind == "zero-byte":
            assert content == b""
        elif kind == "html-file":
            assert content.startswith(b"<!DOCTYPE html")
        else:
            assert content == before[path][: len(before[path]) // 2]


def test_more_files_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds 2 images"):
        damage_files(_folder(tmp_path, 2), fault("zero-byte", magnitude=3))
