"""All detectors that read probes."""

from typing import Any, Protocol

from poise.stability.detectors.probes_learning import (
    AverageHealth,
    ConditionIgnored,
    Memorisation,
)
from poise.stability.detectors.probes_network import (
    ActivationGrowth,
    AttentionCollapse,
    DeadUnits,
    Stagnation,
    Unrepeatable,
    WeightGrowth,
)
from poise.stability.facts import Facts
from poise.stability.incident import Sign
from poise.stability.probes import Probe


class ProbeDetector(Protocol):
    """Reads one probe after another; `Memorisation` reads each update as well, with `read`."""

    def look(self, probe: Probe) -> list[Sign]:
        """Signs of this probe."""

    def state(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""


def probe_detectors(facts: Facts) -> list[ProbeDetector]:
    """One of each, fresh."""
    return [
        Unrepeatable(facts),
        Stagnation(facts),
        WeightGrowth(facts),
        ActivationGrowth(facts),
        DeadUnits(facts),
        AttentionCollapse(facts),
        ConditionIgnored(facts),
        AverageHealth(facts),
        Memorisation(facts),
    ]
