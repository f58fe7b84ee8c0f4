"""The learning rate that was used against the one that was planned: an exact invariant."""

import math
from typing import Any

import numpy as np

from poise.stability.detectors.detector import Pace
from poise.stability.facts import Facts
from poise.stability.incident import Sign
from poise.stability.reading import Reading

_EQUAL = 1e-4  # of the logarithm: far above rounding, far below what matters
_LEAP = 3.0  # times the planned rate of the update before
_CERTAIN = math.log(4.0)  # a jump that needs no second look
_JUMP = math.log(1.3)
_SMALL = math.log(1.05)
_UPDATES = 8  # a drift is seen over so many
_LIMIT = math.log(10.0)


class LearningRate:
    """Names a jump of the used rate (`lr-too-high`, `slow-convergence`) and a steady `lr-drift`.

    `expected_scale` is the factor on the schedule that the guard itself has set; whoever sets
    another one without telling is found as well.
    """

    def __init__(self, facts: Facts) -> None:
        self.expected_scale = 1.0
        self._logs: list[float] = []  # ln(used / planned) of the last updates that were off
        self._warmup = facts.warmup_images
        self._planned = 0.0  # by the schedule, at the last update
        self._since = 0
        self._off = 0  # updates in a row that were off
        self._pace = Pace()

    def look(self, reading: Reading) -> list[Sign]:
        """Compare one update with its plan."""
        plan = reading.schedule_lr * self.expected_scale
        before, self._planned = self._planned, plan
        if before > 0 and plan >= _LEAP * before and reading.images_seen > self._warmup:
            return [self._leap(reading, plan, before)]
        if not (plan > 0 and reading.used_lr > 0):
            return []  # a schedule that ends at 0
        off = math.log(reading.used_lr / plan)
        if abs(off) <= _EQUAL:
            self._logs, self._off = [], 0
            return []
        if not self._off:
            self._since = reading.images_seen - reading.batch
        self._off += 1
        self._logs = [*self._logs[-_UPDATES:], off]
        kind = self._kind()
        if kind == "drift":
            return self._drift(reading, off)
        return self._jump(reading, off) if kind == "jump" else []

    def _leap(self, reading: Reading, plan: float, before: float) -> Sign:
        """No schedule jumps up between two updates; somebody changed it."""
        ratio = plan / before
        return Sign(
            cause="lr-too-high",
            severity="critical",
            images_seen=reading.images_seen,
            since=reading.images_seen - reading.batch,
            sentence=f"The planned rate jumped to {ratio:.3g} times what it was an update before: "
            f"{plan:.3g} after {before:.3g}.",
            evidence={"leap": ratio, "planned": plan, "before": before},
        )

    def _kind(self) -> str:
        """What the last differences are; "" while it cannot be told yet."""
        logs, n = self._logs, self._off
        if n == 1:
            return "jump" if abs(logs[0]) >= _CERTAIN else ""
        change = logs[-1] - logs[-2]
        if n == 2 and abs(logs[0]) >= _JUMP and abs(change) < 0.3 * abs(logs[0]):
            return "jump"
        if n >= _UPDATES:
            steps = np.diff(logs)
            ahead = steps * np.sign(logs[-1])
            if (ahead > 0).sum() >= len(steps) - 1 and ahead.mean() > 1e-6:
                return "drift"
            if abs(logs[-1]) >= _SMALL:
                return "jump"
        return ""

    def _jump(self, reading: Reading, off: float) -> list[Sign]:
        cause = "lr-too-high" if off > 0 else "slow-convergence"
        if not self._pace.due(cause, reading.step):
            return []
        ratio = math.exp(off)
        return [
            Sign(
                cause=cause,
                severity="critical" if ratio >= 3 else "warning",
                images_seen=reading.images_seen,
                since=self._since,
                sentence=f"The optimiser used {ratio:.3g} times the planned rate: "
                f"{reading.used_lr:.3g} and not {reading.used_lr / ratio:.3g}.",
                evidence=self._numbers(reading, ratio),
                culprit={"setting": "learning rate"},
            )
        ]

    def _drift(self, reading: Reading, off: float) -> list[Sign]:
        grown = "far" if abs(off) >= math.log(3.0) else "near"
        if not self._pace.due(f"lr-drift {grown}", reading.step):
            return []
        rate = float(np.diff(self._logs).mean())
        left = max(0.0, (_LIMIT - abs(off)) / abs(rate))
        ratio, percent = math.exp(off), math.expm1(rate) * 100
        tenth = "10 times" if off > 0 else "a tenth of"
        return [
            Sign(
                cause="lr-drift",
                severity="critical" if grown == "far" and off > 0 else "warning",
                images_seen=reading.images_seen,
                since=self._since,
                sentence=f"The used rate drifts from its plan by {percent:+.3g}% an update and is "
                f"{ratio:.3g} times it; at update {reading.step + math.ceil(left)} it will be "
                f"{tenth} the plan.",
                evidence=self._numbers(reading, ratio)
                | {
                    "rate_per_update": math.expm1(rate),
                    "projected_update": reading.step + math.ceil(left),
                },
                culprit={"setting": "learning rate"},
            )
        ]

    def _numbers(self, reading: Reading, ratio: float) -> dict[str, Any]:
        return {
            "ratio": ratio,
            "used_lr": reading.used_lr,
            "schedule_lr": reading.schedule_lr,
            "expected_scale": self.expected_scale,
            "updates": self._off,
        }

    def state(self) -> dict[str, Any]:
        """As `Detector.state`."""
        return {
            "expected_scale": self.expected_scale,
            "planned": self._planned,
            "logs": list(self._logs),
            "since": self._since,
            "off": self._off,
            "pace": self._pace.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As `Detector.restore`."""
        self.expected_scale = float(state["expected_scale"])
        self._planned = float(state["planned"])
        self._logs = [float(x) for x in state["logs"]]
        self._since, self._off = int(state["since"]), int(state["off"])
        self._pace.restore(state["pace"])
