"""What one update was, as numbers on the host; a GPU is never waited for to get them."""

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poise.training.inputs import InputCheck
from poise.training.loop import REASONS, StepRecord

_MOST = 16  # readings that may be under way from a GPU

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Reading:
    """A `StepRecord` whose tensors have arrived; T tensors in the order of `weights_of`.

    Without vitals (policy off) the arrays of T have length 0.
    """

    images_seen: int  # after the update
    step: int
    batch: int  # images of the update
    lr: float  # as planned
    schedule_lr: float  # by the schedule alone
    used_lr: float  # by the optimiser
    applied: bool
    reasons: frozenset[str]  # of REASONS; empty: applied
    loss: float  # mean over the images; may be negative or not finite
    error: float  # mean over the images
    image_error: Floats  # [B]
    sigma: Floats  # [B]
    grad_norm: float
    grad_norms: Floats  # [T], L2; 0 where there is no gradient
    moments: Floats  # [T], sum of second moments before the step; NaN where there are none
    before: Floats  # [T], fingerprints of the weights before the step
    after: Floats  # [T], and after it
    ema: Floats | None  # [P, T], fingerprints of the averages before they followed
    update_ratio: float | None  # |change| / |weights|
    indices: NDArray[np.int64]  # [B], in the data set
    inputs: InputCheck
    seconds: float  # of wall time
    waited: float = 0.0  # seconds of it in which the next batch was waited for


@dataclass(frozen=True)
class _Sent:
    """A record whose numbers are under way."""

    record: StepRecord
    waited: float
    numbers: Tensor  # on the host
    arrived: torch.cuda.Event | None  # None: they are there


class Readout:
    """Turns records into readings, each once and in their order."""

    def __init__(self, device: torch.device) -> None:
        """
        Args:
            device: of the training. From a GPU the numbers of a record come in one copy that
                nobody waits for, unless 16 are under way.
        """
        self._device = device
        self._under_way: deque[_Sent] = deque()

    def put(self, record: StepRecord, waited: float = 0.0) -> None:
        """Begin to read a record; `waited` are seconds of its step spent waiting for the batch."""
        numbers, arrived = _send(_packed(record), self._device)
        self._under_way.append(_Sent(record, waited, numbers, arrived))

    def take(self, *, wait: bool = False) -> list[Reading]:
        """The readings that have arrived since the last call, oldest first.

        Args:
            wait: for all that were put; at the end of a run, or before a decision that needs them.
        """
        found = []
        while self._under_way:
            arrived = self._under_way[0].arrived
            if arrived is not None and not arrived.query():  # type: ignore[no-untyped-call]
                if not wait and len(self._under_way) < _MOST:
                    break
                arrived.synchronize()
            found.append(_reading(self._under_way.popleft()))
        return found


def _parts(record: StepRecord) -> list[Tensor]:
    """All tensors of a record, in the order of `_reading`."""
    parts = [record.loss, record.error, record.sigma, record.grad_norm, record.reasons]
    vitals = record.vitals
    if vitals is not None:
        parts += [vitals.grad_norms, vitals.moments, vitals.before, vitals.after]
        if vitals.ema is not None:
            parts.append(vitals.ema)
    if record.update_ratio is not None:
        parts.append(record.update_ratio)
    return parts


def _packed(record: StepRecord) -> Tensor:
    return torch.cat([part.detach().reshape(-1).float() for part in _parts(record)])


def _send(numbers: Tensor, device: torch.device) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy on the host, and what tells that it is whole; None: it is."""
    if device.type != "cuda":
        return numbers, None
    host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    host.copy_(numbers, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()
    return host, arrived


def _reading(sent: _Sent) -> Reading:
    record, vitals = sent.record, sent.record.vitals
    sizes = [part.numel() for part in _parts(record)]
    arrays = iter(np.split(sent.numbers.numpy(), np.cumsum(sizes)[:-1]))
    loss, error, sigma, norm, reasons = (next(arrays) for _ in range(5))
    nothing = np.zeros(0, np.float32)
    rows = [nothing if vitals is None else next(arrays) for _ in range(4)]
    ema = None
    if vitals is not None and vitals.ema is not None:
        ema = next(arrays).reshape(tuple(vitals.ema.shape))
    why = frozenset(name for name, held in zip(REASONS, reasons, strict=True) if held)
    return Reading(
        images_seen=record.images_seen,
        step=record.step,
        batch=len(record.batch.images),
        lr=record.lr,
        schedule_lr=record.schedule_lr,
        used_lr=record.used_lr,
        applied=not why,
        reasons=why,
        loss=_mean(loss),
        error=_mean(error),
        image_error=error,
        sigma=sigma,
        grad_norm=float(norm[0]),
        grad_norms=rows[0],
        moments=rows[1],
        before=rows[2],
        after=rows[3],
        ema=ema,
        update_ratio=None if record.update_ratio is None else float(next(arrays)[0]),
        indices=record.indices.cpu().numpy(),
        inputs=record.inputs,
        seconds=record.seconds,
        waited=sent.waited,
    )


def _mean(values: Floats) -> float:
    with np.errstate(invalid="ignore"):  # infinities of both signs: not a number
        return float(values.mean(dtype=np.float64))
