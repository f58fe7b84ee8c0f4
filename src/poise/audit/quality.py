"""Which pictures are odd among their own kind: dark, light, soft, empty, small, long.

Most rules compare a picture with the data set it lies in, by medians, so that a set of dark or
small pictures is not full of outliers; a rule that would call more than a fifth of a set odd says
nothing. Floors keep small deviations quiet. Only what is black, white, empty or blurred by itself
is said without comparison. Nothing is removed.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.audit.look import Look, Problem
from poise.audit.scan import Scan

ODD = (  # kinds that a picture can be left out for
    *("flat", "near-empty", "blurred", "too-dark", "too-light", "too-small"),
    *("size-outlier", "aspect-outlier", "animated", "wrong-extension"),
)
SHOWN = 48  # pictures of each ranked list
_FEWEST = 10  # readable pictures for a comparison
_MOST = 0.2  # share of a set that can be odd
_SMALLEST, _LARGEST = 8, 64  # range of the resolution chosen from the data
_BLURRED, _SOFT = 0.25, 0.3  # sharpness: blurred whatever the others are; if the others are sharp
_BLACK, _DARK = 4.0, 50.0  # mean luma: nothing can be seen; dark if the others are not
_STILL = 4.0  # standard deviation of the luma of a black or white picture, at most
_EMPTY, _BARE = 0.998, 0.985  # share of one brightness: nothing else; nearly nothing
_FAR = 3.0  # robust standard deviations from the median
_TIMES_SIDE, _TIMES_ASPECT = 3.0, 1.8  # factors from the median, at least

Flags = NDArray[np.bool_]
Values = NDArray[np.float64]


def flag(looks: Sequence[Look]) -> list[tuple[Problem, ...]]:
    """Problems that show only beside the other pictures, for each look in order.

    Kinds: size-outlier, aspect-outlier, too-small, blurred, too-dark, too-light, near-empty.
    Broken pictures get none.
    """
    found: list[tuple[Problem, ...]] = [()] * len(looks)
    places = [index for index, look in enumerate(looks) if not look.broken]
    if not places:
        return found
    whole = [looks[index] for index in places]
    for kind, flags, tell in (*_light(whole), *_shape(whole), *_content(whole)):
        for position in np.flatnonzero(flags).tolist():
            problem = Problem(kind, tell(whole[position]))
            found[places[position]] += (problem,)
    return found


def soft_set(scan: Scan) -> float:
    """Share of the pictures, of those where it can be told, that are softer than photographs.

    Above one half the set is soft as a whole (microscopy, enlarged pictures); then `flag` calls
    only those blurred that are softer than the rest.
    """
    values = np.array([look.sharpness for look in scan.looks if not look.broken])
    values = values[values >= 0]
    return float(np.mean(values < _SOFT)) if values.size else 0.0


def flagged(scan: Scan) -> Scan:
    """The scan with the problems of `flag` added to its looks."""
    looks = zip(scan.looks, flag(scan.looks), strict=True)
    return replace(
        scan, looks=tuple(replace(look, problems=(*look.problems, *more)) for look, more in looks)
    )


def proposed_resolution(looks: Sequence[Look]) -> int:
    """Side in pixels to train at: the median shorter side rounded down to a power of two, 8 to 64.

    The rule by which training chooses where `data.resolution` is not set.
    """
    sides = [min(look.width, look.height) for look in looks if not look.broken]
    side = max(int(np.median(sides)), 1) if sides else _SMALLEST
    return int(min(max(2 ** (side.bit_length() - 1), _SMALLEST), _LARGEST))


def ranked(scan: Scan) -> dict[str, list[dict[str, Any]]]:
    """For people to judge: at most 48 pictures of each kind, worst first; of a `flagged` scan.

    `value` is the sharpness, the mean luma (twice), the standard deviation of the luma, and the
    share of pixels of about one brightness.
    """
    orders: dict[str, tuple[Callable[[Look], float], int]] = {
        "blurred": (lambda look: look.sharpness, 1),
        "too-dark": (lambda look: look.brightness, 1),
        "too-light": (lambda look: look.brightness, -1),
        "flat": (lambda look: look.contrast, 1),
        "near-empty": (lambda look: look.plain, -1),
    }
    kinds = [{problem.kind for problem in look.problems} for look in scan.looks]
    lists: dict[str, list[dict[str, Any]]] = {}
    for kind, (value, sign) in orders.items():
        places = [
            index
            for index, look in enumerate(scan.looks)
            if not look.broken and (kind != "blurred" or look.sharpness >= 0)
        ]
        keys = np.array([sign * value(scan.looks[index]) for index in places])
        lists[kind] = [
            {
                "path": scan.looks[places[place]].name,
                "value": round(value(scan.looks[places[place]]), 4),
                "flagged": kind in kinds[places[place]],
            }
            for place in np.argsort(keys, kind="stable")[:SHOWN].tolist()
        ]
    return lists


def spread(scan: Scan) -> dict[str, dict[str, float]]:
    """The 5, 50 and 95 % points of each measure over the readable pictures; empty without any."""
    whole = [look for look in scan.looks if not look.broken]
    columns = {
        "brightness": [look.brightness for look in whole],
        "contrast": [look.contrast for look in whole],
        "saturation": [look.saturation for look in whole],
        "sharpness": [look.sharpness for look in whole if look.sharpness >= 0],
        "width": [float(look.width) for look in whole],
        "height": [float(look.height) for look in whole],
        "aspect": [look.width / look.height for look in whole],
    }
    points = {
        name: np.quantile(column, (0.05, 0.5, 0.95)) for name, column in columns.items() if column
    }
    return {
        name: dict(zip(("low", "median", "high"), np.round(found, 4).tolist(), strict=True))
        for name, found in points.items()
    }


_Rule = tuple[str, Flags, Callable[[Look], str]]


def _light(looks: list[Look]) -> list[_Rule]:
    mean = np.array([look.brightness for look in looks])
    still = np.array([look.contrast for look in looks]) <= _STILL
    dark = _odd((mean < _DARK) & (_distance(np.log1p(mean), 0.2) < -_FAR))
    light = _odd((mean > 255 - _DARK) & (_distance(np.log1p(255 - mean), 0.2) < -_FAR))
    middle = float(np.median(mean))

    def tell(look: Look) -> str:
        return f"mean brightness {look.brightness:.0f} of 255; the median here is {middle:.0f}"

    return [
        ("too-dark", dark | ((mean <= _BLACK) & still), tell),
        ("too-light", light | ((mean >= 255 - _BLACK) & still), tell),
    ]


def _shape(looks: list[Look]) -> list[_Rule]:
    width = np.array([look.width for look in looks], float)
    height = np.array([look.height for look in looks], float)
    side = np.log(np.sqrt(width * height))
    aspect = np.abs(np.log(width / height))  # lying and standing pictures are alike
    wanted = proposed_resolution(looks)
    middle = float(np.exp(np.median(side)))
    return [
        (
            "size-outlier",
            _odd(_beyond(side, _TIMES_SIDE)),
            lambda look: (
                f"{look.width}x{look.height} pixels; half of the pictures here have sides above "
                f"{middle:.0f}"
            ),
        ),
        (
            "aspect-outlier",
            _odd(_beyond(aspect, _TIMES_ASPECT)),
            lambda look: (
                f"{look.width}x{look.height}: one side is "
                f"{max(look.width, look.height) / min(look.width, look.height):.1f} times the other"
            ),
        ),
        (
            "too-small",
            np.minimum(width, height) < wanted,
            lambda look: (
                f"{look.width}x{look.height} pixels, would be enlarged to {wanted}x{wanted}"
            ),
        ),
    ]


def _content(looks: list[Look]) -> list[_Rule]:
    plain = np.array([look.plain for look in looks])
    sharp = np.array([look.sharpness for look in looks])
    flat = np.array([any(p.kind == "flat" for p in look.problems) for look in looks])
    bare = (plain >= _EMPTY) | _odd(plain >= _BARE)
    return [
        ("blurred", _blurred(sharp) & ~flat, _tell_blur),
        (
            "near-empty",
            bare & ~flat,
            lambda look: f"{look.plain:.1%} of it has about one brightness",
        ),
    ]


def _tell_blur(look: Look) -> str:
    return f"sharpness {look.sharpness:.2f}; sharp photographs have 0.3 to 2"


def _blurred(sharp: Values) -> Flags:
    flags = np.zeros(len(sharp), bool)
    told = sharp >= 0
    values = sharp[told]
    if not values.size:
        return flags
    far = _distance(np.log(values + 1e-3), 0.2) < -2
    if np.mean(values < _SOFT) > 0.5 and len(values) >= _FEWEST:  # a set that is soft as a whole
        flags[told] = _odd((values < _BLURRED) & (_distance(np.log(values + 1e-3), 0.2) < -_FAR))
    else:
        flags[told] = (values < _BLURRED) | ((values < _SOFT) & far)
    return flags


def _beyond(logs: Values, factor: float) -> Flags:
    """Further than `factor` from the median, and far for this set."""
    away = np.abs(logs - np.median(logs)) > np.log(factor)
    return np.asarray(away & (np.abs(_distance(logs, 0.1)) > _FAR))


def _distance(values: Values, narrowest: float) -> Values:
    """Distance from the median in robust standard deviations (1.4826 x median deviation).

    The deviation is taken as `narrowest` at least; zeros for sets too small to compare.
    """
    if len(values) < _FEWEST:
        return np.zeros(len(values))
    middle = np.median(values)
    deviation = 1.4826 * np.median(np.abs(values - middle))
    return np.asarray((values - middle) / max(float(deviation), narrowest), np.float64)


def _odd(flags: Flags) -> Flags:
    """The flags, or none if they hold for too many to be exceptions."""
    return flags if len(flags) >= _FEWEST and flags.mean() <= _MOST else np.zeros_like(flags)
