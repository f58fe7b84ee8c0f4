"""Whether two thumbnails show the same picture: a direct comparison after a small alignment.

One picture is explained from the other by a gain, an offset, and a small shift and stretch along
each side (what a crop leaves behind), found by least squares on the gradients and repeated, first
on the halved picture (B. Lucas and T. Kanade, "An iterative image registration technique", 1981).
Then the fine structure must agree everywhere: correlation after the local mean and the local
contrast have been taken out. Photographs of alike composition agree in the large and not in that.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.audit.copies.candidates import Pairs
from poise.audit.copies.hashing import SIDE, structured_share, turned

NEAR = 0.28  # the largest distance of a near duplicate; see `distances`
_FINE_ROUNDS = 2
_FARTHEST = 3.5  # thumbnail pixels that an edge may move
_FREE = 1.5  # pixels that an edge may move at no cost; a crop of 2 of 64 pixels moves it by 1
_PER_PIXEL = 0.04  # distance for each pixel beyond: more freedom fits more by chance
_SLACK = 0.3  # how much less the whole may agree: a mark or a frame was added
_HOPELESS = (0.45, 0.55)  # agreement of halved pictures below which a pair is done, each round
_NOISE = 4.0  # levels of local contrast that are taken for noise
_OTHER_COLOURS = (-0.3, 20.0)  # correlation of colours below, and distance in levels above: veto
_OTHER_HUE = (0.6, 12.0)  # cosine of colours below, and strength in levels of both above: veto
_FULL = 0.35  # share of structure from which a picture cannot resemble others by chance
_CHUNK = 512
_Floats = NDArray[np.floating[Any]]  # float32 throughout
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def distances(thumbs: NDArray[np.uint8], pairs: Pairs) -> NDArray[np.float32]:
    """How different the pictures of each pair are, from 0 (the same) to about 1 (unrelated) [P].

    1 minus the smaller of two correlations of luma after alignment, of the whole and of the fine
    structure with even contrast; more if the alignment had to move an edge far, and if there is
    little structure to go by. Not influenced by brightness, contrast or loss of colour; other
    colours count as unrelated.

    Args:
        thumbs: [N, 32, 32, 3].
        pairs: rows of `thumbs`, and the orientation of the first that resembles the second.
    """
    parts = [
        _compare(thumbs, pairs.where(slice(start, start + _CHUNK)))
        for start in range(0, len(pairs), _CHUNK)
    ]
    return np.concatenate([*parts, np.zeros(0, np.float32)]).astype(np.float32)


def _compare(thumbs: NDArray[np.uint8], pairs: Pairs) -> _Floats:
    other, base = _turned_firsts(thumbs, pairs), thumbs[pairs.second]
    gray, target = _gray(other), _gray(base)
    result, left, edges = _sifted(_halved(gray), _halved(target))
    if len(left):
        gray, target = gray[left], target[left]
        soft, soft_target = _blurred(gray, _SOFT), _blurred(target, _SOFT)
        for _ in range(_FINE_ROUNDS):
            edges = _better(soft, soft_target, edges)
        colours = other[left] - gray[..., None], base[left] - target[..., None]
        result[left] = _judged(gray, target, colours, edges)
    return result


def _sifted(gray: _Floats, target: _Floats) -> tuple[_Floats, NDArray[np.int64], _Floats]:
    """Distances by halved pictures [P, 16, 16]; the pairs worth a closer look, and their edges.

    Of alike photographs one in seven is left, of near duplicates all.
    """
    result = np.ones(len(gray), np.float32)
    left = np.arange(len(gray))
    edges = np.zeros((len(gray), 4), np.float32)
    even_target = _evened(target)
    for least in _HOPELESS:
        if not len(left):
            break
        edges = _better(gray[left], target[left], edges)
        rows, columns, inside = _warps(edges, SIDE // 2)
        fine = _correlation(_evened(rows @ gray[left] @ columns), even_target[left], inside)
        result[left] = 1 - fine
        left, edges = left[fine >= least], edges[fine >= least]
    return result, left, edges


def _turned_firsts(thumbs: NDArray[np.uint8], pairs: Pairs) -> NDArray[np.uint8]:
    other = np.empty((len(pairs), *thumbs.shape[1:]), np.uint8)
    for k in np.unique(pairs.orientation):
        at = pairs.orientation == k
        other[at] = turned(thumbs[pairs.first[at]], int(k))
    return other


def _judged(
    gray: _Floats, target: _Floats, colours: tuple[_Floats, _Floats], edges: _Floats
) -> _Floats:
    """The distances of aligned pairs [P]; colours are RGB minus luma [P, 32, 32, 3]."""
    rows, columns, inside = _warps(edges, SIDE)
    aligned = rows @ gray @ columns
    whole = _correlation(aligned, target, inside)
    fine = _correlation(_evened(aligned), _evened(target), inside)
    far = np.maximum(np.abs(edges).max(axis=1) - _FREE, 0)
    moved = rows[:, None] @ np.moveaxis(colours[0], 3, 1) @ columns[:, None]
    fixed = np.moveaxis(colours[1], 3, 1)
    apart = ((moved - fixed) ** 2).sum(axis=1) * inside
    levels = np.sqrt(apart.sum(axis=(1, 2)) / inside.sum(axis=(1, 2)))
    below = (len(gray), 3 * SIDE, SIDE)
    alike = _correlation(moved.reshape(below), fixed.reshape(below), np.tile(inside, (1, 3, 1)))
    veto = (alike < _OTHER_COLOURS[0]) & (levels > _OTHER_COLOURS[1])
    veto |= _other_hue(moved * inside[:, None], fixed * inside[:, None], inside)
    distance = 1 - np.minimum(whole + _SLACK, fine) + _PER_PIXEL * far
    share = np.minimum(structured_share(gray), structured_share(target))
    distance = np.maximum(distance, 0) / np.clip(share / _FULL, 0.05, 1)
    return np.where(veto, 1, distance).astype(np.float32)


def _other_hue(a: _Floats, b: _Floats, inside: _Floats) -> NDArray[np.bool_]:
    """Whether both [P, 3, 32, 32] are coloured, and by different colours."""
    count = inside.sum(axis=(1, 2))
    powers = [(x**2).sum(axis=(1, 2, 3)) for x in (a, b)]
    cosine = (a * b).sum(axis=(1, 2, 3)) / np.sqrt(powers[0] * powers[1] + 1e-6)
    weaker = np.sqrt(np.minimum(*powers) / count)
    other: NDArray[np.bool_] = (cosine < _OTHER_HUE[0]) & (weaker > _OTHER_HUE[1])
    return other


def _gray(pictures: NDArray[np.uint8]) -> _Floats:
    gray: _Floats = pictures.astype(np.float32) @ _LUMA
    return gray


def _halved(gray: _Floats) -> _Floats:
    halves: _Floats = gray.reshape(len(gray), SIDE // 2, 2, SIDE // 2, 2).mean(axis=(2, 4))
    return halves


def _gauss(width: float, side: int) -> _Floats:
    """A blur along one side as a matrix [S, S] whose rows add up to 1."""
    x = np.arange(side, dtype=np.float32)
    weights = np.exp(-0.5 * ((x[:, None] - x) / width) ** 2)
    rows: _Floats = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return rows


_SOFT = _gauss(0.8, SIDE)
_LOCAL = {
    SIDE: (_gauss(2, SIDE), _gauss(3, SIDE)),
    SIDE // 2: (_gauss(1.5, SIDE // 2), _gauss(2, SIDE // 2)),
}  # what is taken out, and over what contrast is measured


def _blurred(gray: _Floats, blur: _Floats) -> _Floats:
    blurred: _Floats = blur @ gray @ blur.T
    return blurred


def _evened(gray: _Floats) -> _Floats:
    """The fine structure [P, S, S], of the same contrast everywhere."""
    local, around = _LOCAL[gray.shape[1]]
    fine = gray - _blurred(gray, local)
    evened: _Floats = fine / np.sqrt(_blurred(fine**2, around) + _NOISE**2)
    return evened


def _warps(edges: _Floats, side: int) -> tuple[_Floats, _Floats, _Floats]:
    """Matrices R, C [P, S, S] that resample a picture as R @ picture @ C, and what is known.

    `edges` [P, 4] are the places that the top, bottom, left and right edge are taken from, in
    thumbnail pixels inwards or outwards from their own; linear between.
    """
    grid = np.arange(side, dtype=np.float32)
    low, high = _ramps(side)
    within = (grid > 0) & (grid < side - 1)  # a thin frame may have been added
    edges = edges * (side / SIDE)
    places = [grid + edges[:, [i]] * low + edges[:, [i + 1]] * high for i in (0, 2)]
    known = [((p > 0.4) & (p < side - 1.4)).astype(np.float32) * within for p in places]
    hats = [np.maximum(0, 1 - np.abs(np.clip(p, 0, side - 1)[:, :, None] - grid)) for p in places]
    return hats[0], hats[1].swapaxes(1, 2), known[0][:, :, None] * known[1][:, None, :]


def _ramps(side: int) -> tuple[_Floats, _Floats]:
    """How much each pixel follows the near and the far edge [S]."""
    far = ((np.arange(side) + 0.5) / side).astype(np.float32)
    return 1 - far, far


def _better(gray: _Floats, target: _Floats, edges: _Floats) -> _Floats:
    """One step of least squares from `edges` [P, 4]."""
    side = gray.shape[1]
    rows, columns, inside = _warps(edges, side)
    warped = rows @ gray @ columns
    down, right = np.zeros_like(warped), np.zeros_like(warped)
    down[:, 1:-1] = (warped[:, 2:] - warped[:, :-2]) / 2
    right[:, :, 1:-1] = (warped[:, :, 2:] - warped[:, :, :-2]) / 2
    low, high = _ramps(side)
    terms = np.stack(
        [
            *(down * low[:, None], down * high[:, None], right * low, right * high),
            *(warped, np.ones_like(warped)),
        ],
        axis=1,
    )
    terms = (terms * inside[:, None]).reshape(len(gray), 6, -1)
    gram = terms @ terms.swapaxes(1, 2)
    # A little resistance, so that edges without any structure stay where they are.
    resistance = 1e-3 * gram[:, range(4), range(4)].mean(axis=1) + 1e-3
    gram[:, range(4), range(4)] += resistance[:, None]
    gram[:, [4, 5], [4, 5]] += 1e-3
    solved = np.linalg.solve(gram, terms @ target.reshape(len(gray), -1, 1))[:, :, 0]
    gain = np.where(np.abs(solved[:, 4:5]) < 0.2, 1, solved[:, 4:5])
    step = np.clip(solved[:, :4] / gain * (SIDE / side), -1.5, 1.5)
    better: _Floats = np.clip(edges + step, -_FARTHEST, _FARTHEST).astype(np.float32)
    return better


def _correlation(a: _Floats, b: _Floats, inside: _Floats) -> _Floats:
    """Pearson's correlation over the pixels inside, [P]."""
    count = inside.sum(axis=(1, 2), keepdims=True)
    a = (a - (a * inside).sum(axis=(1, 2), keepdims=True) / count) * inside
    b = (b - (b * inside).sum(axis=(1, 2), keepdims=True) / count) * inside
    power = (a * a).sum(axis=(1, 2)) * (b * b).sum(axis=(1, 2))
    shared: _Floats = (a * b).sum(axis=(1, 2)) / np.sqrt(power + 1e-6)
    return shared
