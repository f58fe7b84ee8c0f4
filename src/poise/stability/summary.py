"""What the readings between two log lines come to, for metrics.jsonl and timing.jsonl."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from poise.stability.facts import Facts
from poise.stability.reading import Reading

_PLACES = ("input", "loss", "gradient", "error-spike", "gradient-spike")


def block_of(name: str) -> str:
    """The part of the network that a tensor belongs to: `enc.8x8_block0`, or its first name."""
    parts = name.removeprefix("network.").split(".")
    return ".".join(parts[:2]) if parts[0] in ("enc", "dec", "blocks") else parts[0]


@dataclass
class Summary:
    """Sums over an interval; they are part of a checkpoint, so that resuming changes no line."""

    facts: Facts
    sums: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [block_of(name) for name in self.facts.names]
        self._blocks = list(dict.fromkeys(names))
        self._member = np.array([self._blocks.index(name) for name in names], np.int64)
        self._times = [0.0, 0.0, 0.0]  # updates, seconds, seconds waited: of this session alone
        self._fresh()

    def _fresh(self) -> None:
        self.sums = {
            "updates": 0,
            "left_out": dict.fromkeys(_PLACES, 0),
            "one_colour": 0,
            "rate": 0.0,
            "log_norms": [0.0] * len(self._blocks),
            "norms": 0,
            "rms": [0.0, 0.0, 0],  # of gradient over second moment: sum of medians, highest, count
        }

    def add(self, reading: Reading) -> None:
        """Take in one update."""
        s = self.sums
        s["updates"] += 1
        for place in reading.reasons:
            s["left_out"][place] += 1
        s["one_colour"] += int(reading.inputs.flat.sum())
        s["rate"] = float(reading.used_lr)
        self._times = [
            a + b for a, b in zip(self._times, (1, reading.seconds, reading.waited), strict=True)
        ]
        if not reading.applied:
            return
        square = np.bincount(self._member, reading.grad_norms.astype(np.float64) ** 2)
        s["log_norms"] = (np.array(s["log_norms"]) + np.log(square + 1e-60) / 2).tolist()
        s["norms"] += 1
        with np.errstate(divide="ignore", invalid="ignore"):
            rms = np.sqrt(reading.grad_norms.astype(np.float64) ** 2 / reading.moments)
        rms = rms[np.isfinite(rms)]
        if len(rms):
            total, highest, count = s["rms"]
            s["rms"] = [total + float(np.median(rms)), max(highest, float(rms.max())), count + 1]

    def take(self) -> dict[str, Any]:
        """The part of a line of metrics.jsonl; a new interval begins."""
        s = self.sums
        self._fresh()
        n = max(s["norms"], 1)
        return {
            "used_lr": s["rate"],
            "left_out": {place: k for place, k in s["left_out"].items() if k},
            "one_colour": s["one_colour"],
            "block_grad_norms": {
                block: float(np.exp(total / n))
                for block, total in zip(self._blocks, s["log_norms"], strict=True)
            }
            if s["norms"]
            else {},
            "second_moment_rms": s["rms"][0] / max(s["rms"][2], 1),
            "second_moment_rms_highest": s["rms"][1],
        }

    def timing(self) -> dict[str, float]:
        """The part of a line of timing.jsonl: what an update took, and the share of waiting."""
        updates, seconds, waited = self._times
        self._times = [0.0, 0.0, 0.0]
        return {
            "update_s": seconds / max(updates, 1),
            "waited_share": waited / seconds if seconds > 0 else 0.0,
        }
