"""Inception score: how sure a classifier is of each sample, and how varied its answers are."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from poise.errors import DataError, UsageError
from poise.evaluation.estimate import Estimate
from poise.runtime import generator_at


def inception_score(
    logits: NDArray[np.float64], splits: int = 10, seed: int | None = 0
) -> tuple[Estimate, float]:
    """Inception score (Salimans et al. 2016): the mean over splits of exp(mean KL(p(y|x) || p(y))).

    The exponent is computed as H(mean p) - mean H(p) within each split.

    Args:
        logits: of a classifier [N, C], or log-probabilities; -inf for what is impossible.
        splits: parts of almost equal size, as published 10. More of them give lower scores.
        seed: of the order in which the samples are split; None keeps theirs.

    Returns:
        The score, 1 to C, with its standard error from the splits (nan for one), and, as is
        published beside it, the standard deviation over the splits (divided by their number).

    Raises:
        UsageError: no split, or more splits than samples.
        DataError: logits that are no distribution.
    """
    if logits.ndim != 2 or logits.shape[1] == 0 or not 1 <= splits <= len(logits):
        raise UsageError(
            f"logits of shape {logits.shape} for {splits} splits",
            expected="[N, C], and from 1 to N splits",
        )
    n = len(logits)
    order = np.arange(n)
    if seed is not None:
        order = torch.randperm(n, generator=generator_at(seed, n, "inception-score")).numpy()
    scores = []
    for i in range(splits):
        part = logits[order[i * n // splits : (i + 1) * n // splits]].astype(np.float64)
        p = torch.from_numpy(part).softmax(1)
        if not p.isfinite().all():
            raise DataError(
                "logits that give no distribution",
                expected="numbers, and at least one class per row that is possible",
            )
        q = p.mean(0)
        scores.append(math.exp(float(torch.xlogy(p, p).sum(1).mean() - torch.xlogy(q, q).sum())))
    deviation = float(np.std(scores))
    error = deviation / math.sqrt(splits - 1) if splits > 1 else math.nan
    return Estimate(float(np.mean(scores)), samples_error=error), deviation
