"""The averages of the weights against the weights they follow."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.stability.detectors.detector import Floats, Pace, bits, floats, floats_of, listed, named
from poise.stability.facts import Facts
from poise.stability.incident import Sign
from poise.stability.reading import Reading
from poise.training.ema import power_beta, profile_std

_LOOKS = 3  # without any change of half of what should have changed
_LONG = 6  # of a single tensor that should have changed visibly
_SLOW = 0.35  # of the pace that the width asks for
_FEW = 4  # tensors that show it
_VISIBLE = 1e-5  # relative; a hundred times what float32 resolves


class Averages:
    """Names averages that stand still (`ema-frozen`) or jump (`ema-damaged`).

    Between two looks an average keeps the share K = product of `power_beta` and takes the rest
    from the weights, so its sum (or norm) stays within (1 - K) max|w| of K times the old one.
    """

    def __init__(self, facts: Facts) -> None:
        self._names, self._profiles = facts.names, facts.profiles
        self._stds = [profile_std(name) for name in facts.profiles]
        P, T = len(facts.profiles), len(facts.names)
        self._last = np.zeros((P, T), np.uint32)
        self._weights = np.zeros(T, np.uint32)  # at the last look
        self._changed = np.zeros(T, bool)  # since then
        self._widest: Floats = np.zeros(T)  # |w| then and now, at most
        self._kept: Floats = np.ones(P)
        self._slow = np.zeros(P, np.int64)  # looks in a row that followed too slowly
        self._quiet = np.zeros((P, T), np.int64)  # looks in a row without the change that was due
        self._seen = self._end = -1  # images seen at the last look, by the last reading
        self._pace = Pace()

    def look(self, reading: Reading) -> list[Sign]:
        """Compare the averages, where this reading has them, with the last ones."""
        if not self._profiles or not len(reading.after):
            return []
        if reading.images_seen - reading.batch != self._end:
            self._seen = -1  # a gap: nothing to compare with
            self._quiet[:] = 0
            self._slow[:] = 0
        found: list[Sign] = []
        if reading.ema is not None:
            now, weights = bits(reading.ema), bits(reading.before)
            self._changed = weights != self._weights
            self._widest = np.maximum(np.abs(floats_of(weights)), np.abs(floats_of(self._weights)))
            found = self._judge(reading, now)
            self._last, self._weights = now, weights
            self._seen = reading.images_seen - reading.batch
            self._kept = np.ones_like(self._kept)
        for p, std in enumerate(self._stds):
            keep = 0.0 if std is None else power_beta(std, reading.images_seen, reading.batch)
            self._kept[p] *= keep
        self._end = reading.images_seen
        return found

    def _judge(self, reading: Reading, now: NDArray[np.uint32]) -> list[Sign]:
        new = floats_of(now)
        broken = ~np.isfinite(new)
        if broken.any():
            return self._say(reading, "ema-damaged", broken, "are not finite")
        if self._seen < 0:
            return []
        old = floats_of(self._last)
        share = 1 - self._kept[:, None]
        reach = share * self._widest
        # a sum may hide large weights, and weights move between two looks: twice as far is far
        slack = np.abs(old) + self._widest + 0.2 * float(np.median(self._widest)) + 1e-6
        with np.errstate(invalid="ignore"):
            far: NDArray[np.bool_] = np.abs(new - self._kept[:, None] * old) > reach + slack
        if far.any():
            return self._say(reading, "ema-damaged", far, "jumped further than the weights allow")
        return self._lag(reading, new, old, share) or self._stillness(
            reading, now == self._last, share, old
        )

    def _lag(self, reading: Reading, new: Floats, old: Floats, share: Floats) -> list[Sign]:
        """Averages that move towards the weights, but far slower than their width says."""
        due = np.asarray(reading.before, np.float64) - old
        size = np.abs(old) + self._widest + 1e-12
        seen = (share * np.abs(due) > _VISIBLE * size) & self._changed
        with np.errstate(invalid="ignore", divide="ignore"):
            a, b = np.where(seen, due / size, 0.0), np.where(seen, (new - old) / size, 0.0)
            pace = (a * b).sum(axis=1) / (a * a).sum(axis=1) / share[:, 0]
        slow = (pace < _SLOW) & (pace > 0) & (seen.sum(axis=1) >= _FEW)
        self._slow = np.where(slow, self._slow + 1, 0)
        if not (self._slow >= _LONG).all():
            return []
        names = ", ".join(self._profiles)
        if not self._pace.due("lag", reading.step):
            return []
        return [
            Sign(
                cause="ema-too-long",
                severity="warning",
                images_seen=reading.images_seen,
                since=max(self._seen, 0),
                sentence=f"The averages {names} follow the weights at {pace.max():.0%} of the pace "
                "that their width asks for: they look back too far.",
                evidence={"pace": float(pace.max()), "looks": int(self._slow.min())},
                culprit={"profiles": list(self._profiles), "averages": list(self._profiles)},
            )
        ]

    def _stillness(
        self, reading: Reading, same: NDArray[np.bool_], share: Floats, old: Floats
    ) -> list[Sign]:
        still = same & self._changed
        if not still.any():
            self._quiet *= ~self._changed
            return []
        weights = np.abs(np.asarray(reading.before, np.float64))
        due = share * np.abs(weights - np.abs(old)) > _VISIBLE * np.abs(old)
        self._quiet = np.where(still, self._quiet + 1, np.where(self._changed, 0, self._quiet))
        movers = self._changed.sum()
        frozen = (self._quiet >= _LOOKS) & self._changed
        whole = (frozen.sum(axis=1) >= max(1, 0.5 * movers))[:, None]
        visible = (share * old.shape[1] > 0) & due & (self._quiet >= _LONG) & self._changed
        stuck = (frozen & whole & (share > 1e-7)) | visible
        if not stuck.any():
            return []
        looks = int(self._quiet[stuck].min())
        return self._say(reading, "ema-frozen", stuck, f"have not moved in {looks} looks")

    def _say(self, reading: Reading, cause: str, where: NDArray[np.bool_], what: str) -> list[Sign]:
        profiles = [self._profiles[p] for p in np.flatnonzero(where.any(axis=1)).tolist()]
        if not self._pace.due(f"{cause} {' '.join(profiles)}", reading.step):
            return []
        culprit = named(self._names, np.asarray(where.any(axis=0))) | {"profiles": profiles}
        return [
            Sign(
                cause=cause,
                severity="critical" if cause == "ema-damaged" else "warning",
                images_seen=reading.images_seen,
                since=max(self._seen, 0),
                sentence=f"{culprit['count']} averaged tensors of {', '.join(profiles)} {what}; "
                "the weights themselves are not touched by that.",
                evidence={"tensors": culprit["count"], "profiles": len(profiles)},
                culprit=culprit,
            )
        ]

    def state(self) -> dict[str, Any]:
        """As `Detector.state`."""
        return {
            "last": self._last.tolist(),
            "weights": self._weights.tolist(),
            "kept": listed(self._kept),
            "quiet": self._quiet.tolist(),
            "slow": self._slow.tolist(),
            "seen": self._seen,
            "end": self._end,
            "pace": self._pace.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As `Detector.restore`."""
        self._last = np.array(state["last"], np.uint32)
        self._weights = np.array(state["weights"], np.uint32)
        self._kept = floats(state["kept"])
        self._quiet = np.array(state["quiet"], np.int64)
        self._slow = np.array(state["slow"], np.int64)
        self._seen, self._end = int(state["seen"]), int(state["end"])
        self._pace.restore(state["pace"])
