"""From a table of a space file to a dimension that fits the settings and images of a study."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin

from pydantic import ValidationError

from poise.config import documented, resolve
from poise.errors import UsageError, nearest
from poise.settings import Config
from poise.tuning.dimension import Dimension, Kind, frozen, own_value
from poise.tuning.space_file import SPECIAL, is_number, shown

_MOST_CHECKED = 16  # combinations of conditions with which a value is checked
_WIDEST = 12**-0.5  # relative width of an average along a power function
_STRONGEST = 100.0  # guidance
_AUGMENTED_FROM = 16  # pixels; below, shifts and stretches leave little of an image
_LARGEST = 2.0**62  # of whole numbers
_TRIED = 32  # widths below and above one that cannot be built
_TRANSFORMERS = ("dit", "mp_dit")
_DEFAULT_POINTS = 4


@dataclass(frozen=True)
class Around:
    """What a dimension must fit."""

    config: Config
    base: Mapping[str, Any]  # every setting by its dotted name
    classes: int  # 0: none
    ours: bool  # the space is built in


def checked_dimension(
    name: str, table: Mapping[str, Any], found: Mapping[str, Dimension], around: Around
) -> tuple[Dimension | None, list[str]]:
    """A dimension and what is to be said of it; None where its conditions can never hold.

    Args:
        name: of the dimension.
        table: its words, as `space_file` gives them.
        found: the dimensions before it.
        around: what it must fit.

    Raises:
        UsageError: it cannot be searched as the table says.
    """
    when = _conditions(name, table["when"], found)
    for other, values in when.items():
        if other not in found and own_value(around.base, other) not in values:
            return None, [f"{name} is left out: {other} is {own_value(around.base, other)}."]
    _refuse_unfit(name, table, around)
    dimension = (_choice if {"choices", "factors"} & set(table) else _range)(name, table, around)
    remarks: list[str] = []
    if name != "weights" and Dimension(name, "choice", when=when).holds({}, around.base):
        dimension, remarks = _holding(dimension, own_value(around.base, name), around)
    if dimension.kind == "choice" and len(dimension.choices) < 2:
        raise UsageError(
            f"{name} leaves no choice: {', '.join(map(shown, dimension.choices)) or 'nothing'}.",
            expected="two different values or more",
        )
    dimension = replace(dimension, when=when)
    _check(dimension, found, around)
    return dimension, remarks


def _conditions(
    name: str, when: Mapping[str, list[Any]], found: Mapping[str, Dimension]
) -> dict[str, tuple[Any, ...]]:
    """Conditions with values as their settings keep them."""
    settings = [key for key, _, _ in documented(Config())]
    conditions = {}
    for other, values in when.items():
        if other not in settings:
            raise UsageError(
                f"{name} depends on {shown(other)}. {nearest(other[:80], settings)}".rstrip(),
                expected="a condition on a setting",
            )
        one = found.get(other)
        if one is not None and one.free and not Dimension(name, "choice").free:
            raise UsageError(
                f"{name} depends on {other}, which is tried when the training is over.",
                expected="a condition on a setting of the training",
            )
        conditions[other] = tuple(_valid(other, value) for value in values)
        if not any(one is None or _takes(one, value) for value in conditions[other]):
            raise UsageError(
                f"{name} depends on {other} being one of {shown(values)}, which it never is.",
                expected="a value among those that are tried",
            )
    return conditions


def _takes(dimension: Dimension, value: Any) -> bool:
    """Whether a dimension is exactly this at times; a range of real numbers never is."""
    if dimension.kind == "int":
        return bool(cast(int, dimension.low) <= value <= cast(int, dimension.high))
    return value in dimension.choices


def _refuse_unfit(name: str, table: Mapping[str, Any], around: Around) -> None:
    """
    Raises:
        UsageError: these images, or the rest of the settings, leave nothing to search here.
    """
    data, training = around.config.data, around.config.training
    reason = ""
    if name == "guidance" and not around.classes:
        reason = "the images have no classes"
    elif name == "guidance" and not training.label_dropout:
        reason = "training.label_dropout is 0, and no model learns to do without labels"
    elif name == "training.batch" and training.micro_batch and "choices" not in table:
        reason = "training.micro_batch is set, and divides few numbers"
    elif name == "data.augment" and around.ours and (data.resolution or 0) < _AUGMENTED_FROM:
        reason = f"it is for images of {_AUGMENTED_FROM} pixels a side and more"
    if reason:
        raise UsageError(f"{name} cannot be searched: {reason}.", expected="a space without it")


def _choice(name: str, table: Mapping[str, Any], around: Around) -> Dimension:
    if "choices" in table:
        values = [_valid(name, value) for value in table["choices"]]
    else:
        values = [_times(name, factor, around) for factor in table["factors"]]
    return Dimension(name, "choice", choices=tuple(dict.fromkeys(values)))


def _range(name: str, table: Mapping[str, Any], around: Around) -> Dimension:
    """The range as the file has it."""
    kind = _kind(name)
    if kind == "choice":
        raise UsageError(f"{name} takes no range.", expected="choices = [...]")
    if "times" in table:
        low, high = table["times"]
        ends = sorted(_times(name, factor, around) for factor in table["times"])
    else:
        low, high = ends = [table["low"], table["high"]]
    if low >= high or ends[0] >= ends[1]:
        raise UsageError(
            f"The range of {name} is empty: from {low} to {high}.", expected="low below high"
        )
    if kind == "int" and any(end != int(end) for end in ends):
        raise UsageError(
            f"The range of {name} is {ends[0]} to {ends[1]}.", expected="whole numbers"
        )
    log = table.get("log", False)
    if log and ends[0] <= 0:
        raise UsageError(
            f"The range of {name} begins at {ends[0]}, and a logarithmic scale has no such place.",
            expected="low above 0, or log = false",
        )
    low, high = (int(end) if kind == "int" else float(end) for end in ends)
    _valid(name, low)
    _valid(name, high)
    return Dimension(name, kind, low, high, log, points=table.get("points", _DEFAULT_POINTS))


def _holding(dimension: Dimension, own: Any, around: Around) -> tuple[Dimension, list[str]]:
    """The dimension with the base's own value inside, and what was done for that."""
    name, low, high = dimension.name, dimension.low, dimension.high
    if dimension.kind == "choice":
        if own in dimension.choices:
            return dimension, []
        stay = f"{name} may also stay {'unset' if own is None else shown(own)}, as it is."
        return replace(dimension, choices=(own, *dimension.choices)), [] if around.ours else [stay]
    if not is_number(own):
        raise UsageError(
            f"{name} is {'unset' if own is None else shown(own)}, and no range holds that.",
            expected="choices, or a value for it",
            remedy=f"Set it for the whole study: --set {name}=...",
        )
    assert low is not None and high is not None
    if low <= own <= high:
        return dimension, []
    said = f"The range of {name}, {low:g} to {high:g}, is widened to hold {own:g}, as it is."
    if dimension.log and own <= 0:
        said = f"{said[:-1]}, on an even scale, since that is not above 0."
        dimension = replace(dimension, log=False)
    return replace(dimension, low=min(low, own), high=max(high, own)), [said]


def _times(name: str, factor: float, around: Around) -> Any:
    """A multiple of the base's own value, valid for the setting."""
    own = own_value(around.base, name)
    if not is_number(own) or not own or _kind(name) == "choice":
        raise UsageError(
            f"{name} is {'unset' if own is None else shown(own)}, and multiples of it say nothing.",
            expected="low and high, or choices",
        )
    if factor == 1:
        return own
    value: float = own * factor
    if _kind(name) == "int" and not abs(value) < _LARGEST:
        raise UsageError(f"{factor:g} times {name} = {own} cannot be used.", expected="less")
    if name == "model.channels":
        return _valid(name, _width_near(value, around.config))
    return _valid(name, max(round(value), 1) if _kind(name) == "int" else float(f"{value:.12g}"))


def _width_near(target: float, config: Config) -> int:
    """The width nearest to `target` channels of which such a network can be built."""
    model = config.model
    heads = model.channels_per_head
    unit = heads if model.architecture in _TRANSFORMERS else max(heads // 8, 4)
    first = max(round(target / unit), 1)
    widths = [unit * n for n in range(max(first - _TRIED, 1), first + _TRIED)]
    for width in sorted(widths, key=lambda w: abs(w - target)):
        wider = model.model_copy(update={"channels": width})
        try:
            _check_network(config.model_copy(update={"model": wider}))
        except UsageError:
            continue
        return width
    return model.channels


def _valid(name: str, value: Any) -> Any:
    """The value as its setting keeps it: a whole number stays one, a list becomes a tuple.

    Raises:
        UsageError: the setting refuses it.
    """
    expected = ""
    if name == "weights":
        if value == "raw" or (is_number(value) and 0 < value < _WIDEST):
            return value
        expected = f'"raw", or a relative width between 0 and {_WIDEST:.4f}'
    elif name == "guidance":
        if is_number(value) and 0 <= value <= _STRONGEST:
            return float(value)
        expected = f"a strength from 0 to {_STRONGEST:g}; 1 is none"
    else:
        section, _, leaf = name.rpartition(".")
        try:
            config = Config.model_validate({section: {leaf: value}} if section else {leaf: value})
            return frozen(next(v for key, v, _ in documented(config) if key == name))
        except ValidationError as error:
            expected = error.errors()[0]["msg"]
    raise UsageError(
        f"{name} = {shown(value)} of the space cannot be used.",
        expected=expected,
        remedy="`poise config` shows each setting with its meaning and its value.",
    )


def _check(dimension: Dimension, found: Mapping[str, Dimension], around: Around) -> None:
    """Both ends, or every choice, with the rest of the settings.

    Raises:
        UsageError: they contradict each other, or no such network can be built.
    """
    if dimension.name in SPECIAL:
        return
    conditions: dict[str, Sequence[Any]] = {}
    pending = [dimension]
    while pending:
        one = pending.pop()
        pending += [found[name] for name in one.when if name in found and name not in conditions]
        conditions |= one.when
    ends = dimension.choices or (dimension.low, dimension.high)
    own = own_value(around.base, dimension.name)
    for values in itertools.islice(itertools.product(*conditions.values()), _MOST_CHECKED):
        where = dict(zip(conditions, values, strict=True))
        for end in ends:
            if end != own:
                _check_together(dimension.name, end, where, around)


def _check_together(name: str, value: Any, where: Mapping[str, Any], around: Around) -> None:
    try:
        config = resolve(None, {**around.base, **where, name: value})
        if name.startswith("model."):
            _check_network(config)
    except UsageError as error:
        raise UsageError(
            f"{name} = {shown(value)} of the space cannot be used: {error.found}",
            expected=error.expected,
            remedy=error.remedy,
        ) from None


def _check_network(config: Config) -> None:
    from poise.models.dit import check_tokens
    from poise.models.skeleton import check_shapes

    model, side = config.model, config.data.resolution
    if side is None:
        return
    if model.architecture in _TRANSFORMERS:
        check_tokens(side, model.patch, model.channels, model.channels_per_head, model.depth)
        return
    check_shapes(
        side,
        model.channels,
        model.channel_mult,
        model.num_blocks,
        model.attn_resolutions,
        model.channels_per_head,
    )


def _kind(name: str) -> Kind:
    """What a setting takes, with choices for everything but numbers."""
    if name in SPECIAL:
        return "float"
    section, _, leaf = name.rpartition(".")
    kept = Config.model_fields[section].annotation
    annotation = cast(Any, kept).model_fields[leaf].annotation
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return "float" if float in parts else "int" if int in parts else "choice"
