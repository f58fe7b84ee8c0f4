"""Files of the reference's structure -> import -> our snapshot -> the same outputs."""

import json
from pathlib import Path
from typing import Any

import pytest
import snapshots
import torch
from snapshots import pickled, saved, write
from test_state_dicts import ADM_DEFAULTS, EDM2_VARIANTS, TINY, adm, edm2, images
from torch import Tensor

from poise.artifacts import load_tensors
from poise.build import load_snapshot
from poise.errors import ArtifactError, UsageError
from poise.interop.checkpoints import LICENCE, import_checkpoint
from poise.interop.nvlabs import denoiser_from_state_dict

Weights = dict[str, Tensor]


def arguments(cfg: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The arguments that the reference's training script gives its network."""
    return {**{key: cfg[key] for key in TINY}, **more}


def scaled(weights: Weights, factor: float) -> Weights:
    """Other parameters, the same buffers."""
    fixed = ("freqs", "phases")
    return {k: v if k.endswith(fixed) else v * factor + 0.01 for k, v in weights.items()}


def halved(weights: Weights) -> Weights:
    return {name: value.half().float() for name, value in weights.items()}


@torch.no_grad()
def check_same(path: Path, name: str | None, weights: Weights, cfg: dict[str, Any]) -> None:
    """The snapshot denoises as the weights do, to the last bit but for memory layout."""
    ours = load_snapshot(path, name)
    wanted = denoiser_from_state_dict(weights, cfg)
    x, sigma, labels = images(cfg)
    D = ours.denoiser(x, sigma, labels)
    torch.testing.assert_close(D, wanted(x, sigma, labels), rtol=1e-5, atol=1e-5)
    assert D.sub(x).abs().max() > 1e-2
    for (key, a), (other, b) in zip(
        sorted(ours.denoiser.state_dict().items()),
        sorted(wanted.state_dict().items()),
        strict=True,
    ):
        assert key == other and torch.equal(a, b)


def test_a_snapshot_becomes_a_model_that_samples(tmp_path: Path) -> None:
    weights, cfg = edm2()
    kwargs = arguments(cfg, use_fp16=True, dropout=0.1)
    path = tmp_path / "network-snapshot-0000100-0.130.pkl"
    write(path, pickled(snapshots.snapshot(weights, kwargs)))
    out = tmp_path / "new" / "model.safetensors"
    found = import_checkpoint(path, out)
    check_same(out, None, halved(weights), cfg)
    snapshot = load_snapshot(out)
    assert snapshot.weights == "ema_0.130" and found.weights == ("ema_0.130",)
    assert snapshot.images_seen == found.images_seen == 100_352  # 98 * 1024, above 100 kimg
    assert snapshot.facts.label_names == tuple("0123456789")
    assert snapshot.facts.sigma_data == 0.5
    assert snapshot.config.model.dropout == 0.1
    assert (snapshot.config.diffusion.P_mean, snapshot.config.diffusion.P_std) == (-0.4, 1.0)
    meta = load_tensors(out)[1]
    assert meta["licence"] == LICENCE and "BY-NC-SA" in found.summary
    assert meta["preprocessing"].startswith("RGB")
    assert "723,691 parameters" in found.summary
    assert found.parameters == sum(w.numel() for w in snapshot.denoiser.parameters())


@pytest.mark.parametrize(
    ("name", "images_seen", "weights"),
    [
        ("network-snapshot-0002147-0.050.pkl", 2_147_328, "ema_0.050"),
        ("edm2-img512-s-2147483-0.130.pkl", 2_147_483_648, "ema_0.130"),
        ("edm2-img512-xs-uncond-0134217-0.110.pkl", 134_217_728, "ema_0.110"),
        ("network-snapshot-0000000-0.100.pkl", 0, "ema_0.100"),
        ("mine.pkl", None, "ema"),
    ],
)
def test_the_name_of_a_file_tells_its_images_and_its_average(
    tmp_path: Path, name: str, images_seen: int | None, weights: str
) -> None:
    tensors, cfg = edm2(label_dim=0)
    path = write(tmp_path / name, pickled(snapshots.snapshot(tensors, arguments(cfg))))
    found = import_checkpoint(path, tmp_path / "out.safetensors")
    assert (found.images_seen, found.weights) == (images_seen, (weights,))
    assert load_snapshot(found.out).images_seen == (images_seen or 0)


def test_width_and_licence_can_be_given(tmp_path: Path) -> None:
    weights, cfg = edm2()
    path = write(tmp_path / "x.pkl", pickled(snapshots.snapshot(weights, arguments(cfg))))
    out = tmp_path / "x.safetensors"
    found = import_checkpoint(path, out, std=0.07, licence="CC0, my own")
    assert (found.weights, found.licence) == (("ema_0.070",), "CC0, my own")
    assert load_tensors(out)[1]["licence"] == "CC0, my own"
    with pytest.raises(UsageError, match=r"0\.3"):
        import_checkpoint(path, out, std=0.3)


@pytest.mark.parametrize(
    "variant",
    [
        *("unconditional", "three levels, two blocks", "balances", "wide embeddings"),
        *("long filter", "uneven heads", "narrow level without heads"),
    ],
)
def test_every_setting_of_the_network_arrives(tmp_path: Path, variant: str) -> None:
    weights, cfg = edm2(**{**EDM2_VARIANTS[variant], "logvar_channels": 128})
    kwargs = {key: value for key, value in cfg.items() if value is not None}
    path = write(tmp_path / "x.pkl", pickled(snapshots.snapshot(weights, kwargs)))
    import_checkpoint(path, tmp_path / "x.safetensors")
    check_same(tmp_path / "x.safetensors", None, halved(weights), cfg)


@pytest.mark.parametrize("change", [{"logvar_channels": 16}, {"clip_act": None}])
def test_what_no_setting_expresses_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    weights, cfg = edm2(**change)
    path = write(tmp_path / "x.pkl", pickled(snapshots.snapshot(weights, cfg)))
    with pytest.raises(UsageError, match=next(iter(change))):
        import_checkpoint(path, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_latents_say_how_to_undo_their_scale(tmp_path: Path) -> None:
    weights, cfg = edm2(img_channels=4)
    path = write(tmp_path / "x.pkl", pickled(snapshots.snapshot(weights, arguments(cfg))))
    import_checkpoint(path, tmp_path / "x.safetensors")
    text = load_tensors(tmp_path / "x.safetensors")[1]["preprocessing"]
    assert "z = x * s / 0.5 + m" in text and "[5.81, 3.25, 0.12, -2.15]" in text
    assert load_snapshot(tmp_path / "x.safetensors").facts.channels == 4


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_positional_arguments_and_other_protocols(tmp_path: Path, protocol: int) -> None:
    weights, cfg = edm2()
    value = snapshots.snapshot(weights, arguments(cfg))
    value["encoder"] = None  # arrays take names in protocol 5 that no snapshot has
    kwargs = arguments(cfg)
    first = [kwargs.pop(key) for key in ("img_resolution", "img_channels", "label_dim")]
    value["ema"]._init_args, value["ema"]._init_kwargs = tuple(first), kwargs
    path = write(tmp_path / "x.pkl", pickled(value, protocol))
    import_checkpoint(path, tmp_path / "x.safetensors")
    check_same(tmp_path / "x.safetensors", None, halved(weights), cfg)


def test_an_adm_snapshot_becomes_a_model_that_samples(tmp_path: Path) -> None:
    weights, cfg = adm(img_channels=3)
    kwargs = arguments(cfg, use_fp16=True, model_type="DhariwalUNet", dropout=0.1)
    path = tmp_path / "network-snapshot-200000.pkl"
    write(path, pickled(snapshots.adm_snapshot(weights, kwargs)))
    found = import_checkpoint(path, tmp_path / "adm.safetensors")
    check_same(tmp_path / "adm.safetensors", None, weights, cfg)
    assert (found.architecture, found.weights) == ("adm", ("ema",))
    assert found.images_seen == 200_000_000
    assert found.parameters == 828_771
    snapshot = load_snapshot(tmp_path / "adm.safetensors")
    assert snapshot.denoiser.log_variance(torch.tensor([2.0])).item() == 0
    assert snapshot.config.model.architecture == "adm"


def test_an_adm_training_state_holds_raw_weights(tmp_path: Path) -> None:
    weights, cfg = adm(**{**ADM_DEFAULTS, "channel_mult_emb": 2})
    classes = ("EDMPrecond", "DhariwalUNet")
    net = snapshots.network(weights, arguments(cfg, channel_mult_emb=2), classes=classes)
    path = write(tmp_path / "training-state-000512.pt", saved({"net": net, "optimizer_state": {}}))
    found = import_checkpoint(path, tmp_path / "x.safetensors")
    assert (found.weights, found.images_seen) == (("raw",), 512_000)
    check_same(tmp_path / "x.safetensors", None, weights, cfg)


def test_a_training_state_has_raw_weights_and_all_averages(tmp_path: Path) -> None:
    weights, cfg = edm2()
    averages = {0.05: scaled(weights, 1.5), 0.1: scaled(weights, 0.5)}
    state = snapshots.training_state(weights, averages, 4096)
    path = write(tmp_path / "training-state-0000004.pt", saved(state))
    found = import_checkpoint(path, tmp_path / "x.safetensors")
    assert found.weights == ("raw", "ema_0.050", "ema_0.100")
    assert found.images_seen == 4096
    assert "assumed" in found.summary
    for name, wanted in zip(found.weights, (weights, *averages.values()), strict=True):
        check_same(tmp_path / "x.safetensors", name, wanted, cfg)
    assert load_snapshot(tmp_path / "x.safetensors").weights == "ema_0.100"
    other = import_checkpoint(path, tmp_path / "y.safetensors", std=0.05)
    assert other.weights == ("raw", "ema_0.100", "ema_0.050")
    with pytest.raises(UsageError, match=r"0\.07"):
        import_checkpoint(path, tmp_path / "z.safetensors", std=0.07)


def test_a_training_state_takes_what_shapes_hide_from_the_options_beside_it(tmp_path: Path) -> None:
    hidden = {"res_balance": 0.4, "channels_per_head": 32, "resample_filter": [1, 3, 3, 1]}
    weights, cfg = edm2(**hidden)
    options = {"class_name": "training.networks_edm2.Precond", "model_channels": 32, **hidden}
    write(tmp_path / "training_options.json", json.dumps({"network_kwargs": options}).encode())
    state = snapshots.training_state(weights, {}, 4096)
    path = write(tmp_path / "training-state-0000004.pt", saved(state))
    import_checkpoint(path, tmp_path / "x.safetensors")
    check_same(tmp_path / "x.safetensors", None, weights, cfg)
    options["unknown_trick"] = 1
    write(tmp_path / "training_options.json", json.dumps({"network_kwargs": options}).encode())
    with pytest.raises(UsageError, match="unknown_trick"):
        import_checkpoint(path, tmp_path / "x.safetensors")
    write(tmp_path / "training_options.json", b"[]")
    with pytest.raises(ArtifactError, match="training_options"):
        import_checkpoint(path, tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("classes", "named"),
    [
        (("VPPrecond", "SongUNet"), "VPPrecond"),
        (("EDMPrecond", "SongUNet"), "SongUNet"),
        (("Precond", "MyUNet"), "MyUNet"),
        (("Precond", "DhariwalUNet"), "DhariwalUNet"),
    ],
)
def test_other_networks_are_refused_by_name(
    tmp_path: Path, classes: tuple[str, str], named: str
) -> None:
    weights, cfg = adm() if classes[0] != "Precond" else edm2()
    make = snapshots.snapshot if classes[0] == "Precond" else snapshots.adm_snapshot
    path = write(tmp_path / "x.pkl", pickled(make(weights, arguments(cfg), classes=classes)))
    with pytest.raises(ArtifactError, match=named):
        import_checkpoint(path, tmp_path / "x.safetensors")


def test_weights_that_do_not_fit_their_arguments_are_refused(tmp_path: Path) -> None:
    weights, cfg = edm2()
    path = write(tmp_path / "x.pkl", pickled(snapshots.snapshot(weights, arguments(cfg))))
    bad = [{"num_blocks": 2}, {"label_dim": 5}, {"attn_resolutions": [16, 8], "model_channels": 64}]
    for change in bad:
        value = snapshots.snapshot(weights, {**arguments(cfg), **change})
        write(path, pickled(value))
        with pytest.raises(ArtifactError, match=r"unet\."):
            import_checkpoint(path, tmp_path / "x.safetensors")
    write(path, pickled(snapshots.snapshot(weights, arguments(cfg, group_norm=True))))
    with pytest.raises(UsageError, match="group_norm"):
        import_checkpoint(path, tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello, this is no checkpoint",
        b"\x80\x04.",
        pickled({"a": 1}),
        pickled([1]),
        saved({"model": torch.zeros(3)}),
        saved({"net": {"a": torch.zeros(3)}}),
        saved({"net": {"a": 3}}),
    ],
    ids=["empty", "text", "stop", "dict", "list", "zip", "other weights", "no weights"],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "x.pkl", content)
    with pytest.raises(ArtifactError):
        import_checkpoint(path, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pkl", tmp_path):
        with pytest.raises(ArtifactError, match="cannot be read"):
            import_checkpoint(path, tmp_path / "x.safetensors")
