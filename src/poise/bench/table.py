"""What `bench` found, as text for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any


def table(found: Mapping[str, Any]) -> str:
    """The result of `bench` as lines of at most 100 characters: medians, quartiles in brackets."""
    network, machine = found["network"], found["machine"]
    side = network["resolution"]
    fewer = network["batch"] != network["batch_of_run"]
    cut = f" (of the run: {network['batch_of_run']})" if fewer else ""
    lines = [
        f"{side}x{side}, {network['macs'] / 1e9:.3g} GMAC forward, "
        f"{network['parameters'] / 1e6:.3g} M parameters, batch {network['batch']}{cut}",
        f"{machine['device']}, threads: {machine['threads']}, {machine['precision']}, "
        f"torch {machine['torch']}; medians (quartiles), rounds: {found['rounds']}",
        "",
    ]
    lines += _columns(
        ["this machine", "GFLOP/s"],
        [[name, _giga(rate)] for name, rate in found["rates"].items()],
    )
    head = ["images/s", "GFLOP/s", "of matrix", "of conv.", "x plain fp32"]
    lines += _columns(["training step", *head], [_speed(n, r) for n, r in found["step"].items()])
    lines += _columns(
        ["stage of poise", "ms", "of step", "GFLOP/s", "of matrix", "of conv."],
        [_stage(name, row) for name, row in found["stages"].items()],
    )
    calls = found["sampling"]["poise"]["calls"]
    rows = [_speed(name, row) for name, row in found["sampling"].items()]
    lines += _columns([f"sampling, {calls} calls", *head], rows)
    one = found["sampling"]["poise"]
    lines += [
        f"sampling a batch with poise: {calls} network calls of {_milli(one['call_seconds'])} ms; "
        f"noise, solver and pictures {_milli(one['sampler_seconds'])} ms"
    ]
    if found["compile_seconds"] is not None:
        lines.append(f"compiling: {found['compile_seconds']:.0f} s")
    if found["memory_peak_bytes"] is not None:
        lines.append(f"memory of a step: {found['memory_peak_bytes'] / 2**30:.2f} GiB")
    return "\n".join([*lines, *(f"note: {note}" for note in found["notes"])])


def _speed(name: str, row: Mapping[str, Any]) -> list[str]:
    return [
        name,
        _span(row["images_per_second"]),
        _giga(row["flops_per_second"]),
        _percent(row["share_of_matrix"]),
        _percent(row.get("share_of_convolution")),
        f"{row['times_plain']['median']:.2f}",
    ]


def _stage(name: str, row: Mapping[str, Any]) -> list[str]:
    return [
        name,
        _span({key: 1000 * value for key, value in row["seconds"].items()}),
        _percent(row["share_of_step"]),
        _giga(row.get("flops_per_second")),
        _percent(row.get("share_of_matrix")),
        _percent(row.get("share_of_convolution")),
    ]


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the first column to the left, the others to the right, and an empty line."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    widths[0] = max(widths[0], 20)
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ] + [""]


def _span(values: Mapping[str, float]) -> str:
    return f"{_round(values['median'])} ({_round(values['low'])}-{_round(values['high'])})"


def _giga(values: Mapping[str, float] | None) -> str:
    return "" if values is None else _span({key: value / 1e9 for key, value in values.items()})


def _milli(values: Mapping[str, float]) -> str:
    return _round(1000 * values["median"])


def _percent(values: Mapping[str, float] | None) -> str:
    return "" if values is None else f"{values['median']:.0%}"


def _round(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
