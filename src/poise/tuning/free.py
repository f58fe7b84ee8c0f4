"""Settings that need no training, searched on the samples of one trained model.

One thing at a time, in the order of the space: each value is tried with what was best so far, on
the same noise and labels. What is found is then measured on fresh ones, since the best of many is
partly luck.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from poise.artifacts import RunDir
from poise.choosing import Judge
from poise.diffusion.multistep import SOLVERS
from poise.errors import UsageError
from poise.sampling import Guidance, Model, Weights, named_weights, weights_of_run
from poise.tuning.space import Dimension

_ALIKE = 0.02  # of a metric: as good, where it saves network calls


def search_free(
    run: RunDir, base: Model, dimensions: tuple[Dimension, ...], judge: Judge
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The free settings that sample best by the judge's metric.

    Args:
        run: the trained run.
        base: its newest weights, sampled as its settings say.
        dimensions: what is free, in order.
        judge: who measures; its metric decides.

    Returns:
        The settings found, and everything tried with its metrics.
    """
    best: dict[str, Any] = {}
    tried: list[dict[str, Any]] = []

    def cost_of(free: Mapping[str, Any]) -> float | None:
        try:
            model = with_free(run, base, free)
        except (UsageError, ValueError):  # a width that a short trial does not give, or a pair of
            return None  # settings that contradict each other
        values = judge.measure(model, "tuning")
        tried.append({"free": dict(free), **values})
        return judge.cost(values)

    least = cost_of(best) if dimensions else None
    for dimension in dimensions:
        if not _applies(dimension, best, base):
            continue
        for value in dimension.values():
            free = {**best, dimension.name: value}
            if _same(base, free, best):
                continue
            cost = cost_of(free)
            if cost is None or least is None:
                continue
            if _improves(cost, least, _calls(base, free) - _calls(base, best)):
                best, least = free, min(cost, least)
    return best, tried


def with_free(run: RunDir, base: Model, free: Mapping[str, Any]) -> Model:
    """A model that samples with other weights, guidance or solver.

    Raises:
        UsageError: weights that the run's snapshots cannot give, or a model without classes.
    """
    model = base
    if "weights" in free:
        name = named_weights(str(free["weights"]))
        found = weights_of_run(run, Weights(name, base.snapshot.images_seen))
        model = replace(model, snapshot=replace(found, config=base.snapshot.config))
    sampling = {k.removeprefix("sampling."): v for k, v in free.items() if k.startswith("sampling")}
    if sampling:
        model = model.with_settings(**sampling)
    strength = float(free.get("guidance", 1.0))
    if strength != 1.0:
        model = replace(model, guidance=Guidance(strength, None), guide=None)
    return model


def _applies(dimension: Dimension, best: Mapping[str, Any], base: Model) -> bool:
    """Whether the conditions of a dimension hold."""
    return all(_value(base, best, name) in values for name, values in dimension.when.items())


def _value(base: Model, free: Mapping[str, Any], name: str) -> Any:
    if name in free:
        return free[name]
    section, _, leaf = name.partition(".")
    if not leaf:
        return {"guidance": 1.0, "weights": base.snapshot.weights}.get(name)
    return getattr(getattr(base.snapshot.config, section), leaf)


def _same(base: Model, free: Mapping[str, Any], best: Mapping[str, Any]) -> bool:
    """Whether a candidate is what was measured already."""

    def plain(name: str, value: Any) -> Any:
        return named_weights(str(value)) if name == "weights" else value

    return all(plain(n, v) == plain(n, _value(base, best, n)) for n, v in free.items())


def _calls(base: Model, free: Mapping[str, Any]) -> int:
    """Network calls of a sample; guidance takes two each."""
    solver, steps = _value(base, free, "sampling.solver"), _value(base, free, "sampling.steps")
    each = SOLVERS[solver].calls(int(steps))
    return each * (1 if float(_value(base, free, "guidance")) == 1.0 else 2)


def _improves(cost: float, least: float, more_calls: int) -> bool:
    """Better; or as good for fewer calls; for more calls it must be clearly better."""
    margin = _ALIKE * abs(least)
    if more_calls < 0:
        return cost < least + margin
    return cost < least - (margin if more_calls > 0 else 0.0)
