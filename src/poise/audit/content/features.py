"""Pictures of 32 x 32 as vectors whose angle says how alike two pictures look.

Every row depends on its own picture only: nothing is centred or scaled by the set it stands in.
That is on purpose. Centred on itself, a set of nearly equal pictures would look as varied as any
other; and a folder of examples described alone must lie in the same space as the data.
"""

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from poise.errors import DataError, UsageError, nearest

Space = Literal["layout", "pixels", "random_conv"]
SPACES: tuple[Space, ...] = get_args(Space)
_AUTO: Space = "layout"  # judges neighbours best on photographs and on drawn digits

_DIRECTIONS = 8
_CELLS = 4  # per side
_CHUNK = 256
# The usual value of one edge number over all pictures. Without taking it away all pictures point
# the same way (the median cosine of two photographs is 0.74; with it, 0.18).
_USUAL = 0.06
_FAINT = 0.3  # edges weaker than this count as noise of flat areas, not as drawing
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def choose_space(name: str) -> Space:
    """The features that `name` stands for; "auto" is "layout".

    Raises:
        UsageError: an unknown name.
    """
    for space in SPACES:
        if name == space:
            return space
    if name == "auto":
        return _AUTO
    known = ("auto", *SPACES)
    raise UsageError(
        f"unknown features {name!r}",
        expected=f"one of {', '.join(known)}",
        remedy=nearest(name, known),
    )


def describe(thumbs: NDArray[np.uint8], name: str = "auto") -> NDArray[np.float32]:
    """Describe small pictures by vectors of unit length; alike pictures have a cosine near 1.

    Args:
        thumbs: uint8 [N, 32, 32, 3]; may be a memory-mapped file, it is read in pieces.
        name: "auto", or one of:
            "layout": strengths of edges in 8 directions (Dalal & Triggs 2005, without blocks) and
                plain colours, both in 4 x 4 cells. D = 176.
            "pixels": the pixels themselves at 16 x 16. D = 768.
            "random_conv": the fixed random network that scores samples. D = 488.

    Returns:
        float32 [N, D].

    Raises:
        UsageError: an unknown name.
        DataError: pictures of another shape or type.
    """
    space = choose_space(name)
    if thumbs.dtype != np.uint8 or thumbs.shape[1:] != (32, 32, 3):
        raise DataError(
            f"pictures of shape {thumbs.shape} and type {thumbs.dtype}",
            expected="uint8 [N, 32, 32, 3]",
        )
    embed: Any = {"layout": _layout, "pixels": _pixels}.get(space) or _random_conv()
    parts = [embed(thumbs[i : i + _CHUNK]) for i in range(0, max(len(thumbs), 1), _CHUNK)]
    return np.concatenate(parts)


def _unit(f: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.sqrt((f * f).sum(1, keepdims=True))
    f = np.where(length > 0, f, np.float32(1))  # no direction of its own: the diagonal
    length = np.where(length > 0, length, np.float32(np.sqrt(f.shape[1])))
    unit: NDArray[np.float32] = (f / length).astype(np.float32)
    return unit


def _pool(x: NDArray[np.float32], cells: int) -> NDArray[np.float32]:
    """Means of [..., H, W] in cells x cells equal parts: two small matrix products."""
    side = x.shape[-1]
    p = np.repeat(np.eye(cells, dtype=np.float32), side // cells, 0) * np.float32(cells / side)
    pooled: NDArray[np.float32] = p.T @ (x @ p)
    return pooled


def _layout(thumbs: NDArray[np.uint8]) -> NDArray[np.float32]:
    rgb = thumbs.astype(np.float32) / np.float32(255)
    luma = (rgb @ _LUMA).astype(np.float32)
    edges = np.pad(luma, ((0, 0), (1, 1), (1, 1)), mode="edge")
    gx = edges[:, 1:-1, 2:] - edges[:, 1:-1, :-2]
    gy = edges[:, 2:, 1:-1] - edges[:, :-2, 1:-1]
    strength = np.sqrt(gx * gx + gy * gy)
    safe = strength + np.float32(1e-6)
    gx, gy = gx / safe, gy / safe
    theta = np.arange(_DIRECTIONS) * (2 * np.pi / _DIRECTIONS)
    ways = np.empty((len(rgb), _DIRECTIONS, *luma.shape[1:]), np.float32)
    for d, (cos, sin) in enumerate(zip(np.cos(theta), np.sin(theta), strict=True)):
        r = np.maximum(gx * np.float32(cos) + gy * np.float32(sin), 0)
        for _ in range(3):  # the eighth power: an edge counts for one or two directions
            r *= r
        ways[:, d] = r * strength
    h = _pool(ways, _CELLS).reshape(len(rgb), _DIRECTIONS * _CELLS**2)
    h = np.sqrt(h / (h.sum(1, keepdims=True) + np.float32(_FAINT))) - np.float32(_USUAL)
    # Brightness, and red and blue against it: grey pictures have no colour, not three equal ones.
    colour = np.stack([luma - np.float32(0.5), rgb[..., 0] - luma, rgb[..., 2] - luma], 1)
    c = _pool(colour.astype(np.float32), _CELLS).reshape(len(rgb), 3 * _CELLS**2) / np.float32(
        _CELLS
    )
    return _unit(np.concatenate([h, c], 1))


def _pixels(thumbs: NDArray[np.uint8]) -> NDArray[np.float32]:
    x = thumbs.astype(np.float32).transpose(0, 3, 1, 2) / np.float32(127.5) - np.float32(1)
    return _unit(_pool(x, 16).reshape(len(x), 3 * 16 * 16))


def _random_conv() -> Any:
    """A function of pictures like `_layout`; torch is loaded only here."""
    import torch

    from poise.evaluation.features import build_features

    network = build_features("random_conv", 32)

    def embed(thumbs: NDArray[np.uint8]) -> NDArray[np.float32]:
        images = torch.from_numpy(np.ascontiguousarray(thumbs.transpose(0, 3, 1, 2)))
        with torch.inference_mode():
            return _unit(network(images).to("cpu", torch.float32).numpy())

    return embed
