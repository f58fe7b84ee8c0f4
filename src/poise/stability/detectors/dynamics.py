"""The detectors that compare error and gradients with their own past, on one set of baselines."""

from typing import Any, Protocol

from poise.stability.detectors.course import Course, Point
from poise.stability.detectors.gradients import TensorGradients
from poise.stability.detectors.rising import OneBand, Rising
from poise.stability.detectors.slow import Oscillation, Progress
from poise.stability.detectors.spikes import BadBatch
from poise.stability.facts import Facts
from poise.stability.incident import Sign
from poise.stability.reading import Reading


class Part(Protocol):
    """A detector that sees where a reading lies in the course as well."""

    def see(self, reading: Reading, point: Point) -> list[Sign]:
        """What this update shows."""

    def state(self) -> dict[str, Any]:
        """As `Detector.state`."""

    def restore(self, state: dict[str, Any]) -> None:
        """As `Detector.restore`."""


class Dynamics:
    """Measures each reading once and shows it to every part."""

    def __init__(self, facts: Facts) -> None:
        self._course = Course(facts)
        self._parts: dict[str, Part] = {
            "bad_batch": BadBatch(facts),
            "rising": Rising(facts, self._course),
            "one_band": OneBand(facts, self._course),
            "gradients": TensorGradients(facts),
            "oscillation": Oscillation(facts),
            "progress": Progress(facts),
        }

    def look(self, reading: Reading) -> list[Sign]:
        """The signs of all parts."""
        point = self._course.take(reading)
        return [sign for part in self._parts.values() for sign in part.see(reading, point)]

    def state(self) -> dict[str, Any]:
        """As `Detector.state`."""
        parts = {name: part.state() for name, part in self._parts.items()}
        return {"course": self._course.state()} | parts

    def restore(self, state: dict[str, Any]) -> None:
        """As `Detector.restore`."""
        self._course.restore(state["course"])
        for name, part in self._parts.items():
            part.restore(state[name])
