"""What `bench.measure` found, as text for a terminal."""

from collections.abc import Mapping
from typing import Any


def table(found: Mapping[str, Any]) -> str:
    """The result of `measure` as lines of up to 100 characters: medians, quartiles in brackets."""
    side, channels = found["resolution"], found["channels"]
    size = found["file_bytes"]
    kind = "arrays" if size is None else f"files of {size / 1000:.3g} kB"
    left = f", {found['left_out']} left out as unreadable" if found["left_out"] else ""
    lines = [
        f"{found['source']}"[:100],
        f"{found['images']} images, {kind}{left}; for training {side}x{side}, channels: {channels}",
        f"one thread; medians (quartiles), rounds: {found['rounds']}",
        "",
    ]
    head = ["", "images/s", "x Pillow", "x the raw library", "of copy"]
    cells = [head] + [_cells(name, row) for name, row in found["rows"].items()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line = (
            c.rjust(w) if i else c.ljust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(line).rstrip())
    rate = found["copy_bytes_per_second"]["median"] / 1e9
    return "\n".join([*lines, "", f"memory copy of this machine: {rate:.3g} GB/s"])


def _cells(name: str, row: Mapping[str, Any]) -> list[str]:
    rate = row["images_per_second"]
    share = row.get("share_of_copy")
    return [
        name,
        f"{_round(rate['median'])} ({_round(rate['low'])}-{_round(rate['high'])})",
        _ratio(row.get("times_decoder")),
        f"{_ratio(row['times_raw'])} x {row['raw']}" if "raw" in row else "",
        "" if share is None else f"{share['median']:.0%}",
    ]


def _ratio(values: Mapping[str, float] | None) -> str:
    return "" if values is None else f"{values['median']:,.2f}"


def _round(value: float) -> str:
    if value >= 1e5:
        return f"{value / 1e6:.3g} M"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
