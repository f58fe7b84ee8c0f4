"""What probes show of the network itself: magnitudes, dead units, attention, repeatability."""

import math
from typing import Any

from poise.stability.detectors.probes_history import History, deviation, middle, trend
from poise.stability.facts import Facts
from poise.stability.incident import Sign
from poise.stability.probes import Probe

_COARSE = 0.5  # share of weights
_LARGEST = 65504.0  # of fp16
_WINDOW = 8  # probes of a baseline or a slope
_UNIT = 3e-4  # forced rows have a root mean square of 1 - 1e-4, exactly


class ActivationGrowth:
    """A block's magnitude that leaves its own level, or climbs steadily."""

    def __init__(self, facts: Facts) -> None:
        self._total = facts.total_images
        self._history, self._seen = History(), History()
        self._high: dict[str, int] = {}  # probes in a row above the level

    def look(self, probe: Probe) -> list[Sign]:
        """Signs of this probe."""
        grown: dict[str, float] = {}
        faded: dict[str, float] = {}
        climbing: dict[str, float] = {}
        self._seen.add("", probe.images_seen)
        for name, rms in probe.blocks.items():
            if not math.isfinite(rms):
                continue  # the examination of non-finite values names it
            now, earlier = math.log(max(rms, 1e-30)), self._history[name][-_WINDOW:]
            self._history.add(name, now)
            if len(earlier) < 3:
                continue
            rise = now - middle(earlier)
            noise = max(deviation(earlier), 0.06)
            level = math.log(1.8) if len(earlier) >= 5 else math.log(4)
            high = rise > max(level, 8 * noise)
            self._high[name] = self._high.get(name, 0) + 1 if high else 0
            if self._high[name] >= 2 or (high and rise > math.log(4)):
                grown[name] = math.exp(rise)
            elif -rise > max(math.log(30), 8 * noise):
                faded[name] = math.exp(rise)
            elif self._climbs(name):
                climbing[name] = math.exp(now - self._history[name][-_WINDOW])
        return self._signs(probe, grown, faded, climbing)

    def _climbs(self, name: str) -> bool:
        """Four-fold over the window, steadily, and not for being new (the first window)."""
        values = self._history[name][-_WINDOW:]
        if len(self._history[name]) < _WINDOW + 2:
            return False
        slope, t = trend(values)
        return slope * (_WINDOW - 1) > math.log(4) and t > 6

    def _signs(
        self,
        probe: Probe,
        grown: dict[str, float],
        faded: dict[str, float],
        climbing: dict[str, float],
    ) -> list[Sign]:
        signs = []
        since = _previous(self._seen, probe)
        if grown or climbing:
            found = grown or climbing
            name = max(found, key=lambda n: found[n])
            how = "times its usual level" if grown else f"times over {_WINDOW} probes"
            evidence = {"factor": found[name], "rms": probe.blocks[name]}
            evidence |= self._overflow(name, probe)
            signs.append(
                Sign(
                    "activation-growth",
                    "critical" if grown and found[name] > 4 else "warning",
                    probe.images_seen,
                    since,
                    f"The activations of {name} have grown to {found[name]:.2g} {how} "
                    f"(root mean square {probe.blocks[name]:.3g}; {len(found)} blocks affected).",
                    evidence,
                    {"layers": sorted(found, key=lambda n: -found[n])},
                )
            )
        if faded:
            name = next(iter(faded))  # the first in the network's order
            signs.append(
                Sign(
                    "vanishing-gradients",
                    "warning",
                    probe.images_seen,
                    since,
                    f"The activations of {name} have shrunk to {faded[name]:.2g} of their usual "
                    "level: hardly anything passes it, forward or backward.",
                    {"factor": faded[name], "rms": probe.blocks[name]},
                    {"layers": list(faded)},
                )
            )
        return signs

    def _overflow(self, name: str, probe: Probe) -> dict[str, Any]:
        """At which number of images fp16 overflows, if the window's slope goes on."""
        values, seen = self._history[name][-_WINDOW:], self._seen[""][-_WINDOW:]
        if len(values) < 3 or len(seen) != len(values):
            return {}
        slope = trend(values)[0] * (len(seen) - 1) / max(seen[-1] - seen[0], 1)
        if slope <= 0:
            return {}
        left = (math.log(_LARGEST) - values[-1]) / slope
        return {"slope_per_1000_images": 1000 * slope, "fp16_overflow_at": probe.images_seen + left}

    def state(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {
            "history": self._history.state(),
            "seen": self._seen.state(),
            "high": dict(self._high),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self._history.restore(state["history"])
        self._seen.restore(state["seen"])
        self._high = {name: int(n) for name, n in state["high"].items()}


class WeightGrowth:
    """Forced weights that are not at unit magnitude; free weights that grow fast."""

    def __init__(self, facts: Facts) -> None:
        self._forced = {n for n, f in zip(facts.names, facts.forced, strict=True) if f}
        self._history, self._seen = History(), History()
        self._scale: float | None = None  # middle magnitude of the weights at the first probe

    def look(self, probe: Probe) -> list[Sign]:
        """Signs of this probe."""
        self._seen.add("", probe.images_seen)
        off = {name: rms for name, rms in probe.rows.items() if rms > 1 + _UNIT}
        grown = self._grown(probe)
        if not off and not grown:
            return []
        since = _previous(self._seen, probe)
        if off:
            name = max(off, key=lambda n: off[n])
            text = (
                f"The rows of {name} have a magnitude of up to {off[name]:.4f} and are meant to be "
                f"kept at 1: the forced normalisation of {len(off)} weights is not at work."
            )
            evidence = {"row_rms": off[name], "weights": len(off)}
        else:
            name = max(grown, key=lambda n: grown[n])
            text = (
                f"{name} has grown {grown[name]:.2g}-fold within {_WINDOW} probes, steadily, to a "
                f"root mean square of {probe.weights[name]:.3g}."
            )
            evidence = {"factor": grown[name], "rms": probe.weights[name]}
            evidence |= self._overflow(name, probe)
        severity = "critical" if off else "warning"
        culprit = {"tensors": sorted(off or grown, key=lambda n: -(off or grown)[n])}
        return [
            Sign("weight-growth", severity, probe.images_seen, since, text, evidence, culprit)  # type: ignore[arg-type]
        ]

    def _grown(self, probe: Probe) -> dict[str, float]:
        """Free weights that grew three-fold over the window, steadily, and are large by now."""
        sizes = {n: w for n, w in probe.weights.items() if n.endswith("weight") and w > 0}
        if self._scale is None and sizes:
            self._scale = middle(sizes.values())
        grown = {}
        for name, rms in sizes.items():
            if name in self._forced or not math.isfinite(rms):
                continue
            values = self._history[name]
            self._history.add(name, math.log(rms))
            values = self._history[name]
            window = values[-_WINDOW:]
            if len(values) < _WINDOW + 2 or rms < 2 * max(self._scale or 0, math.exp(values[0])):
                continue
            slope, t = trend(window)
            if slope * (_WINDOW - 1) > math.log(3) and t > 8:
                grown[name] = math.exp(window[-1] - window[0])
        return grown

    def _overflow(self, name: str, probe: Probe) -> dict[str, float]:
        values, seen = self._history[name][-_WINDOW:], self._seen[""][-_WINDOW:]
        slope = trend(values)[0] * (len(seen) - 1) / max(seen[-1] - seen[0], 1)
        left = (math.log(_LARGEST) - values[-1]) / slope
        return {"slope_per_1000_images": 1000 * slope, "fp16_overflow_at": probe.images_seen + left}

    def state(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {
            "history": self._history.state(),
            "seen": self._seen.state(),
            "scale": self._scale,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self._history.restore(state["history"])
        self._seen.restore(state["seen"])
        self._scale = state["scale"]


class DeadUnits:
    """Layers many of whose units give the same for every image and position.

    A layer that starts at zero is constant altogether and healthy; one that is constant in part, or
    was alive before, is not.
    """

    _RISE = 0.1  # behind an activation function that kills by design: three times as much

    def __init__(self, facts: Facts) -> None:
        self._lowest: dict[str, float] = {}  # share of each layer
        self._told: dict[str, float] = {}
        self._last = 0

    def look(self, probe: Probe) -> list[Sign]:
        """Signs of this probe."""
        dead: dict[str, float] = {}
        for name, share in probe.dead.items():
            rise = self._RISE * (3 if name.endswith("(input)") else 1)
            usual = self._lowest.get(name, 0.0 if share < 1 else 1.0)
            self._lowest[name] = min(usual, share)
            if share - usual >= rise and share > self._told.get(name, 0.0) + 0.05:
                dead[name] = share
        self._told |= dead
        since, self._last = self._last, probe.images_seen
        if not dead:
            return []
        name = max(dead, key=lambda n: dead[n])
        others = f" and {len(dead) - 1} more layers" if len(dead) > 1 else ""
        return [
            Sign(
                "dead-units",
                "warning",
                probe.images_seen,
                since,
                f"{dead[name]:.0%} of the units of {name}{others} are dead: constant for every "
                "image, position and noise level.",
                {"share": dead[name], "layers": len(dead)},
                {"layers": sorted(dead, key=lambda n: -dead[n])},
            )
        ]

    def state(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {"lowest": dict(self._lowest), "told": dict(self._told), "last": self._last}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self._lowest, self._told = dict(state["lowest"]), dict(state["told"])
        self._last = int(state["last"])


class AttentionCollapse:
    """Attention logits so large that each softmax picks one place, and rising."""

    _SATURATED = 50.0  # e^-50 is nothing beside 1

    def __init__(self, facts: Facts) -> None:
        self._history, self._seen = History(), History()

    def look(self, probe: Probe) -> list[Sign]:
        """Signs of this probe."""
        self._seen.add("", probe.images_seen)
        found = {}
        for name, logit in probe.attention.items():
            earlier = self._history[name][-_WINDOW:]
            self._history.add(name, logit)
            recent = self._history[name][-3:]
            if len(earlier) < 3 or not math.isfinite(logit):
                continue
            if min(recent) > self._SATURATED and logit > 4 * min(self._history[name]):
                found[name] = logit
        if not found:
            return []
        name = max(found, key=lambda n: found[n])
        return [
            Sign(
                "attention-collapse",
                "warning",
                probe.images_seen,
                _previous(self._seen, probe),
                f"The largest attention logit of {name} is {found[name]:.0f} and was "
                f"{min(self._history[name]):.1f}: its attention picks single places.",
                {"logit": found[name], "lowest": min(self._history[name])},
                {"layers": sorted(found, key=lambda n: -found[n])},
            )
        ]

    def state(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {"history": self._history.state(), "seen": self._seen.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self._history.restore(state["history"])
        self._seen.restore(state["seen"])


class Stagnation:
    """Names weights that are stored with so few bits that small updates are rounded away."""

    def __init__(self, facts: Facts) -> None:
        self._told = False

    def look(self, probe: Probe) -> list[Sign]:
        """One sign, once, when most weights end in zeros."""
        coarse = probe.coarse > _COARSE
        told, self._told = self._told, coarse
        if not coarse or told:
            return []
        return [
            Sign(
                "precision-stagnation",
                "warning",
                probe.images_seen,
                probe.images_seen,
                f"{probe.coarse:.0%} of the weights are stored with few bits: updates smaller than "
                "their last one are rounded away.",
                {"share": probe.coarse},
            )
        ]

    def state(self) -> dict[str, Any]:
        """As `ProbeDetector.state`."""
        return {"told": self._told}

    def restore(self, state: dict[str, Any]) -> None:
        """As `ProbeDetector.restore`."""
        self._told = bool(state["told"])


class Unrepeatable:
    """The same question, asked twice, got two answers."""

    def __init__(self, facts: Facts) -> None:
        self._last = 0

    def look(self, probe: Probe) -> list[Sign]:
        """Signs of this probe."""
        since, self._last = self._last, probe.images_seen
        if probe.repeat <= (0.0 if probe.exact else 1e-3):
            return []
        return [
            Sign(
                "unrepeatable-result",
                "critical",
                probe.images_seen,
                since,
                "Two forward passes over the same images differ by up to "
                f"{probe.repeat:.2g} of the output's size; they must be equal.",
                {"difference": probe.repeat},
            )
        ]

    def state(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {"last": self._last}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self._last = int(state["last"])


def _previous(seen: History, probe: Probe) -> int:
    """Images seen at the probe before this one: from then on it may have begun."""
    values = [v for v in seen[""] if v < probe.images_seen]
    return int(values[-1]) if values else 0
