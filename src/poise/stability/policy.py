"""What is done about each cause: one table, and the order in which remedies are tried."""

from dataclasses import dataclass
from typing import Literal

Action = Literal[
    "none",  # say it; nothing else would be right
    "skip",  # the update was left out before it changed anything; the second time its images too
    "screen",  # every batch is looked through for this kind of image, and those are left out
    "rollback",  # back to the newest checkpoint from before it began
    "cut-rate",  # back likewise, and on with half the learning rate, warmed up again
    "hold-rate",  # the planned learning rate is put back before each update
    "rewind-data",  # back likewise, with the data feed started anew
    "restore-ema",  # averages from the newest checkpoint before it, brought up to now
    "full-precision",  # the network computes in fp32 from now on, back likewise
    "halve-micro-batch",  # smaller pieces, the same update
    "stop",  # save what is good, say why, and end
]

_BACK_ONCE: tuple[Action, ...] = ("rollback", "none")  # it may lie in the state, or in the plan
_BACK_TWICE: tuple[Action, ...] = ("rollback", "rollback", "stop")

LADDERS: dict[str, tuple[Action, ...]] = {  # by how often the cause came before
    "bad-batch": ("skip",),
    "bad-label": ("skip", "skip", "screen"),
    "non-finite-input": ("skip", "skip", "screen"),
    "out-of-range-data": ("skip", "skip", "screen"),
    "constant-data": ("screen", "rollback", "stop"),
    "repeated-batches": ("rewind-data", "rewind-data", "stop"),
    "memorisation": ("rewind-data", "stop"),
    "non-finite-gradient": ("skip",),
    "non-finite-activation": ("skip",),
    "lasting-non-finite": _BACK_TWICE,
    "precision-overflow": ("full-precision", "rollback", "stop"),
    "weights-damaged": ("rollback",),
    "second-moment-lag": ("rollback",),
    "lr-too-high": ("cut-rate",),
    "rate-off-plan": ("hold-rate", "hold-rate", "rollback"),  # where the rate is not as planned
    "rate-far-off-plan": ("rollback", "rollback", "stop"),
    "ascent": _BACK_TWICE,
    "divergence": ("cut-rate",),
    "oscillation": ("cut-rate",),
    "weight-growth": _BACK_TWICE,
    "activation-growth": _BACK_TWICE,
    "vanishing-gradients": _BACK_TWICE,
    "exploding-gradients": ("rollback", "cut-rate", "stop"),
    "stale-layer": ("rollback", "stop"),
    "ema-frozen": ("restore-ema", "rollback", "stop"),
    "ema-damaged": ("restore-ema", "rollback", "stop"),
    "condition-ignored": _BACK_ONCE,
    "broken-band": _BACK_ONCE,
    "dead-units": _BACK_ONCE,
    "diversity-collapse": _BACK_ONCE,
    "ema-too-long": _BACK_ONCE,
    "unrepeatable-result": ("rollback", "rollback", "stop"),
    "precision-stagnation": _BACK_ONCE,
    "rank-divergence": ("rollback", "stop"),
}
REWINDS: frozenset[Action] = frozenset(("rollback", "cut-rate", "rewind-data", "full-precision"))

# What one of these explains is not reported a second time as one of the symptoms.
SYMPTOMS = frozenset(
    (
        "bad-batch",
        "divergence",
        "lr-too-high",
        "exploding-gradients",
        "vanishing-gradients",
        "broken-band",
        "oscillation",
        "non-finite-activation",
        "activation-growth",
        "plateau",
        "slow-convergence",
        "ema-too-long",
        "dead-units",
        "condition-ignored",
        "memorisation",
        "samples-worse",
        "weight-growth",
        "diversity-collapse",
    )
)

# Says nothing about what is learned, so that it explains no symptom.
BESIDES = frozenset(("data-starvation",))


@dataclass(frozen=True)
class Limits:
    """How patient the guard is, in updates."""

    settle: int = 2  # between a first sign and the verdict, for a more specific sign to come
    again: int = 60  # within which the same cause and culprit is the same incident
    shadow: int = 40  # after an incident in which its symptoms are not reported


def goes_back(cause: str, action: Action) -> bool:
    """Whether carrying out an action returns to a checkpoint."""
    # images of one colour were trained on before they were known; other bad ones never are
    return action in REWINDS or (cause == "constant-data" and action == "screen")


def action_for(cause: str, before: int, policy: str) -> Action:
    """The remedy for a cause that was met `before` times already.

    Args:
        cause: a name of `causes.CAUSES`.
        before: how often it was acted upon in this run.
        policy: `stability.policy`.
    """
    ladder = LADDERS.get(cause, ("none",))
    if policy != "repair":  # bad numbers are left out even so
        return "skip" if ladder[0] == "skip" else "none"
    return ladder[min(before, len(ladder) - 1)]
