"""Faults of the batches on their way to the loop: what images hold, and which ones come when."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from poise.data.batches import Batch, batches
from poise.data.prefetch import Feed
from poise.drill.kind import Fault
from poise.drill.place import Effect, Place, Start
from poise.runtime import generator_at

_WHITE = 255.0


def _generator(fault: Fault, number: int) -> torch.Generator:
    return generator_at(fault.seed, number, fault.kind)


def _on_scale(images: Tensor, largest: float) -> Tensor:
    """Images that `to_unit` turns into 0..largest, not -1..1; float, in the scale of bytes."""
    return (images.float() / _WHITE * largest + 1) * (_WHITE / 2)


def _nan_pixel(batch: Batch, fault: Fault, number: int) -> Batch:
    images = batch.images.float().clone()
    position = torch.randint(images.numel(), (), generator=_generator(fault, number))
    images.view(-1)[int(position)] = torch.nan
    return replace(batch, images=images)


def _range_batch(batch: Batch, fault: Fault, number: int) -> Batch:
    return replace(batch, images=_on_scale(batch.images, fault.magnitude))


def _range_image(batch: Batch, fault: Fault, number: int) -> Batch:
    row = int(torch.randint(len(batch.images), (), generator=_generator(fault, number)))
    images = batch.images.float().clone()
    images[row] = _on_scale(images[row], fault.magnitude)
    return replace(batch, images=images)


def _noise_batch(batch: Batch, fault: Fault, number: int) -> Batch:
    noise = torch.randint(256, batch.images.shape, generator=_generator(fault, number))
    return replace(batch, images=noise.to(batch.images.device, batch.images.dtype))


def _bad_label(place: Place, fault: Fault) -> Effect:
    classes = place.state.denoiser.num_classes

    def change(batch: Batch, number: int) -> Batch:
        if batch.labels is None:
            return batch
        generator = _generator(fault, number)
        count = max(1, round(fault.share * len(batch.images)))
        rows = torch.randperm(len(batch.images), generator=generator)[:count]
        labels = batch.labels.clone()
        wrong = classes + torch.randint(10, (count,), generator=generator)
        labels[rows.to(labels.device)] = wrong.to(labels.device)
        return replace(batch, labels=labels)

    return Effect(batch=change)


def _contrast(batch: Batch, fault: Fault, number: int) -> Batch:
    images = batch.images.float()
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    strong = ((images - mean) * fault.magnitude + mean).round().clamp(0, _WHITE)
    return replace(batch, images=strong.to(batch.images.dtype))


def _grey(batch: Batch, fault: Fault, number: int) -> Batch:
    mean = batch.images.float().mean(dim=1, keepdim=True).round().to(batch.images.dtype)
    return replace(batch, images=mean.expand_as(batch.images).contiguous())


def _each(change: Callable[[Batch, Fault, int], Batch]) -> Start:
    """Every batch while the fault lasts."""

    def start(place: Place, fault: Fault) -> Effect:
        return Effect(batch=lambda batch, number: change(batch, fault, number))

    return start


def shard(members: np.ndarray, fault: Fault) -> np.ndarray:
    """The images of the broken shard: neighbours among the training images, [n] sorted indices."""
    members = np.sort(members)
    count = max(1, min(len(members), round(fault.share * len(members))))
    first = torch.randint(
        len(members) - count + 1, (), generator=generator_at(fault.seed, 0, "shard")
    )
    return members[int(first) : int(first) + count]


def _in_shard(content: Callable[[Tensor, int, Fault], Tensor]) -> Start:
    """What images of the shard hold instead: `content(image [C, H, W] float, index, fault)`."""

    def start(place: Place, fault: Fault) -> Effect:
        broken = torch.from_numpy(shard(place.journal.job.splits.train, fault))

        def change(batch: Batch, number: int) -> Batch:
            hit = torch.isin(batch.indices, broken.to(batch.indices.device)).nonzero()[:, 0]
            if not len(hit):
                return batch
            images = batch.images.float().clone()
            for row in hit.tolist():
                images[row] = content(images[row], int(batch.indices[row]), fault)
            bytes_ = images.clamp(0, _WHITE).round()  # NaN stays NaN, and equals nothing
            fits = bool((images == bytes_).all())
            return replace(batch, images=images.to(batch.images.dtype) if fits else images)

        return Effect(batch=change)

    return start


def _wide(image: Tensor, index: int, fault: Fault) -> Tensor:
    drawn = torch.randn(image.shape, generator=generator_at(fault.seed, index, "wide"))
    return (drawn.to(image.device) * fault.magnitude + 1) * (_WHITE / 2)


def _small_data(place: Place, fault: Fault) -> Effect:
    """The usual stream with few members, so that order, epochs and mirrors are as ever."""
    job = place.journal.job
    train = np.sort(job.splits.train)
    order = torch.randperm(len(train), generator=generator_at(fault.seed, 0, "few"))
    few = np.sort(train[order[: round(fault.magnitude)].numpy()])
    stream = None

    def change(batch: Batch, number: int) -> Batch:
        nonlocal stream
        if stream is None:
            stream = batches(
                job.dataset,
                few,
                batch=len(batch.images),
                seed=fault.seed,
                flip=job.config.data.flip == "on",
            )
        return next(stream)

    return Effect(batch=change)


def _repeated(times: Callable[[Fault], float]) -> Start:
    """The last batch again, until it has come so many times."""

    def start(place: Place, fault: Fault) -> Effect:
        kept: Batch | None = None
        left = 0.0

        def change(batch: Batch, number: int) -> Batch:
            nonlocal kept, left
            if kept is None or left < 1:
                kept, left = batch, times(fault)
            left -= 1
            return kept

        return Effect(batch=change)

    return start


def _late(place: Place, fault: Fault) -> Effect:
    def wait(batch: Batch, number: int) -> Batch:
        time.sleep(fault.magnitude)
        return batch

    return Effect(batch=wait)


def book_wait(source: object, seconds: float) -> None:
    """Where the time goes that a batch was waited for: the feed's own count."""
    if isinstance(source, Feed):
        source.waited_s += seconds


DATA_FAULTS: dict[str, Start] = {
    # which images come
    "small-data": _small_data,
    "same-batch": _repeated(lambda fault: np.inf),
    "equal-workers": _repeated(lambda fault: round(fault.magnitude)),
    "slow-data": _late,
    "hung-loader": _late,
    # what they hold
    "grayscale": _each(_grey),
    "catapult": _each(_contrast),
    "noise-batch": _each(_noise_batch),
    "black-shard": _in_shard(
        lambda image, _, fault: torch.full_like(image, round(fault.magnitude))
    ),
    "range-shard": _in_shard(lambda image, _, fault: _on_scale(image, fault.magnitude)),
    "nan-latents": _in_shard(lambda image, _, fault: torch.full_like(image, torch.nan)),
    "wide-latents": _in_shard(_wide),
    "range-batch": _each(_range_batch),
    "range-image": _each(_range_image),
    "nan-pixel": _each(_nan_pixel),
    "bad-label": _bad_label,
}
