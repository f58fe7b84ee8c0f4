"""How trials of different lengths are put on one scale for a sampler."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.tuning.samplers import heights
from poise.tuning.schedule import Trial

ERRORS = st.lists(st.integers(-3000, 3000).map(lambda n: n / 1000), min_size=3, max_size=12)


def trial(
    number: int, *proxy: float, state: str = "stopped", costs: tuple[float, ...] = ()
) -> Trial:
    return Trial(number, "search", state, len(proxy) - 1, proxy, costs=costs)


@given(ERRORS, st.floats(0.1, 10), st.floats(-5, 5))
def test_whole_trials_keep_the_shape_of_their_metric(
    values: list[float], scale: float, shift: float
) -> None:
    """Near the best; the proxy gives place and spread alone."""
    costs = [scale * value + shift for value in values]
    found = heights(
        [trial(i, v, costs=(c,)) for i, (v, c) in enumerate(zip(values, costs, strict=True))], 1
    )
    worst = max(found.values())
    for i, value in enumerate(values):
        if found[i] < worst:
            assert found[i] == pytest.approx(value, abs=1e-6)


@given(ERRORS)
def test_errors_at_a_later_rung_stay_where_they_were_on_the_mean(values: list[float]) -> None:
    """A third goes on and halves its error there, which is no news; who of them is best is."""
    goes = sorted(range(len(values)), key=lambda i: values[i])[: max(1, len(values) // 3)]
    later = {i: 0.5 * values[i] - 1.0 for i in goes}
    known = [trial(i, v, *([later[i]] if i in later else [])) for i, v in enumerate(values)]
    found, before = heights(known, 3), heights([trial(i, v) for i, v in enumerate(values)], 3)
    mean = statistics.mean(found[i] for i in goes)
    assert mean == pytest.approx(statistics.mean(values[i] for i in goes), abs=1e-6)
    order = sorted(goes, key=lambda i: later[i])
    assert [found[i] for i in order] == sorted(found[i] for i in order)
    assert all(found[i] <= before[i] + 1e-9 for i in range(len(values)) if i not in goes)


def test_the_metric_decides_among_those_that_ended() -> None:
    known = [
        trial(0, -0.5, -1.0, costs=(3.0,)),
        trial(1, -0.4, -0.9, costs=(1.0,)),
        trial(2, 0.0),
        trial(3, 0.1),
    ]
    found = heights(known, 2)
    assert found[1] < found[0] < found[2] < found[3]


def test_what_runs_away_diverges_or_fails_does_not_spoil_the_scale() -> None:
    good = [trial(i, 0.1 * i) for i in range(9)]
    lost = [trial(9, 1e9), trial(10, state="diverged"), trial(11, 0.0, state="failed")]
    found = heights([*good, *lost, trial(12, math.nan, state="diverged")], 3)
    assert found[9] == found[10] == found[11] == found[12] == max(found.values()) < 2.0
    assert [found[i] for i in range(9)] == pytest.approx([0.1 * i for i in range(9)])


def test_nothing_is_known_of_what_has_shown_nothing() -> None:
    running = Trial(0, "search", "running")
    assert heights([running], 3) == heights([], 3) == {}
    assert heights([running, trial(1, state="failed")], 3) == {1: 0.0}
