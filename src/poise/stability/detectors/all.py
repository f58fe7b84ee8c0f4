"""All detectors that read one `Reading` per update, in the order in which they explain."""

from poise.stability.detectors.averages import Averages
from poise.stability.detectors.detector import Detector
from poise.stability.detectors.draws import ConstantImages, Repeats
from poise.stability.detectors.dynamics import Dynamics
from poise.stability.detectors.growth import SteadyGrowth
from poise.stability.detectors.inputs import InputFaults, ValueRange
from poise.stability.detectors.moments import SecondMoment
from poise.stability.detectors.nonfinite import NonFinite
from poise.stability.detectors.rate import LearningRate
from poise.stability.detectors.system import DataStarvation
from poise.stability.detectors.weights import Stale, Untouched
from poise.stability.facts import Facts

__all__ = ["Detector", "step_detectors"]


def step_detectors(facts: Facts) -> list[Detector]:
    """Fresh detectors: what is exact first, then what is compared with the past."""
    return [
        InputFaults(facts),
        ValueRange(facts),
        NonFinite(facts),
        LearningRate(facts),
        Untouched(facts),
        SecondMoment(facts),
        Stale(facts),
        SteadyGrowth(facts),
        Averages(facts),
        ConstantImages(facts),
        Repeats(facts),
        Dynamics(facts),
        DataStarvation(facts),
    ]
