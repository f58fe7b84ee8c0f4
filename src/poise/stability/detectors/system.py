"""What the machine does, not the mathematics."""

from collections import deque
from statistics import median
from typing import Any

from poise.stability.detectors.detector import Pace
from poise.stability.facts import Facts
from poise.stability.incident import Sign
from poise.stability.reading import Reading

_UPDATES = 20
_SHARE = 0.5
_LEAST_SECONDS = 2.0
_HUNG_SECONDS, _HUNG = 4.0, 20.0  # of one batch, and times the usual update


class DataStarvation:
    """Names an update that waits for images more than it computes (`data-starvation`)."""

    def __init__(self, facts: Facts) -> None:
        self._times: deque[tuple[float, float]] = deque(maxlen=_UPDATES)
        self._pace = Pace(500)

    def look(self, reading: Reading) -> list[Sign]:
        """Over the last updates: most of them waited, and all together noticeably."""
        self._times.append((reading.waited, reading.seconds))
        if len(self._times) < _UPDATES:
            return []
        hung = self._hung(reading)
        if hung:
            return hung
        waited = sum(w for w, _ in self._times)
        if waited < _LEAST_SECONDS:
            return []
        total = sum(s for _, s in self._times)
        # one long wait, as at the start of a session, is no starvation
        often = sum(w > _SHARE * s for w, s in self._times)
        if waited <= _SHARE * total or 2 * often < _UPDATES:
            return []
        if not self._pace.due("starved", reading.step):
            return []
        share = waited / total
        return [
            Sign(
                cause="data-starvation",
                severity="warning",
                images_seen=reading.images_seen,
                since=reading.images_seen - _UPDATES * reading.batch,
                sentence=f"{share:.0%} of the time goes into waiting for images: "
                f"{waited:.1f} of {total:.1f} s in the last {_UPDATES} updates.",
                evidence={"share": share, "waited_seconds": waited, "seconds": total},
            )
        ]

    def _hung(self, reading: Reading) -> list[Sign]:
        """One batch that came very late."""
        usual = median(s for _, s in self._times)
        late = reading.waited >= max(_HUNG_SECONDS, _HUNG * usual)
        if not late or not self._pace.due("hung", reading.step):
            return []
        return [
            Sign(
                cause="data-starvation",
                severity="warning",
                images_seen=reading.images_seen,
                since=reading.images_seen - reading.batch,
                sentence=f"A batch came {reading.waited:.1f} s late; updates take {usual:.2g} s.",
                evidence={"waited_seconds": reading.waited, "seconds": usual},
            )
        ]

    def state(self) -> dict[str, Any]:
        """As `Detector.state`."""
        return {"times": [list(pair) for pair in self._times], "pace": self._pace.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """As `Detector.restore`."""
        self._times.clear()
        self._times.extend((float(w), float(s)) for w, s in state["times"])
        self._pace.restore(state["pace"])
