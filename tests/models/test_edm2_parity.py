"""Our EDM2 against numbers of the reference implementation (tests/fixtures/edm2_tiny.json).

Weights and inputs come from an integer hash, so that both sides can be filled alike.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from poise.data.batches import Batch
from poise.diffusion.denoiser import Denoiser
from poise.diffusion.loss import denoising_loss
from poise.diffusion.noise import Noised
from poise.diffusion.sampler import heun, noise_schedule
from poise.models.edm2 import Uncertainty, UNet
from poise.models.layers import (
    MPConv,
    downsample,
    mp_cat,
    mp_silu,
    mp_sum,
    normalize,
    upsample,
)
from poise.settings import Config, TrainingConfig
from poise.training import loop
from poise.training.ema import power_beta, std_to_exp
from poise.training.schedules import learning_rate

REFERENCE = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "edm2_tiny.json").read_text(encoding="utf-8")
)
SHAPE = (4, 3, 16, 16)


def hashed(i: int, n: int) -> NDArray[np.float64]:
    """U(i, n): zero mean, unit variance, in 32-bit unsigned arithmetic."""
    j = np.arange(1, n + 1, dtype=np.uint64)
    mask = np.uint64(0xFFFFFFFF)
    u = (j * np.uint64(2654435761) + np.uint64((i + 1) * 2246822519)) & mask
    u = ((u ^ (u >> np.uint64(15))) * np.uint64(2246822519)) & mask
    u = ((u ^ (u >> np.uint64(13))) * np.uint64(3266489917)) & mask
    u ^= u >> np.uint64(16)
    return (u.astype(np.float64) / 2**32 - 0.5) * math.sqrt(12)


def tensor(i: int, *shape: int) -> Tensor:
    return torch.from_numpy(hashed(i, math.prod(shape))).reshape(shape)


def reference_name(ours: str) -> str:
    for mine, theirs in (
        ("network.", "unet."),
        ("uncertainty.", "logvar_"),
        ("attention.", "attn_"),
    ):
        ours = ours.replace(mine, theirs)
    return ours


def filled_denoiser() -> Denoiser:
    network = UNet(
        resolution=16,
        channels_in=3,
        num_classes=10,
        channels=32,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(8,),
    )
    denoiser = Denoiser(network, Uncertainty(), sigma_data=0.5)
    entries = {reference_name(k): v for k, v in denoiser.state_dict().items()}
    assert sorted(entries) == REFERENCE["keys_sorted"]
    for i, key in enumerate(REFERENCE["keys_sorted"]):
        entry = entries[key]
        value = tensor(i, *entry.shape)
        if key.endswith(("freqs", "phases")):
            value = value * 3
        elif key.endswith("emb_gain"):
            value = torch.full_like(value, 0.3)
        elif key.endswith("out_gain"):
            value = torch.full_like(value, 0.8)
        entry.copy_(value)
    return denoiser


def eval_inputs() -> tuple[Tensor, Tensor, Tensor]:
    sigma = torch.tensor(REFERENCE["forward_eval"]["sigma"])
    x = 0.5 * tensor(1000, *SHAPE) + sigma.double()[:, None, None, None] * tensor(1001, *SHAPE)
    return x.float(), sigma, torch.tensor(REFERENCE["forward_eval"]["labels"])


def step_inputs(s: int) -> tuple[Noised, Tensor]:
    clean = (0.5 * tensor(2000 + 3 * s, *SHAPE)).float()
    noise = tensor(2001 + 3 * s, *SHAPE).float()
    sigma = (tensor(2002 + 3 * s, 4).float() - 0.4).exp()
    labels = torch.tensor([(s + i) % 10 for i in range(4)])
    return Noised(clean, sigma, clean + sigma[:, None, None, None] * noise), labels


def sums(D: Tensor) -> list[float]:
    return D.double().sum((1, 2, 3)).tolist()


@torch.no_grad()
def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    denoiser = filled_denoiser().eval()
    result = denoiser(x, sigma, labels)
    assert isinstance(result, Tensor)
    return result


@pytest.mark.parametrize("key", ["U(0,4)", "U(7,4)"])
def test_hash_rule(key: str) -> None:
    assert hashed(int(key[2]), 4).tolist() == pytest.approx(REFERENCE["hash_check"][key], abs=1e-15)


def test_denoiser_equals_the_reference_at_four_noise_levels() -> None:
    wanted = REFERENCE["forward_eval"]
    D = denoise(*eval_inputs())
    assert sums(D) == pytest.approx(wanted["D_sum_per_sample"], rel=1e-5)
    rms = D.double().square().mean((1, 2, 3)).sqrt()
    assert rms.tolist() == pytest.approx(wanted["D_rms_per_sample"], rel=1e-5)
    first = D.flatten(1)[:, :4].double()
    reference = torch.tensor(wanted["D_first4_per_sample"], dtype=torch.float64)
    torch.testing.assert_close(first, reference, rtol=1e-5, atol=1e-6)


def test_one_hot_labels_equal_indices() -> None:
    x, sigma, labels = eval_inputs()
    one_hot = torch.nn.functional.one_hot(labels, 10)
    assert torch.equal(denoise(x, sigma, one_hot), denoise(x, sigma, labels))
    other = denoise(x, sigma, labels.roll(1))
    assert (other - denoise(x, sigma, labels)).abs().max() > 1e-3


def test_without_labels_equals_the_reference() -> None:
    x, sigma, _ = eval_inputs()
    assert sums(denoise(x, sigma, None)) == pytest.approx(
        REFERENCE["forward_no_labels_sum"], rel=1e-5
    )


def test_one_noise_level_for_all_equals_the_reference() -> None:
    x, _, labels = eval_inputs()
    D = denoise(x, torch.tensor(0.5), labels)
    assert sums(D) == pytest.approx(REFERENCE["forward_scalar_sigma_0.5_sum"], rel=1e-5)


def test_log_variance_equals_the_reference() -> None:
    _, sigma, _ = eval_inputs()
    u = filled_denoiser().log_variance(sigma)
    assert u.tolist() == pytest.approx(REFERENCE["forward_eval"]["logvar"], rel=1e-5)


def test_every_module_has_the_reference_magnitude() -> None:
    wanted = REFERENCE["forward_eval"]["rms_of_module_outputs"]
    denoiser, found = filled_denoiser().eval(), {}
    for name in wanted:
        module = denoiser.network.get_submodule(name)

        def note(_m: object, _i: object, output: Tensor, name: str = name) -> None:
            found[name] = output.double().square().mean().sqrt().item()

        module.register_forward_hook(note)
    with torch.no_grad():
        denoiser(*eval_inputs())
    assert found == pytest.approx(wanted, rel=1e-5)


def test_five_steps_of_adam_equal_the_reference() -> None:
    denoiser = filled_denoiser()
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=0.01, betas=(0.9, 0.99), eps=1e-8)
    for s, wanted in enumerate(REFERENCE["train_5_steps"]["steps"]):
        noised, labels = step_inputs(s)
        denoiser.normalize_weights_()
        with torch.no_grad():
            u = denoiser.log_variance(noised.sigma)
            D = denoiser(noised.x, noised.sigma, labels)
        optimizer.zero_grad()
        loss = denoising_loss(denoiser, noised, labels)
        (loss.weighted.sum() * noised.clean[0].numel() / 4).backward()
        grads = [w.grad for w in denoiser.parameters() if w.grad is not None]
        optimizer.step()
        found = {
            "loss_mean": loss.weighted.mean().item(),
            "unweighted_mse": (D - noised.clean).square().mean().item(),
            "global_grad_norm": torch.nn.utils.get_total_norm(grads).item(),
            "out_gain": denoiser.network.out_gain.item(),
        }
        assert found == pytest.approx({k: wanted[k] for k in found}, rel=1e-4)
        assert u.tolist() == pytest.approx(wanted["logvar"], rel=1e-4)
    total = sum(w.detach().double().abs().sum().item() for w in denoiser.parameters())
    assert total == pytest.approx(REFERENCE["train_5_steps"]["final_param_abs_sum"], rel=1e-6)


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_five_updates_of_the_training_loop_equal_the_reference(
    monkeypatch: pytest.MonkeyPatch, micro_batch: int | None
) -> None:
    settings = TrainingConfig(
        label_dropout=0.0,
        images=20,
        batch=4,
        micro_batch=micro_batch,
        lr=0.01,
        warmup=0,
        decay="constant",
    )
    config = Config(training=settings)
    state = loop.TrainState.fresh(filled_denoiser(), settings)
    for s, wanted in enumerate(REFERENCE["train_5_steps"]["steps"]):
        noised, labels = step_inputs(s)
        prepared = noised, labels
        monkeypatch.setattr(loop, "noised_batch", lambda *_, prepared=prepared: prepared)
        batch = Batch(torch.zeros(SHAPE, dtype=torch.uint8), labels, torch.arange(4))
        record = loop.update(state, batch, config)
        assert record.loss.mean().item() == pytest.approx(wanted["loss_mean"], rel=1e-4)
        assert record.grad_norm.item() == pytest.approx(wanted["global_grad_norm"], rel=1e-4)
        assert bool(record.applied)
        assert state.denoiser.network.out_gain.item() == pytest.approx(wanted["out_gain"], rel=1e-4)


def test_gradients_are_orthogonal_to_normalised_weights() -> None:
    denoiser = filled_denoiser()
    denoiser.normalize_weights_()
    noised, labels = step_inputs(0)
    denoising_loss(denoiser, noised, labels).weighted.sum().backward()
    for module in denoiser.modules():
        if isinstance(module, MPConv):
            w, g = module.weight.flatten(1), module.weight.grad
            assert g is not None
            cosine = torch.nn.functional.cosine_similarity(w, g.flatten(1), dim=1)
            assert cosine.abs().max() < 3e-3
            assert g.abs().max() > 0


def test_single_operations_equal_the_reference() -> None:
    wanted = REFERENCE["ops"]
    a = tensor(1, 2, 8, 4, 4).float()
    same, other = tensor(3, 2, 8, 4, 4).float(), tensor(2, 2, 6, 4, 4).float()
    cat = mp_cat(a, other, 0.5)
    # the two normalisations were fed 3 a, as the size of their epsilon shows
    ones = mp_silu(torch.tensor([1.0, -1.0]))
    found = {
        "a_first4": a.flatten()[:4],
        "normalize_all_dims_first4": normalize(3 * a).flatten()[:4],
        "normalize_dim1_first4": normalize(3 * a, dim=1).flatten()[:4],
        "mp_sum_t0.3_first4 (a=U1 2x8x4x4,b=U3 same)": mp_sum(a, same, 0.3).flatten()[:4],
        "mp_cat_t0.5 channel0 and channel8 first value (a=U1 2x8x4x4,b=U2 2x6x4x4)": torch.stack(
            [cat[0, 0, 0, 0], cat[0, 8, 0, 0]]
        ),
        "mp_silu(1),mp_silu(-1)": ones,
        "down_first2": downsample(a).flatten()[:2],
        "up_first2": upsample(a).flatten()[:2],
    }
    assert found.keys() == wanted.keys()
    for name, values in found.items():
        assert values.tolist() == pytest.approx(wanted[name], rel=1e-5), name


def test_power_function_exponents_equal_the_reference() -> None:
    for std, exponent in REFERENCE["phema"]["std_to_exp"].items():
        assert std_to_exp(float(std)) == pytest.approx(exponent, rel=1e-9)
    for exponent, std in REFERENCE["phema"]["exp_to_std"].items():
        if float(exponent) > 0:  # 12^-0.5 itself is the open end of the range
            assert std_to_exp(std) == pytest.approx(float(exponent), rel=1e-9)


def test_averaging_constants_equal_the_reference() -> None:
    for key, beta in REFERENCE["phema"]["beta(std,t_next,t_delta)"].items():
        std, images_seen, images = key.split(",")
        found = power_beta(float(std), int(images_seen), int(images))
        assert found == pytest.approx(beta, rel=1e-10, abs=1e-300)


@pytest.mark.parametrize(
    ("steps", "key"), [(32, "sd .5 m 0, 32 steps"), (8, "same 8 steps")], ids=["32", "8"]
)
def test_sampler_equals_the_reference(steps: int, key: str) -> None:
    sd = 0.5
    noise = tensor(3000, 2, 3, 2, 2).float()
    x = heun(lambda x, s: x * sd**2 / (sd**2 + s**2), noise, num_steps=steps)
    assert x.flatten()[:4].tolist() == pytest.approx(REFERENCE["sampler"][key], rel=1e-5)


def test_sampler_approaches_the_exact_solution() -> None:
    noise = tensor(3000, 2, 3, 2, 2)
    key = next(key for key in REFERENCE["sampler"] if key.startswith("exact"))
    x = heun(lambda x, s: x * 0.25 / (0.25 + s**2), noise, num_steps=2000, sigma_min=1e-5)
    assert x.flatten()[:4].tolist() == pytest.approx(REFERENCE["sampler"][key], rel=1e-4)


def test_noise_levels_equal_the_reference() -> None:
    levels = noise_schedule(32)
    assert levels[:-1].tolist() == pytest.approx(REFERENCE["sampler"]["t_steps_32"], rel=1e-12)
    assert levels[-1] == 0


@pytest.mark.parametrize("images_seen", [143360000, 286720000, 2147483648])
def test_learning_rate_after_warm_up_equals_the_reference(images_seen: int) -> None:
    total = 2**31
    settings = TrainingConfig(
        label_dropout=0.0,
        images=total,
        batch=2048,
        lr=0.01,
        warmup=10e6 / total,
        decay_start=70000 * 2048 / total,
    )
    wanted = REFERENCE["lr"][f"nimg={images_seen}"]
    assert learning_rate(settings, images_seen) == pytest.approx(wanted, rel=1e-9)
