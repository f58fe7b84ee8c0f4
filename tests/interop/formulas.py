"""The two reference networks once more, straight from the formulas and in fp64, as an oracle.

Functions of a state_dict with the reference's names; they share no code with `poise.models`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Weights = Mapping[str, Tensor]


def hashed(i: int, n: int) -> NDArray[np.float64]:
    """U(i, n): zero mean, unit variance, in 32-bit unsigned arithmetic."""
    j = np.arange(1, n + 1, dtype=np.uint64)
    mask = np.uint64(0xFFFFFFFF)
    u = (j * np.uint64(2654435761) + np.uint64((i + 1) * 2246822519)) & mask
    u = ((u ^ (u >> np.uint64(15))) * np.uint64(2246822519)) & mask
    u = ((u ^ (u >> np.uint64(13))) * np.uint64(3266489917)) & mask
    u ^= u >> np.uint64(16)
    return (u.astype(np.float64) / 2**32 - 0.5) * math.sqrt(12)


def numbers(i: int, *shape: int) -> Tensor:
    return torch.from_numpy(hashed(i, math.prod(shape))).reshape(shape)


def preconditioned(network: Any, x: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    x, s = x.double(), sigma.double().reshape(-1, 1, 1, 1)
    total = s**2 + sigma_data**2
    c_noise = sigma.double().reshape(-1).log() / 4
    F_ = network(x / total.sqrt(), c_noise.expand(len(x)))
    return sigma_data**2 / total * x + s * sigma_data / total.sqrt() * F_


def resampled(x: Tensor, taps: Sequence[float], mode: str) -> Tensor:
    """One axis after the other, as a matrix; doubling is twice the transpose of halving."""
    f = torch.tensor(taps, dtype=torch.float64) / sum(taps)
    pad = (len(taps) - 1) // 2
    for axis in (2, 3):
        n = x.shape[axis] * (2 if mode == "up" else 1)
        M = torch.zeros(n // 2, n, dtype=torch.float64)
        for i in range(n // 2):
            for j, tap in enumerate(f):
                if 0 <= 2 * i + j - pad < n:
                    M[i, 2 * i + j - pad] += tap
        M = 2 * M.T if mode == "up" else M
        x = torch.tensordot(x, M, dims=([axis], [1])).movedim(-1, axis)
    return x


def levels(cfg: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Side and width of each level, finest first."""
    return [
        (cfg["img_resolution"] >> i, cfg["model_channels"] * mult)
        for i, mult in enumerate(cfg["channel_mult"])
    ]


# --- EDM2 ---------------------------------------------------------------------------------------


def unit(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x / (1e-4 + x.square().mean(dims, keepdim=True).sqrt())


def mp_conv(w: Tensor, x: Tensor, gain: float | Tensor = 1.0) -> Tensor:
    w = unit(w, tuple(range(1, w.ndim))) * gain / math.sqrt(w[0].numel())
    return x @ w.T if w.ndim == 2 else F.conv2d(x, w, padding=w.shape[-1] // 2)


def act(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x) / 0.596


def mixed(a: Tensor, b: Tensor, t: float) -> Tensor:
    return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)


def fourier(c: Tensor, freqs: Tensor, phases: Tensor) -> Tensor:
    return math.sqrt(2) * torch.cos(c[:, None] * freqs + phases)


def edm2_block(
    w: Weights, p: str, x: Tensor, emb: Tensor, cfg: Mapping[str, Any], mode: str
) -> Tensor:
    decoder = p.startswith("unet.dec")
    if mode != "keep":
        x = resampled(x, cfg["resample_filter"], mode)
    skip = w.get(f"{p}.conv_skip.weight")
    if not decoder:
        x = unit(x if skip is None else mp_conv(skip, x), (1,))
    y = mp_conv(w[f"{p}.conv_res0.weight"], act(x))
    c = 1 + mp_conv(w[f"{p}.emb_linear.weight"], emb, w[f"{p}.emb_gain"])
    y = mp_conv(w[f"{p}.conv_res1.weight"], act(y * c[:, :, None, None]))
    if decoder and skip is not None:
        x = mp_conv(skip, x)
    x = mixed(x, y, cfg["res_balance"])
    if f"{p}.attn_qkv.weight" in w:
        B, C, H, W = x.shape
        heads = C // cfg["channels_per_head"]
        qkv = mp_conv(w[f"{p}.attn_qkv.weight"], x).reshape(B, heads, C // heads, 3, H * W)
        q, k, v = unit(qkv, (2,)).unbind(3)
        a = torch.einsum("bhcq,bhck->bhqk", q, k / math.sqrt(C // heads)).softmax(3)
        y = torch.einsum("bhqk,bhck->bhcq", a, v).reshape(B, C, H, W)
        x = mixed(x, mp_conv(w[f"{p}.attn_proj.weight"], y), cfg["attn_balance"])
    limit = cfg["clip_act"]
    return x if limit is None else x.clamp(-limit, limit)


def edm2(weights: Weights, cfg: Mapping[str, Any], x: Tensor, sigma: Tensor, rows: Any) -> Tensor:
    """D(x, sigma, one-hot rows or None) in fp64."""
    w = {name: value.double() for name, value in weights.items()}

    def network(x: Tensor, c_noise: Tensor) -> Tensor:
        features = fourier(c_noise, w["unet.emb_fourier.freqs"], w["unet.emb_fourier.phases"])
        emb = mp_conv(w["unet.emb_noise.weight"], features)
        if cfg["label_dim"]:
            n = cfg["label_dim"]
            given = torch.zeros(len(x), n) if rows is None else rows
            label = mp_conv(w["unet.emb_label.weight"], given.double() * math.sqrt(n))
            emb = mixed(emb, label, cfg["label_balance"])
        emb = act(emb)
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        skips = []
        for i, (side, _) in enumerate(levels(cfg)):
            p = f"unet.enc.{side}x{side}"
            if i == 0:
                x = mp_conv(w[f"{p}_conv.weight"], x)
            else:
                x = edm2_block(w, f"{p}_down", x, emb, cfg, "down")
            skips.append(x)
            for j in range(cfg["num_blocks"]):
                x = edm2_block(w, f"{p}_block{j}", x, emb, cfg, "keep")
                skips.append(x)
        t = cfg["concat_balance"]
        for i, (side, _) in reversed(list(enumerate(levels(cfg)))):
            p = f"unet.dec.{side}x{side}"
            if i == len(cfg["channel_mult"]) - 1:
                x = edm2_block(w, f"{p}_in0", x, emb, cfg, "keep")
                x = edm2_block(w, f"{p}_in1", x, emb, cfg, "keep")
            else:
                x = edm2_block(w, f"{p}_up", x, emb, cfg, "up")
            for j in range(cfg["num_blocks"] + 1):
                s = skips.pop()
                C = math.sqrt((x.shape[1] + s.shape[1]) / ((1 - t) ** 2 + t**2))
                left = x * C * (1 - t) / math.sqrt(x.shape[1])
                x = torch.cat([left, s * C * t / math.sqrt(s.shape[1])], 1)
                x = edm2_block(w, f"{p}_block{j}", x, emb, cfg, "keep")
        return mp_conv(w["unet.out_conv.weight"], x, w["unet.out_gain"])

    return preconditioned(network, x, sigma, cfg["sigma_data"])


def edm2_log_variance(weights: Weights, sigma: Tensor) -> Tensor:
    w = {name: value.double() for name, value in weights.items()}
    c_noise = sigma.double().reshape(-1).log() / 4
    features = fourier(c_noise, w["logvar_fourier.freqs"], w["logvar_fourier.phases"])
    return mp_conv(w["logvar_linear.weight"], features)[:, 0]


def edm2_shapes(cfg: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every entry of the reference's state_dict with its shape."""
    c, mult = cfg["model_channels"], cfg["channel_mult"]
    noise = c * (cfg["channel_mult_noise"] or mult[0])
    emb = c * (cfg["channel_mult_emb"] or max(mult))
    found: dict[str, tuple[int, ...]] = {
        "unet.out_gain": (),
        "unet.emb_fourier.freqs": (noise,),
        "unet.emb_fourier.phases": (noise,),
        "unet.emb_noise.weight": (emb, noise),
        "unet.out_conv.weight": (cfg["img_channels"], c * mult[0], 3, 3),
        "logvar_fourier.freqs": (cfg["logvar_channels"],),
        "logvar_fourier.phases": (cfg["logvar_channels"],),
        "logvar_linear.weight": (1, cfg["logvar_channels"]),
    }
    if cfg["label_dim"]:
        found["unet.emb_label.weight"] = (emb, cfg["label_dim"])

    def block(name: str, c_in: int, c_out: int, attends: bool) -> int:
        p, width = f"unet.{name}", c_in if name.startswith("dec") else c_out
        found[f"{p}.emb_gain"] = ()
        found[f"{p}.conv_res0.weight"] = (c_out, width, 3, 3)
        found[f"{p}.emb_linear.weight"] = (c_out, emb)
        found[f"{p}.conv_res1.weight"] = (c_out, c_out, 3, 3)
        if c_in != c_out:
            found[f"{p}.conv_skip.weight"] = (c_out, c_in, 1, 1)
        if attends and c_out // cfg["channels_per_head"]:
            found[f"{p}.attn_qkv.weight"] = (3 * c_out, c_out, 1, 1)
            found[f"{p}.attn_proj.weight"] = (c_out, c_out, 1, 1)
        return c_out

    first = cfg["img_resolution"]
    found[f"unet.enc.{first}x{first}_conv.weight"] = (c * mult[0], cfg["img_channels"] + 1, 3, 3)
    _walk(cfg, block)
    return found


def _walk(cfg: Mapping[str, Any], block: Any) -> None:
    c, skips = cfg["model_channels"] * cfg["channel_mult"][0], []
    for i, (side, width) in enumerate(levels(cfg)):
        if i:
            block(f"enc.{side}x{side}_down", c, c, False)
        skips.append(c)
        for j in range(cfg["num_blocks"]):
            name = f"enc.{side}x{side}_block{j}"
            c = block(name, c, width, side in cfg["attn_resolutions"])
            skips.append(c)
    for i, (side, width) in reversed(list(enumerate(levels(cfg)))):
        if i == len(cfg["channel_mult"]) - 1:
            block(f"dec.{side}x{side}_in0", c, c, True)
            block(f"dec.{side}x{side}_in1", c, c, False)
        else:
            block(f"dec.{side}x{side}_up", c, c, False)
        for j in range(cfg["num_blocks"] + 1):
            name = f"dec.{side}x{side}_block{j}"
            c = block(name, c + skips.pop(), width, side in cfg["attn_resolutions"])


# --- ADM ----------------------------------------------------------------------------------------


def adm_conv(w: Weights, p: str, x: Tensor) -> Tensor:
    weight, bias = w[f"{p}.weight"], w.get(f"{p}.bias")
    if weight.ndim == 2:
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


def adm_norm(w: Weights, p: str, x: Tensor) -> Tensor:
    B, C, H, W = x.shape
    groups = x.reshape(B, min(32, C // 4), -1)
    groups = groups - groups.mean(2, keepdim=True)
    groups = groups / (groups.square().mean(2, keepdim=True) + 1e-5).sqrt()
    x = groups.reshape(B, C, H, W)
    return x * w[f"{p}.weight"][:, None, None] + w[f"{p}.bias"][:, None, None]


def adm_block(w: Weights, p: str, x: Tensor, emb: Tensor, per_head: int, mode: str) -> Tensor:
    before, y = x, F.silu(adm_norm(w, f"{p}.norm0", x))
    if mode != "keep":
        before, y = resampled(before, (1, 1), mode), resampled(y, (1, 1), mode)
    y = adm_conv(w, f"{p}.conv0", y)
    scale, shift = adm_conv(w, f"{p}.affine", emb)[:, :, None, None].chunk(2, 1)
    y = F.silu(adm_norm(w, f"{p}.norm1", y) * (1 + scale) + shift)
    y = adm_conv(w, f"{p}.conv1", y)
    x = y + (adm_conv(w, f"{p}.skip", before) if f"{p}.skip.weight" in w else before)
    if f"{p}.qkv.weight" in w:
        B, C, H, W = x.shape
        heads = C // per_head
        qkv = adm_conv(w, f"{p}.qkv", adm_norm(w, f"{p}.norm2", x))
        q, k, v = qkv.reshape(B, heads, C // heads, 3, H * W).unbind(3)
        a = torch.einsum("bhcq,bhck->bhqk", q, k / math.sqrt(C // heads)).softmax(3)
        y = torch.einsum("bhqk,bhck->bhcq", a, v).reshape(B, C, H, W)
        x = x + adm_conv(w, f"{p}.proj", y)
    return x


def adm(weights: Weights, cfg: Mapping[str, Any], x: Tensor, sigma: Tensor, rows: Any) -> Tensor:
    """D(x, sigma, one-hot rows or None) in fp64."""
    w = {name: value.double() for name, value in weights.items()}

    def network(x: Tensor, c_noise: Tensor) -> Tensor:
        half = cfg["model_channels"] // 2
        angles = c_noise[:, None] * 10000.0 ** -(torch.arange(half).double() / half)
        emb = F.silu(adm_conv(w, "model.map_layer0", torch.cat([angles.cos(), angles.sin()], 1)))
        emb = adm_conv(w, "model.map_layer1", emb)
        if cfg["label_dim"] and rows is not None:
            emb = emb + adm_conv(w, "model.map_label", rows.double())
        emb, per_head = F.silu(emb), cfg["channels_per_head"]
        skips = []
        for i, (side, _) in enumerate(levels(cfg)):
            p = f"model.enc.{side}x{side}"
            if i == 0:
                x = adm_conv(w, f"{p}_conv", x)
            else:
                x = adm_block(w, f"{p}_down", x, emb, per_head, "down")
            skips.append(x)
            for j in range(cfg["num_blocks"]):
                x = adm_block(w, f"{p}_block{j}", x, emb, per_head, "keep")
                skips.append(x)
        for i, (side, _) in reversed(list(enumerate(levels(cfg)))):
            p = f"model.dec.{side}x{side}"
            if i == len(cfg["channel_mult"]) - 1:
                x = adm_block(w, f"{p}_in0", x, emb, per_head, "keep")
                x = adm_block(w, f"{p}_in1", x, emb, per_head, "keep")
            else:
                x = adm_block(w, f"{p}_up", x, emb, per_head, "up")
            for j in range(cfg["num_blocks"] + 1):
                x = torch.cat([x, skips.pop()], 1)
                x = adm_block(w, f"{p}_block{j}", x, emb, per_head, "keep")
        return adm_conv(w, "model.out_conv", F.silu(adm_norm(w, "model.out_norm", x)))

    return preconditioned(network, x, sigma, cfg["sigma_data"])


def adm_shapes(cfg: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every entry of the reference's state_dict with its shape."""
    c = cfg["model_channels"]
    emb, first = c * cfg["channel_mult_emb"], cfg["img_resolution"]
    found: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        found[f"model.{name}.weight"] = shape
        if bias:
            found[f"model.{name}.bias"] = shape[:1]

    def block(name: str, c_in: int, c_out: int, attends: bool) -> int:
        layer(f"{name}.norm0", c_in)
        layer(f"{name}.conv0", c_out, c_in, 3, 3)
        layer(f"{name}.affine", 2 * c_out, emb)
        layer(f"{name}.norm1", c_out)
        layer(f"{name}.conv1", c_out, c_out, 3, 3)
        if name.endswith(("_up", "_down")):
            found[f"model.{name}.conv0.resample_filter"] = (1, 1, 2, 2)
            found[f"model.{name}.skip.resample_filter"] = (1, 1, 2, 2)
        if c_in != c_out:
            layer(f"{name}.skip", c_out, c_in, 1, 1)
        if attends and c_out // cfg["channels_per_head"]:
            layer(f"{name}.norm2", c_out)
            layer(f"{name}.qkv", 3 * c_out, c_out, 1, 1)
            layer(f"{name}.proj", c_out, c_out, 1, 1)
        return c_out

    layer("map_layer0", emb, c)
    layer("map_layer1", emb, emb)
    if cfg["label_dim"]:
        layer("map_label", emb, cfg["label_dim"], bias=False)
    last = c * cfg["channel_mult"][0]
    layer(f"enc.{first}x{first}_conv", last, cfg["img_channels"], 3, 3)
    layer("out_norm", last)
    layer("out_conv", cfg["img_channels"], last, 3, 3)
    _walk(cfg, block)
    return found
