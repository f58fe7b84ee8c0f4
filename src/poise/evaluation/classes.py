"""What a network with classes says of samples: which they show, how sure, how varied."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from poise.evaluation.conditioning import Conditioning
from poise.evaluation.estimate import Estimate
from poise.evaluation.inception_score import inception_score
from poise.evaluation.metric import Metric, finite, named
from poise.evaluation.panel import few
from poise.runtime import generator_at

_SPLITS = 10  # of the Inception score, as published
_DRAWS = 200
_OF_A_SPLIT = 50  # samples at least, or the score is far too low


@dataclass(frozen=True)
class Answers:
    """Of one network.

    Attributes:
        network: whose logits these are: name and digest.
        samples: logits or log-probabilities of the samples [M, C].
        stand_in: the same of real images in the samples' place.
        conditioning: what a probe trained on these classes found; None: there is none.
        probe: its name and digest; the network itself, unless that is a published one.
        accuracy: of that probe on real images that it had not seen, as training measured it.
    """

    network: str
    samples: NDArray[np.float64]
    stand_in: NDArray[np.float64]
    conditioning: Conditioning | None = None
    probe: str = ""
    accuracy: float | None = None

    def metrics(self, n: tuple[int, int]) -> dict[str, Metric]:
        """inception_score, and with a probe class_agreement and class_balance_distance.

        Args:
            n: counts of samples and of reference images.
        """
        found = {"inception_score": self._inception(n)}
        c = self.conditioning
        if c is None:
            return found
        own = {"probe": self.probe, "probe_accuracy": finite(c.real_accuracy)}
        mark = c.note or few(n)
        if c.asked:
            joint = Estimate(
                c.agreement.value, c.agreement.samples_error, c.agreement_real.reference_error
            )
            real = finite(c.agreement_real.value)
            found["class_agreement"] = named("class_agreement", joint, real, n, mark, **own)
        found["class_balance_distance"] = named(
            "class_balance_distance",
            Estimate(c.total_variation, *_balance_errors(c.predicted, c.reference)),
            c.total_variation_real,
            n,
            mark,
            p_value=finite(c.p_value),
            divergence=finite(c.divergence),
            divergence_real=finite(c.divergence_real),
            **own,
        )
        return found

    def to_json(self) -> dict[str, Any] | None:
        """The probe's findings as plain data; None where there is no probe of these classes."""
        c = self.conditioning
        if c is None:
            return None
        low, high = c.agreement.interval()
        agreement = {
            "value": finite(c.agreement.value),
            "real": finite(c.agreement_real.value),
            "low": finite(low),
            "high": finite(high),
        }
        return {
            **c.to_json(),
            "probe": self.probe,
            "probe_accuracy": finite(c.real_accuracy),
            "training_accuracy": finite(self.accuracy),
            "usable": not c.note,
            "asked": list(c.asked) or None,
            "confusion": [list(row) for row in c.confusion] or None,
            "agreement": agreement if c.asked else None,
        }

    def _inception(self, n: tuple[int, int]) -> Metric:
        score, deviation = inception_score(self.samples, _splits(len(self.samples)))
        real, _ = inception_score(self.stand_in, _splits(len(self.stand_in)))
        few_of_each = ""
        if len(self.samples) < _SPLITS * _OF_A_SPLIT:
            few_of_each = (
                f"{len(self.samples)} samples in {_splits(len(self.samples))} parts: the score is "
                "too low; compare it with its real value only."
            )
        return named(
            "inception_score",
            score,
            real.value,
            n,
            few(n) or few_of_each,
            network=self.network,
            splits=_splits(len(self.samples)),
            deviation_of_splits=deviation,
            real_n=[len(self.stand_in), n[1]],
        )


def _balance_errors(predicted: Sequence[int], reference: Sequence[int]) -> tuple[float, float]:
    """Standard errors of half the absolute difference of two rows of shares, by drawing each anew.

    Draws of one row against the other as it is; 200 of them, from a fixed seed.
    """
    rows = [np.array(counts, np.float64) for counts in (predicted, reference)]
    shares = [row / row.sum() for row in rows]
    errors = []
    for i, (row, other) in enumerate(zip(rows, reversed(shares), strict=True)):
        weights = torch.from_numpy(shares[i]).expand(_DRAWS, -1)
        drawn = torch.multinomial(
            weights, int(row.sum()), replacement=True, generator=generator_at(0, i, "balance")
        )
        counts = np.stack([np.bincount(d, minlength=len(row)) for d in drawn.numpy()])
        errors.append(float((np.abs(counts / row.sum() - other).sum(1) / 2).std()))
    return errors[0], errors[1]


def _splits(count: int) -> int:
    return min(_SPLITS, max(count // 2, 1))
