"""How often each image is drawn: weights, and epochs of whole draws that follow them."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from poise.data.imageset import Dataset
from poise.errors import UsageError
from poise.runtime import generator_at

Balance = Literal["prepared", "none", "sqrt", "equal"]
_POWER = {"sqrt": -0.5, "equal": -1.0}


def sampling_weights(
    dataset: Dataset, members: NDArray[np.int64], balance: Balance
) -> NDArray[np.float64] | None:
    """The weight of each member, relative; None: all alike.

    Args:
        dataset: the images.
        members: [M] indices of the training images.
        balance: "prepared" takes the data set's own weights, if it has any; "sqrt" and "equal"
            weigh an image by the number of members of its class to the power -1/2 and -1, so that
            a class is drawn as often as the root of its size, or as often as any other.

    Returns:
        [M], not negative, or None.

    Raises:
        UsageError: "sqrt" or "equal" without classes.
    """
    if balance == "prepared":
        return None if dataset.weights is None else dataset.weights[members]
    if balance == "none":
        return None
    if dataset.labels is None:
        raise UsageError(
            f"data.balance = {balance} weighs classes, and {dataset.source} has none.",
            expected="images in one folder per class, or labels beside them",
            remedy="weigh images by their likeness instead, with poise prepare --balance, or set "
            "data.balance=none.",
        )
    labels = dataset.labels[members]
    counts = np.bincount(labels).astype(np.float64)
    weights: NDArray[np.float64] = counts[labels] ** _POWER[balance]
    return weights


def check_weights(weights: NDArray[np.float64], members: int) -> None:
    """
    Raises:
        UsageError: not one finite weight of 0 or more for each member, or all of them 0.
    """
    fine = weights.shape == (members,) and bool(np.isfinite(weights).all())
    if not fine or weights.min() < 0 or not 0 < weights.sum() < np.inf:
        raise UsageError(
            f"Weights of shape {weights.shape} cannot say how often {members} images are drawn.",
            expected="one finite number of 0 or more for each image, not all of them 0",
            remedy="Prepare the data again with poise prepare, or set data.balance=none.",
        )


def draws(weights: NDArray[np.float64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Which members an epoch of M draws takes, [M] positions in 0..M-1, ascending.

    Position i comes floor or ceil of e_i = M w_i / sum(w) times, and e_i times in the mean over
    epochs. That is systematic resampling: marks at distance 1 from an offset in [0, 1) on a line
    of M, on which i takes the length e_i. Members of one weight lie side by side, so what they are
    drawn together is exact within 1 too, but in an order that is new in each epoch, so which of
    them are drawn is not tied.

    Args:
        weights: [M], as `check_weights` has it.
        seed: of the run.
        epoch: the offset and the order follow from both.
    """
    count = len(weights)
    generator = generator_at(seed, epoch, "balance")
    offset = torch.rand((), generator=generator, dtype=torch.float64).item()
    order = torch.randperm(count, generator=generator).numpy()
    order = order[np.argsort(weights[order], kind="stable")]
    ends = np.cumsum(weights[order])
    ends = np.minimum(ends * (count / ends[-1]), count)
    ends[-1] = count
    marks = np.ceil(ends - offset).astype(np.int64)  # marks before the end of each piece
    times = np.empty(count, np.int64)
    times[order] = np.diff(marks, prepend=0)
    drawn: NDArray[np.int64] = np.repeat(np.arange(count), times)
    return drawn


def expected_draws(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """How often each member is drawn in an epoch, in the mean: M w / sum(w), [M]."""
    expected: NDArray[np.float64] = weights * (len(weights) / weights.sum())
    return expected
