"""How varied the images are: the Vendi score, its growth with the set, and a map of regions.

The kernel is the cosine of two feature vectors. Its scale has a meaning that needs no width to be
chosen: images that point the same way count as one, images at right angles as two, so the score
reads as "as varied as so many entirely different pictures". A Gaussian kernel would need a width,
and with a narrow one any set without copies would score its own size.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.audit.content.clusters import (
    Clusters,
    Features,
    cluster_kinds,
    find_clusters,
    flat_map,
    stable_order,
)

_MOST_IMAGES = 2000  # of the score
_MOST_ON_MAP = 1500
_FIRST_SIZE = 50  # of the curve
FEWEST_OF_A_CLASS = 20
_MOST_OF_A_CLASS = 500
_GROWTH = 0.05  # per doubling of the images; less is no growth
_EXAMPLES = 6


def vendi_score(features: NDArray[np.floating[Any]]) -> float:
    """exp of the entropy of the eigenvalues of K / n (Friedman & Dieng 2023, equation 2).

    K is the matrix of cosines. The eigenvalues are taken from the smaller of the n x n and the
    D x D form, which have the same ones but for zeros.

    Args:
        features: [n, D], rows of unit length (others are scaled to it; none may be zero).

    Returns:
        From 1 (all rows point the same way) to min(n, D) (all at right angles); 0 for no rows. It
        depends on n: compare it only at equal n.
    """
    n = len(features)
    if n == 0:
        return 0.0
    x = features.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    gram = x @ x.T if n <= x.shape[1] else x.T @ x
    values = np.linalg.eigvalsh(gram / n)
    values = values[values > 1e-12]
    values /= values.sum()
    return float(np.exp(-(values * np.log(values)).sum()))


def vendi_curve(features: Features) -> list[dict[str, Any]]:
    """The score of the first 50, 100, 200, ... and of all rows: [{"n", "vendi"}], n ascending."""
    sizes = []
    size = _FIRST_SIZE
    while size < len(features):
        sizes.append(size)
        size *= 2
    return [
        {"n": n, "vendi": round(vendi_score(features[:n]), 4)} for n in [*sizes, len(features)] if n
    ]


def is_saturated(curve: list[dict[str, Any]]) -> bool:
    """Whether more images of the same kind stopped adding variety.

    True if the score grew by less than 5 % per doubling between the largest set and the largest
    one of at most half its size; False where there is none.
    """
    if not curve:
        return False
    last = curve[-1]
    before = [point for point in curve if 2 * point["n"] <= last["n"]]
    if not before:
        return False
    doublings = np.log2(last["n"] / before[-1]["n"])
    return bool((last["vendi"] / before[-1]["vendi"]) ** (1 / doublings) - 1 < _GROWTH)


def describe_diversity(
    names: Sequence[str],
    labels: NDArray[np.int64] | None,
    label_names: Sequence[str],
    features: Features,
    usable: NDArray[np.bool_],
    *,
    space: str = "layout",
) -> dict[str, Any]:
    """Variety, regions and map of a set, as plain data for JSON.

    Args:
        names: paths of the N images.
        labels: int [N], -1 where an image has none; None: no classes.
        label_names: name of each label; empty: no classes.
        features: float32 [N, D] of unit length.
        usable: bool [N], False for images that are broken; they are left out.
        space: what the features are called.

    Returns:
        features, images_used and vendi (of at most 2,000 images), real_max (the largest score
        that so many images could have), saturation, saturated, classes (the score of each class,
        all at the same number of images), classes_left_out (names of those with fewer than 20),
        clusters (largest first) and map (at most 1,500 images).
    """
    labels = np.full(len(names), -1) if labels is None else labels
    order = stable_order(names)
    order = order[usable[order]]
    used = order[:_MOST_IMAGES]
    curve = vendi_curve(features[used])
    classes, left_out = _by_class(labels, label_names, features, order)
    regions, points = _regions(names, labels, label_names, features, order)
    return {
        "features": space,
        "images_used": len(used),
        "vendi": curve[-1]["vendi"] if curve else 0.0,
        "real_max": min(len(used), features.shape[1]),
        "saturation": curve,
        "saturated": is_saturated(curve),
        "classes": classes,
        "classes_left_out": left_out,
        "clusters": regions,
        "map": points,
    }


def _by_class(
    labels: NDArray[np.int64],
    label_names: Sequence[str],
    features: Features,
    order: NDArray[np.int64],
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    members = [order[labels[order] == label] for label in range(len(label_names))]
    large = [len(m) for m in members if len(m) >= FEWEST_OF_A_CLASS]
    n = min([*large, _MOST_OF_A_CLASS])
    scores: dict[str, dict[str, Any]] = {}
    left_out = []
    for name, m in zip(label_names, members, strict=True):
        if len(m) >= FEWEST_OF_A_CLASS:
            curve = vendi_curve(features[m[:n]])
            scores[name] = {"vendi": curve[-1]["vendi"], "n": n, "saturation": curve}
        else:
            left_out.append(name)
    return scores, left_out


def _regions(
    names: Sequence[str],
    labels: NDArray[np.int64],
    label_names: Sequence[str],
    features: Features,
    order: NDArray[np.int64],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The clusters and the map of the images in `order`, which looks random."""
    inside = np.sort(order)
    clusters = find_clusters(features[inside])
    nearest = [_central(clusters, c) for c in range(clusters.count)]
    # Every cluster stands on the map, however small; the others come in the stable order.
    first = inside[np.array([near[0] for near in nearest], np.int64)]
    chosen = np.concatenate([first, order[~np.isin(order, first)]])[:_MOST_ON_MAP]
    xy = flat_map(features[chosen])
    of = clusters.of[np.searchsorted(inside, chosen)]
    points = [
        {"path": names[i], "x": round(float(x), 4), "y": round(float(y), 4), "cluster": int(c)}
        for i, (x, y), c in zip(chosen.tolist(), xy, of, strict=True)
    ]
    kinds = cluster_kinds(clusters)
    rows = []
    for c in range(clusters.count):
        members = inside[clusters.of == c]
        x, y = np.median(xy[of == c], 0)
        rows.append(
            {
                "id": c,
                "size": len(members),
                "share": round(len(members) / len(inside), 6),
                "x": round(float(x), 4),
                "y": round(float(y), 4),
                "examples": [names[i] for i in inside[nearest[c][:_EXAMPLES]].tolist()],
                "class": _main_class(labels[members], label_names),
                "kind": kinds[c],
            }
        )
    return rows, points


def _central(clusters: Clusters, c: int) -> NDArray[np.int64]:
    """Members of cluster c, nearest to its centre first."""
    members = np.flatnonzero(clusters.of == c)
    return members[np.argsort(clusters.distance[members], kind="stable")]


def _main_class(labels: NDArray[np.int64], label_names: Sequence[str]) -> str | None:
    """The class of most of the members; None where there are no classes."""
    known = labels[labels >= 0]
    if not label_names or len(known) == 0:
        return None
    return label_names[int(np.bincount(known).argmax())]
