"""The guard: readings and probes in, orders out. It decides; `learning` carries out.

A first sign is held for a few updates, so that the most specific explanation can come; then it is
an incident, with the action that the policy has for its cause. What an incident explains is not
reported again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from poise.stability.causes import CAUSES
from poise.stability.detectors.all import Detector, step_detectors
from poise.stability.detectors.rate import LearningRate
from poise.stability.facts import Facts
from poise.stability.incident import Incident, Sign
from poise.stability.policy import BESIDES, SYMPTOMS, Action, Limits, action_for
from poise.stability.reading import Reading

Diagnose = Callable[[Sign], Sign]  # looks at the state itself for a sign that asks for it


@dataclass(frozen=True)
class Order:
    """What is to be done now about one sign."""

    action: Action
    sign: Sign
    also: tuple[str, ...] = ()

    def incident(self, **cost: Any) -> Incident:
        """As it is written down once it was carried out, with what that cost."""
        return Incident(self.sign, self.action, cost, self.also)


@dataclass
class Record:
    """What the guard remembers over rollbacks."""

    acted: dict[str, int] = field(default_factory=dict)  # row of LADDERS -> how often it was used
    repairs: int = 0  # rollbacks and the like
    strikes: dict[int, int] = field(default_factory=dict)  # image -> bad updates it was part of


class Guard:
    """Reads one run."""

    def __init__(
        self,
        facts: Facts,
        probe_detectors: Sequence[Any] = (),
        *,
        policy: str = "repair",
        max_repairs: int = 8,
        limits: Limits = Limits(),
    ) -> None:
        self.facts, self.policy, self.max_repairs, self.limits = facts, policy, max_repairs, limits
        self.record = Record()
        self._steps: list[Detector] = step_detectors(facts)
        self._probes = list(probe_detectors)
        self._held: dict[str, tuple[int, Sign]] = {}  # cause -> update it was first seen at, sign
        self._told: dict[str, int] = {}  # what was reported -> at which update
        self._shadow_until = 0  # update up to which symptoms are explained already
        self._last_sign = -(10**9)
        self._updates = 0  # readings taken in since the start or the last rollback

    def expect_scale(self, scale: float) -> None:
        """The factor on the planned rate that is meant to be there."""
        for detector in self._steps:
            if isinstance(detector, LearningRate):
                detector.expected_scale = scale

    def note(self, reading: Reading, diagnose: Diagnose | None = None) -> list[Order]:
        """What is to be done after this update, most urgent first; usually nothing."""
        self._updates += 1
        for detector in self._steps:
            for sign in detector.look(reading):
                self._hold(sign)
        return self._settled(diagnose)

    def note_probe(self, probe: Any) -> list[Order]:
        """Likewise after a look inside the network."""
        for detector in self._probes:
            for sign in detector.look(probe):
                self._hold(sign)
        return self._settled(None)

    def note_sign(self, sign: Sign) -> list[Order]:
        """Likewise for a sign that somebody else saw: a grid of samples, the memory, a rank."""
        self._hold(sign)
        return self._settled(None)

    def quiet_for(self) -> int:
        """Updates since the last sign of anything."""
        return self._updates - self._last_sign

    def _hold(self, sign: Sign) -> None:
        if sign.severity != "info":
            self._last_sign = self._updates
        first, known = self._held.get(sign.cause, (self._updates, sign))
        stronger = known if known.severity == "critical" and sign.severity != "critical" else sign
        self._held[sign.cause] = first, replace(stronger, since=min(known.since, sign.since))

    def _settled(self, diagnose: Diagnose | None) -> list[Order]:
        """Orders for the signs that are sure by now; what they explain is dropped."""
        beside = [self._held.pop(cause)[1] for cause in BESIDES & self._held.keys()]
        orders = [order for s in beside for order in self._order(s, ())]
        held = list(self._held.values())
        exact = [s for _, s in held if _exact(s)]
        if exact:
            self._held.clear()
            also = tuple(sorted({s.cause for _, s in held} - {s.cause for s in exact}))
            return orders + [order for s in exact for order in self._order(s, also)]
        return orders + self._ripened(held, diagnose)

    def _ripened(self, held: list[tuple[int, Sign]], diagnose: Diagnose | None) -> list[Order]:
        """An order for the symptoms, if one of them was held for long enough."""
        ripe = [s for at, s in held if self._updates - at >= self.limits.settle]
        if not ripe:
            return []
        self._held.clear()
        if self._updates < self._shadow_until:
            return []
        chosen = max(ripe, key=_weight)
        also = tuple(sorted({s.cause for _, s in held} - {chosen.cause}))
        if diagnose is not None and chosen.evidence.get("examine"):
            chosen = diagnose(chosen)
        return self._order(chosen, also)

    def _order(self, sign: Sign, also: tuple[str, ...]) -> list[Order]:
        key = f"{sign.cause}:{sorted(map(str, sign.culprit.get('tensors', [])))}"
        seen = self._told.get(key)
        recent = seen is not None and self._updates - seen <= self.limits.again
        if recent and sign.cause not in _COUNTED:
            return []
        self._told[key] = self._updates
        if sign.severity == "info":
            return [Order("none", sign, also)]
        cause = sign.cause
        if sign.cause.startswith("non-finite") and sign.evidence.get("updates", 0) >= _LASTING:
            cause = "lasting-non-finite"
        if "setting" in sign.culprit:
            cause = "rate-far-off-plan" if sign.severity == "critical" else "rate-off-plan"
        before = self.record.acted.get(cause, 0)
        self.record.acted[cause] = before + 1
        action = action_for(cause, before, self.policy)
        blamed = sum(self.record.acted.get(cause, 0) for cause in _RATE_TO_BLAME)
        if blamed and sign.cause in SYMPTOMS and action in ("rollback", "stop"):
            action = "cut-rate"  # the rate was to blame before: what grows now does so for it
        if action not in ("none", "skip"):
            self.record.repairs += 1
            if self.record.repairs > self.max_repairs:
                action = "stop"
        shadow = {"none": self.limits.shadow, "skip": self.limits.settle + 1}.get(action, 0)
        shadow = 0 if cause in BESIDES else shadow
        self._shadow_until = max(self._shadow_until, self._updates + shadow)
        return [Order(action, sign, also)]

    def state(self) -> dict[str, Any]:
        """Everything as plain data, for a checkpoint."""
        return {
            "steps": [d.state() for d in self._steps],
            "probes": [d.state() for d in self._probes],
            "held": [[at, vars(s)] for at, s in self._held.values()],
            "told": dict(self._told),
            "last": [self._shadow_until, self._last_sign, self._updates],
            "record": self.record_state(),
        }

    def record_state(self) -> dict[str, Any]:
        """What a rollback does not undo, as plain data."""
        r = self.record
        return {"acted": r.acted, "repairs": r.repairs, "strikes": list(r.strikes.items())}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        for detector, one in zip(self._steps, state["steps"], strict=True):
            detector.restore(one)
        for detector, one in zip(self._probes, state["probes"], strict=True):
            detector.restore(one)
        self._held = {s["cause"]: (at, Sign(**s)) for at, s in state["held"]}
        self._told = dict(state["told"])
        self._shadow_until, self._last_sign, self._updates = state["last"]
        self.restore_record(state["record"])

    def restore_record(self, record: dict[str, Any]) -> None:
        """Take over what `record_state` gave, so that a rollback forgets nothing."""
        strikes = {int(image): int(n) for image, n in record["strikes"]}
        self.record = Record(dict(record["acted"]), int(record["repairs"]), strikes)


_RATE_TO_BLAME = ("lr-too-high", "divergence")
_LASTING = 3  # updates in a row
_COUNTED = frozenset(  # each bad update counts, since the next one may need a stronger remedy
    (
        "bad-batch",
        "bad-label",
        "non-finite-input",
        "out-of-range-data",
        "non-finite-gradient",
        "non-finite-activation",
    )
)


def _exact(sign: Sign) -> bool:
    """Whether it needs no second opinion: a cause, or a setting that is not what it should be."""
    if sign.evidence.get("inferred"):
        return False
    exact = "setting" in sign.culprit or sign.evidence.keys() & {"steady", "leap"}
    return sign.cause not in SYMPTOMS or bool(exact)


def _weight(sign: Sign) -> tuple[int, int]:
    severity = {"info": 0, "warning": 1, "critical": 2}[sign.severity]
    return severity, CAUSES[sign.cause].specificity
