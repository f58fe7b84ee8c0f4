"""Labels and captions: how the classes are filled, and which labels the pictures contradict."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.audit.content.clusters import Features, stable_order

TINY = 20  # images of a class
_K = 10  # neighbours
_NEARLY_ALL = 9  # of them with one other label
_MOST_SUSPECTS = 200
_MOST_VOTERS = 20_000  # 60,000 images against these take 10 s on one core
_FEWEST_VOTERS = 50
_MOST_EXAMPLES = 200  # of captions
_ROWS = 512
_SPARE = 4  # neighbours fetched beyond k, so that copies can be taken out
# How far from chance to certainty neighbours must tell a class before they may contradict a label.
# On CIFAR-10 they are right 54 % of the time; with a lower bar (0.3) they contradicted 30 labels,
# of which 9 were among 200 planted errors.
_ABOVE_CHANCE = 0.6


def class_counts(
    labels: NDArray[np.int64] | None, label_names: Sequence[str], usable: NDArray[np.bool_]
) -> dict[str, int]:
    """Usable images of each class; empty where there are no classes."""
    if labels is None:
        return {}
    kept = labels[usable & (labels >= 0)]
    counts = np.bincount(kept, minlength=len(label_names))
    return dict(zip(label_names, counts.tolist(), strict=True)) if label_names else {}


def entropy_bits(counts: Sequence[int] | NDArray[np.int64]) -> float:
    """Entropy in bits of the shares of `counts`; 0 where there are none."""
    n = np.asarray(counts, np.float64)
    p = n[n > 0] / max(n.sum(), 1)
    return float(-(p * np.log2(p)).sum()) + 0.0  # no minus zero


def describe_labels(
    names: Sequence[str],
    labels: NDArray[np.int64] | None,
    label_names: Sequence[str],
    features: Features,
    usable: NDArray[np.bool_],
    digests: Sequence[str],
) -> dict[str, Any] | None:
    """Balance of the classes, and labels that neighbours contradict; None without classes.

    Args:
        names: paths of the N images.
        labels: int [N], -1 where an image has none; None: no classes.
        label_names: name of each label.
        features: float32 [N, D] of unit length.
        usable: bool [N], False for broken images, which are left out.
        digests: of the pixels of each image; copies never vouch for one another.

    Returns:
        entropy (bits), entropy_max, effective_classes (2 to the entropy: so many equal classes
        would be as mixed), largest and smallest [name, images], tiny (names of classes with
        fewer than 20), neighbour_accuracy (share of images whose 10 nearest others mostly carry
        its label; null where there are too few), voters (images that served as neighbours),
        suspects (at most 200, the surest first), suspect_count (all), unjudged (classes that these
        features cannot tell, about whose images nothing is said) and note ("" or why
        nothing is said).
    """
    counts = class_counts(labels, label_names, usable)
    if labels is None or not counts:
        return None
    ranked = sorted(counts, key=lambda name: -counts[name])
    bits = entropy_bits(list(counts.values()))
    facts: dict[str, Any] = {
        "entropy": bits,
        "entropy_max": float(np.log2(len(counts))),
        "effective_classes": 2**bits,
        "largest": [ranked[0], counts[ranked[0]]],
        "smallest": [ranked[-1], counts[ranked[-1]]],
        "tiny": [name for name in label_names if counts[name] < TINY],
    }
    members = np.flatnonzero(usable & (labels >= 0))
    return facts | _judge(names, labels, label_names, features, members, digests)


@dataclass(frozen=True)
class _Votes:
    """What the neighbours of m images say.

    Attributes:
        counts: int64 [m, classes], votes for each class; rows sum to at most 10.
        nearness: float64 [m], mean cosine to those neighbours.
        voters: how many images could vote.
    """

    counts: NDArray[np.int64]
    nearness: NDArray[np.float64]
    voters: int


def _judge(
    names: Sequence[str],
    labels: NDArray[np.int64],
    label_names: Sequence[str],
    features: Features,
    members: NDArray[np.int64],
    digests: Sequence[str],
) -> dict[str, Any]:
    """The facts that rest on neighbours."""
    own = labels[members]
    present = np.flatnonzero(np.bincount(own, minlength=len(label_names))).tolist()
    voters = _voters(names, labels, members, digests)
    facts: dict[str, Any] = {
        "neighbour_accuracy": None,
        "voters": len(voters),
        "suspects": [],
        "suspect_count": 0,
        "unjudged": [label_names[c] for c in present],
    }
    if len(present) < 2 or len(voters) < _FEWEST_VOTERS:
        why = "only one class" if len(present) < 2 else "too few different images"
        return facts | {"note": f"Neighbours cannot judge the labels: there is {why}."}
    votes = _vote(labels, len(label_names), features, members, voters, digests)
    right = votes.counts.argmax(1) == own
    facts["neighbour_accuracy"] = float(right.mean())
    counts = np.bincount(own, minlength=len(label_names))
    recall = np.bincount(own, right, minlength=len(label_names)) / np.maximum(counts, 1)
    told = recall >= _beyond(counts / len(own))
    # Every class counts the same, so that one large class cannot speak for the small ones.
    judged = counts >= min(TINY, counts.max())
    mean, chance = recall[judged].mean(), 1 / max(int(judged.sum()), 2)
    if mean < _beyond(chance) or not told.any():
        note = (
            f"Neighbours cannot judge the labels: these features tell {mean:.0%} of the images "
            f"of a class by their neighbours, where guessing tells {chance:.0%}."
        )
        return facts | {"note": note}
    facts["unjudged"] = [label_names[c] for c in present if not told[c]]
    suspects = _suspects(votes, own, told)
    facts["suspect_count"] = len(suspects)
    facts["suspects"] = [
        {
            "path": names[int(members[i])],
            "label": label_names[int(own[i])],
            "neighbours": label_names[int(votes.counts[i].argmax())],
            "share": float(votes.counts[i].max() / votes.counts[i].sum()),
        }
        for i in suspects[:_MOST_SUSPECTS].tolist()
    ]
    return facts | {"note": ""}


def _beyond(chance: Any) -> Any:
    return chance + _ABOVE_CHANCE * (1 - chance)


def _suspects(votes: _Votes, own: NDArray[np.int64], told: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Images of which at least 9 in 10 neighbours agree on one other label, the surest first."""
    top = votes.counts.argmax(1)
    most, cast = votes.counts.max(1), votes.counts.sum(1)
    sure = (top != own) & (most * _K >= _NEARLY_ALL * cast) & (cast >= _NEARLY_ALL)
    # A class that neighbours cannot tell is neither accused nor believed.
    found = np.flatnonzero(sure & told[own] & told[top])
    return found[np.lexsort((-votes.nearness[found], -most[found]))]


def _voters(
    names: Sequence[str],
    labels: NDArray[np.int64],
    members: NDArray[np.int64],
    digests: Sequence[str],
) -> NDArray[np.int64]:
    """One image of each digest, none of a digest with two labels; at most 20,000, stably chosen."""
    by_digest: dict[str, set[int]] = {}
    for i in members.tolist():
        by_digest.setdefault(digests[i], set()).add(int(labels[i]))
    seen: set[str] = set()
    chosen = []
    for position in stable_order([names[i] for i in members.tolist()]):
        i = int(members[position])
        if len(by_digest[digests[i]]) == 1 and digests[i] not in seen:
            seen.add(digests[i])
            chosen.append(i)
            if len(chosen) == _MOST_VOTERS:
                break
    return np.array(chosen, np.int64)


def _vote(
    labels: NDArray[np.int64],
    classes: int,
    features: Features,
    members: NDArray[np.int64],
    voters: NDArray[np.int64],
    digests: Sequence[str],
) -> _Votes:
    import torch

    numbers = {digest: n for n, digest in enumerate(dict.fromkeys(digests))}
    ids = np.array([numbers[digest] for digest in digests], np.int64)
    reference = torch.from_numpy(np.ascontiguousarray(features[voters])).T.contiguous()
    fetch = min(_K + _SPARE, len(voters))
    counts = np.zeros((len(members), classes), np.int64)
    nearness = np.zeros(len(members))
    for start in range(0, len(members), _ROWS):
        part = members[start : start + _ROWS]
        cosine = torch.from_numpy(features[part]) @ reference
        near = cosine.topk(fetch, dim=1)
        value, index = near.values.numpy(), near.indices.numpy()
        # At most one voter has the digest of the image: the spare ones cover it.
        other = ids[voters[index]] != ids[part][:, None]
        other &= np.cumsum(other, 1) <= _K
        rows = np.repeat(np.arange(len(part)), fetch).reshape(other.shape)[other]
        np.add.at(counts[start : start + _ROWS], (rows, labels[voters[index]][other]), 1)
        nearness[start : start + _ROWS] = (value * other).sum(1) / np.maximum(other.sum(1), 1)
    return _Votes(counts, nearness, len(voters))


def describe_captions(
    names: Sequence[str],
    captions: Sequence[str | None],
    usable: NDArray[np.bool_] | None = None,
) -> dict[str, Any] | None:
    """Empty and repeated captions of the usable images (None: all); None if no image has one.

    Captions are compared without spaces at the ends and without regard to case.

    Returns:
        captioned (images with a caption that is not empty), empty (paths of at most 200 images
        whose caption is empty or missing), empty_count, repeated (at most 200 captions with their
        counts, the most frequent first) and distinct (different captions).
    """
    if all(caption is None for caption in captions):
        return None
    kept = [i for i in range(len(names)) if usable is None or usable[i]]
    texts = {i: (captions[i] or "").strip() for i in kept}
    empty = [names[i] for i in kept if not texts[i]]
    first: dict[str, str] = {}
    for text in texts.values():
        first.setdefault(text.casefold(), text)
    counts = Counter(text.casefold() for text in texts.values() if text)
    repeated = [(key, n) for key, n in counts.items() if n > 1]
    repeated.sort(key=lambda pair: (-pair[1], pair[0]))
    return {
        "captioned": len(kept) - len(empty),
        "empty": empty[:_MOST_EXAMPLES],
        "empty_count": len(empty),
        "repeated": [{"caption": first[key], "count": n} for key, n in repeated[:_MOST_EXAMPLES]],
        "distinct": len(counts),
    }
