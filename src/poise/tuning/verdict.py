"""What a study found: in figures, and in the three sentences that a user needs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import stdtrit
from scipy.stats import rankdata, spearmanr

from poise.tuning.plan import VALIDATION, Plan
from poise.tuning.schedule import (
    COMPLETE,
    DEFAULT,
    DIVERGED,
    LOST,
    REPEAT,
    SEARCH,
    Trial,
    best_of,
    finalists,
    proxy_at,
)
from poise.tuning.space import Space

_FEWEST, _FEWEST_EACH = 12, 2  # trials, also for each setting, from which importance is told
_FORESEEN = 0.1  # of the variance of ranks outside the bag; noise reaches it in a tenth of studies
_SMALL = 0.05  # share of what settings explain below which one did not matter
_AGREEING = 8  # trials from which a rank correlation says anything
_LEVEL = 0.95
_Point = tuple[dict[str, Any], dict[str, Any]]  # parameters of Optuna, and their distributions


@dataclass(frozen=True)
class Difference:
    """The best settings against the preset, on the same seeds.

    Attributes:
        mean: best minus preset, in the metric's own direction.
        low, high: 95 % interval over seeds (Student's t of the paired differences); None for one.
        level: mean of the preset.
        seeds: pairs.
    """

    mean: float
    low: float | None
    high: float | None
    level: float
    seeds: int

    def share(self, value: float) -> float:
        """`value` in parts of the preset's mean; nan where that is 0."""
        return value / abs(self.level) if self.level else math.nan

    def to_json(self) -> dict[str, Any]:
        """As plain data, with the relative change."""
        relative = self.share(self.mean)
        more = {"relative": relative if math.isfinite(relative) else None}
        return {"mean": self.mean, "low": self.low, "high": self.high, "seeds": self.seeds, **more}


def difference(best: Sequence[float], default: Sequence[float]) -> Difference | None:
    """The mean of paired differences with its interval; None without pairs."""
    pairs = [b - d for b, d in zip(best, default, strict=True)]
    n = len(pairs)
    if n == 0:
        return None
    mean, level = sum(pairs) / n, sum(default) / n
    if n == 1:
        return Difference(mean, None, None, level, n)
    spread = math.sqrt(sum((p - mean) ** 2 for p in pairs) / (n - 1) / n)
    half = float(stdtrit(n - 1, (1 + _LEVEL) / 2)) * spread
    return Difference(mean, mean - half, mean + half, level, n)


def judged(found: Difference | None, better: str) -> str:
    """One of better, worse, no-better (the interval holds zero) and unknown (there is none)."""
    if found is None or found.low is None or found.high is None:
        return "unknown"
    sign = 1 if better == "lower" else -1
    low, high = sorted((sign * found.low, sign * found.high))
    return "better" if high < 0 else "worse" if low > 0 else "no-better"


def repeats(trials: Sequence[Trial], plan: Plan) -> dict[str, list[tuple[float, ...]]]:
    """Costs of the preset and of the best on the seeds that both have: {"default", "best"}."""
    named: dict[str, list[tuple[float, ...]]] = {"default": [], "best": []}
    pair = finalists(trials)
    if not pair:
        return named
    done = {(t.of, t.seed): t.costs for t in trials if t.role == REPEAT and t.costs}
    for seed in range(1, plan.seeds + 1):
        both = [done.get((number, seed)) for number in pair]
        if both[0] is not None and both[1] is not None:
            named["default"].append(both[0])
            named["best"].append(both[1])
    return named


def chosen(trials: Sequence[Trial], plan: Plan) -> int | None:
    """The number of the trial whose settings are trained at the end; None: none has a value.

    The best of the search, unless on fresh seeds the preset is better (in more of several metrics),
    or only what was searched diverges there.
    """
    pair = finalists(trials)
    if not pair:
        ended = [t for t in trials if t.role in (DEFAULT, SEARCH) and t.state == COMPLETE]
        return best_of(ended).number if ended else None
    if lost(trials, pair[1]) > lost(trials, pair[0]):
        return pair[0]
    found = repeats(trials, plan)
    costs = {t.number: t.costs for t in trials}
    default = found["default"] or [costs[pair[0]]]
    best = found["best"] or [costs[pair[1]]]
    signs = [
        (sum(row[i] for row in best) > sum(row[i] for row in default))
        - (sum(row[i] for row in best) < sum(row[i] for row in default))
        for i in range(len(plan.metrics))
    ]
    return pair[1] if sum(signs) < 0 else pair[0]


def lost(trials: Sequence[Trial], number: int) -> int:
    """Repeats of a finalist that ended without a value."""
    return sum(t.of == number and t.state in LOST for t in trials)


def importance(trials: Sequence[Trial], space: Space) -> dict[str, float]:
    """How much of the order of trials after the first rung each setting explains; they sum to 1.

    All trials have a place in that order, so it rests on many more than the metric does; what
    diverged before is last. Optuna's fANOVA (Hutter et al. 2014) of the ranks. Empty for few
    trials, and where a forest does not foresee the ranks of trials that it has not seen: then the
    shares are those of noise.
    """
    seen = [t for t in trials if t.role != REPEAT and (t.proxy or t.state == DIVERGED)]
    names = [
        d.name
        for d in space.trained()
        if len({str(t.settings.get(d.name)) for t in seen}) > 1
        and all(d.name in t.settings for t in seen)
    ]
    if not names or len(seen) < max(_FEWEST, _FEWEST_EACH * len(names)):
        return {}
    ranks = rankdata([proxy_at(t, 0) for t in seen])
    points = [_as_numbers(trial, names, seen) for trial in seen]
    return _shares(points, ranks.tolist()) if _foreseen(points, ranks.tolist()) else {}


def _shares(points: Sequence[_Point], ranks: Sequence[float]) -> dict[str, float]:
    import optuna

    view = optuna.create_study()
    for (params, kinds), value in zip(points, ranks, strict=True):
        view.add_trial(optuna.trial.create_trial(params=params, distributions=kinds, value=value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(view, evaluator=evaluator)
    return {name: float(found[name]) for name in found}


def _foreseen(points: Sequence[_Point], ranks: Sequence[float]) -> bool:
    """Whether a forest foretells the ranks of trials that its trees were not grown of."""
    from sklearn.ensemble import RandomForestRegressor

    def number(value: Any, kind: Any) -> float:
        if isinstance(value, str):
            return float(kind.choices.index(value))
        return math.log(value) if kind.log else float(value)

    rows = [[number(params[name], kinds[name]) for name in params] for params, kinds in points]
    forest = RandomForestRegressor(100, oob_score=True, random_state=0)
    return bool(forest.fit(rows, ranks).oob_score_ > _FORESEEN)


def _as_numbers(trial: Trial, names: Sequence[str], known: Sequence[Trial]) -> _Point:
    """Parameters and distributions: logarithms of numbers that are all above zero, else choices."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    params: dict[str, Any] = {}
    kinds: dict[str, Any] = {}
    for name in names:
        seen = [t.settings[name] for t in known]
        numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in seen)
        if numeric:
            log = min(seen) > 0
            low, high = float(min(seen)), float(max(seen))
            params[name] = float(trial.settings[name])
            kinds[name] = FloatDistribution(low, high, log=log)
        else:
            params[name] = str(trial.settings[name])
            kinds[name] = CategoricalDistribution(sorted({str(v) for v in seen}))
    return params, kinds


def agreement(trials: Sequence[Trial], plan: Plan) -> float | None:
    """Rank correlation of the first proxy, by which most trials are stopped, with the first metric.

    Those that were stopped have no metric, so it is of the others alone. None for fewer than eight
    trials, and where the proxy itself is the metric.
    """
    if plan.metrics[0] == VALIDATION:
        return None
    rows = [(t.proxy[0], t.costs[0]) for t in trials if t.role != REPEAT and t.costs and t.proxy]
    if len(rows) < _AGREEING or len({p for p, _ in rows}) < 2 or len({c for _, c in rows}) < 2:
        return None
    return float(spearmanr([p for p, _ in rows], [c for _, c in rows]).statistic)


def sentences(
    plan: Plan,
    settings: Mapping[str, Any],
    free: Mapping[str, Any],
    found: Difference | None,
    weight: Mapping[str, float],
    defaults: Mapping[str, Any],
    unstable: int = 0,
) -> list[str]:
    """What to set, how sure we are, what did not matter.

    Args:
        settings: of the trial that was chosen.
        free: what it samples with, as far as that was searched.
        found: the best of the search against the preset, on fresh seeds.
        weight: importance of each setting.
        defaults: the preset's own values.
        unstable: repeats of the best of the search that ended without a value.
    """
    changed = {**{k: v for k, v in settings.items() if v != defaults.get(k)}, **free}
    if changed:
        first = "What to set: " + ", ".join(f"{k} = {_shown(v)}" for k, v in changed.items()) + "."
    else:
        first = f"What to set: nothing; preset {plan.preset} stays as it is."
    sure = _surety(plan, found)
    if unstable:
        sure = (
            f"what the search found ended without a value on {unstable} of {plan.seeds} fresh "
            f"seeds. {sure}"
        )
    return [first, f"How sure we are: {sure}", f"What did not matter: {_idle(weight)}"]


def _surety(plan: Plan, found: Difference | None) -> str:
    metric = plan.metrics[0].replace("_", " ")
    if found is None and plan.seeds == 0:
        return "one training each, and no repeats: a part of it may be luck."
    if found is None:
        return "not at all: the best settings and the preset have no pair of repeats to compare."
    sign = -1 if plan.better[0] == "lower" else 1  # gains are positive

    def gain(value: float, form: str) -> str:
        share = sign * found.share(value)
        return f"{share:{form}.0%}" if math.isfinite(share) else f"{sign * value:{form}.3g}"

    way = "better" if sign * found.mean > 0 else "worse"
    change = f"{gain(found.mean, '+')[1:]} {way} than the preset's"
    if found.low is None or found.high is None:
        return (
            f"little: on one fresh seed {metric} is {change}, and one seed does not tell luck from "
            "gain (--seeds 3)."
        )
    low, high = (found.low, found.high) if sign > 0 else (found.high, found.low)
    over = (
        f"over {found.seeds} fresh seeds (95 % interval of the gain {gain(low, '+')} to "
        f"{gain(high, '+')})"
    )
    verdict = judged(found, plan.better[0])
    if verdict == "better":
        return f"{metric} is {change} {over}."
    if verdict == "worse":
        return f"the preset is best as it is: what the search found is {change} {over}."
    return (
        f"not sure: {metric} is {change} {over}, which holds zero. The preset may be best as it is."
    )


def _idle(weight: Mapping[str, float]) -> str:
    if not weight:
        return (
            "it cannot be told: the trials are too few, or how they stand after the first stretch "
            "does not follow from their settings."
        )
    idle = [name for name, share in weight.items() if share < _SMALL]
    most = max(weight, key=lambda name: weight[name])
    told = (
        f"{most} mattered most ({weight[most]:.0%} of what settings explain of the error after the "
        "first stretch)"
    )
    if not idle:
        return f"nothing: every setting explains more than {_SMALL:.0%}; {told}."
    return f"{', '.join(idle)} (each under {_SMALL:.0%}); {told}."


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
