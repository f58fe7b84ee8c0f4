"""Features from a dictionary of small patches, learnt without labels (Coates and Ng 2011).

Patches are normalised, whitened and clustered by k-means; an image is described by how near its
patches are to each centre, averaged in 2 x 2 cells, and reduced to its principal components of
equal variance. Normalisation hides brightness, colour and contrast, so those of the cells are
appended.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from poise.runtime import generator_at

_CENTRES = 256
_PATCHES, _ROUNDS = 60_000, 8  # patches that are clustered; rounds of k-means
_QUIET, _WHITEN = 10 / 127.5**2, 0.1  # added to patch variances; to the eigenvalues in whitening
_COMPONENTS = 128
_GRID = 2
_CHUNK, _ROWS = 64, 4096  # images whose patches are held at once; patches that are compared


def learn_patches(
    images: Callable[[NDArray[np.int64]], Tensor],
    rows: NDArray[np.int64],
    seed: int,
    report: Callable[[float], None],
) -> dict[str, Tensor]:
    """Centres, whitening and components from the images of some rows.

    Args:
        images: float32 [B, C, H, W] in [-1, 1] of given rows; sides from 8 to 64.
        rows: the images to learn from.
        seed: decides which patches are clustered.
        report: called with the share of the work that is done.

    Returns:
        "shift" [P], "whitening" [P, P], "centres" [K, P], "offset" [F], "components" [F, D], for
        patches of P numbers and F = 4 K averages.
    """
    p = _draw(images, rows, seed)
    m = p.mean(0)
    L, Q = torch.linalg.eigh(torch.cov(p.T.double()))
    W = ((Q * (L + _WHITEN).rsqrt()) @ Q.T).float()
    weights = {"shift": m, "whitening": W, "centres": _cluster((p - m) @ W)}
    report(0.3)
    parts = []
    for start in range(0, len(rows), _CHUNK):
        parts.append(_similarities(images(rows[start : start + _CHUNK]), weights))
        report(0.3 + 0.7 * (start + len(parts[-1])) / len(rows))
    f = torch.cat(parts).double()
    L, Q = torch.linalg.eigh(torch.cov(f.T))
    D = min(_COMPONENTS, len(rows) // 4)  # fewer images do not hold so many directions
    kept = L[-D:].clamp(min=1e-6 * float(L[-1]) + 1e-12)
    return weights | {
        "offset": f.mean(0).float(),
        "components": (Q[:, -D:] * kept.rsqrt()).float().contiguous(),
    }


def patch_activations(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """float32 [B, C, H, W] in [-1, 1] -> float32 [B, D + 8 C]: components, cell means, spreads."""
    w = {name: tensor.to(x.device) for name, tensor in weights.items()}
    parts = [_similarities(part, w) for part in torch.split(x, _CHUNK)]
    cells = functional.adaptive_avg_pool2d(x, _GRID)
    squares = functional.adaptive_avg_pool2d(x.square(), _GRID)
    spread = (squares - cells.square()).clamp(min=0).add(_QUIET).sqrt().log()
    components = (torch.cat(parts) - w["offset"]) @ w["components"]
    return torch.cat([components, cells.flatten(1), spread.flatten(1)], 1)


def _side(shape: tuple[int, ...]) -> tuple[int, int]:
    """Side of the patches and their distance, for images of this shape."""
    small = min(shape[-2:])
    return min(6, small // 2), max(1, small // 16)


def _patches(x: Tensor) -> Tensor:
    """Normalised patches [B, L, P]: mean 0, about unit spread, quiet ones less."""
    side, stride = _side(x.shape)
    p = functional.unfold(x, side, stride=stride).transpose(1, 2)
    p = p - p.mean(2, keepdim=True)
    return p / (p.square().mean(2, keepdim=True) + _QUIET).sqrt()


def _draw(
    images: Callable[[NDArray[np.int64]], Tensor], rows: NDArray[np.int64], seed: int
) -> Tensor:
    """About `_PATCHES` patches [n, P], equally many from each of up to so many images."""
    g = generator_at(seed, 0, "encoder patches")
    chosen = rows[torch.randperm(len(rows), generator=g)[:_PATCHES].sort().values.numpy()]
    each = -(-_PATCHES // len(chosen))
    drawn = []
    for start in range(0, len(chosen), _CHUNK):
        p = _patches(images(chosen[start : start + _CHUNK]))
        places = torch.rand(p.shape[:2], generator=g).argsort(1)[:, :each]
        drawn.append(p.gather(1, places[..., None].expand(-1, -1, p.shape[2])).flatten(0, 1))
    p = torch.cat(drawn)
    return p[torch.randperm(len(p), generator=g)[:_PATCHES]]


def _cluster(z: Tensor) -> Tensor:
    """Centres [K, P] of k-means from the first rows of z [n, P]; an empty cluster stays."""
    centres = z[:_CENTRES].clone()
    for _ in range(_ROUNDS):
        owner = torch.cat([_squared(part, centres).argmin(1) for part in torch.split(z, _ROWS)])
        sums = torch.zeros_like(centres).index_add_(0, owner, z)
        counts = torch.bincount(owner, minlength=len(centres))[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return centres


def _similarities(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """[B, 4 K]: how much nearer than usual each centre is, averaged over the patches of a cell."""
    z = (_patches(x) - weights["shift"]) @ weights["whitening"]
    d = _squared(z.flatten(0, 1), weights["centres"]).sqrt()
    f = functional.relu(d.mean(1, keepdim=True) - d)
    side, stride = _side(x.shape)
    places = [(size - side) // stride + 1 for size in x.shape[2:]]
    f = f.view(len(x), *places, -1).permute(0, 3, 1, 2)
    return functional.adaptive_avg_pool2d(f, _GRID).flatten(1)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    d2 = torch.addmm(b.square().sum(1), a, b.T, alpha=-2)
    return d2.add_(a.square().sum(1)[:, None]).clamp_(min=0)
