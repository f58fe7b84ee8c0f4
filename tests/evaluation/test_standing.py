"""Which snapshot is best, by several metrics and never by one alone."""

from hypothesis import given
from hypothesis import strategies as st

from poise.evaluation.standing import VOICES, ranked, standing

ERRORS = {"frechet_distance": 0.1, "kernel_distance": 0.01, "precision": 0.02, "coverage": 0.02}


def row(at: int, quality: float, **changed: float):
    """A snapshot whose every metric follows from one number, but for what is changed."""
    values = {name: quality if more else 1 - quality for name, more in VOICES.items()} | changed
    return {"images_seen": at, "weights": "ema_0.100", "values": values, "errors": ERRORS}


def test_the_best_in_everything_is_best():
    found = standing([row(1, 0.3), row(2, 0.8), row(3, 0.5)])
    assert found is not None and found.images_seen == 2 and found.ranks == (3.0, 1.0, 2.0)
    assert not found.turned and "2 images is best" in found.sentence()


def test_one_metric_alone_does_not_decide():
    # by the Fréchet distance the first is far the best; the others say otherwise
    rows = [row(1, 0.3, frechet_distance=0.01), row(2, 0.8), row(3, 0.7)]
    found = standing(rows)
    assert found is not None and found.images_seen == 2


def test_a_run_is_past_its_best_when_all_later_snapshots_are_clearly_worse():
    past = standing([row(1, 0.5), row(2, 0.9), row(3, 0.5), row(4, 0.4)])
    assert past is not None and past.turned and past.images_seen == 2
    assert set(past.worse) == set(VOICES) and "clearly worse in frechet distance" in past.sentence()
    one_later = standing([row(1, 0.5), row(2, 0.9), row(3, 0.5)])
    assert one_later is not None and not one_later.turned
    within_noise = standing([row(1, 0.89), row(2, 0.9), row(3, 0.899), row(4, 0.899)])
    assert within_noise is not None and not within_noise.turned


def test_copies_do_not_stand_for_election_while_there_are_others():
    copying = row(3, 0.9) | {"copies": 12}
    found = standing([row(1, 0.3), row(2, 0.5), copying])
    assert found is not None and found.images_seen == 2
    alone = standing([row(1, 0.3) | {"copies": 3}, copying])
    assert alone is not None and alone.images_seen == 3


def test_what_is_not_known_is_last():
    blind = row(2, 0.9)
    blind["values"] = dict.fromkeys(VOICES, None)
    found = standing([row(1, 0.1), blind])
    assert found is not None and found.images_seen == 1
    assert standing([row(1, 0.5)]) is None and ranked([]) == []


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_ranks_add_up_and_follow_the_quality(qualities):
    rows = [row(i + 1, q) for i, q in enumerate(qualities)]
    ranks = [r["rank"] for r in ranked(rows)]
    n = len(rows)
    assert abs(sum(ranks) - n * (n + 1) / 2) < 1e-9
    found = standing(rows)
    assert found is not None
    assert qualities[found.images_seen - 1] >= max(qualities) - 1e-9
