"""The guard at work on a running training: what it is given to read, and when."""

from typing import Any

import numpy as np

from poise.data.balance import sampling_weights
from poise.journal import Journal, Prepared
from poise.settings import TrainingConfig
from poise.stability.detectors.probes_all import probe_detectors
from poise.stability.detectors.probes_grid import DiversityCollapse
from poise.stability.diagnosis import diagnose
from poise.stability.examine import examine
from poise.stability.facts import Facts
from poise.stability.guard import Guard, Order
from poise.stability.incident import Sign
from poise.stability.probes import ProbeKit, make_kit, probe
from poise.stability.reading import Readout
from poise.stability.summary import Summary
from poise.training.bands import band_centres
from poise.training.ema import profile_name
from poise.training.loop import StepRecord, TrainState, weights_of
from poise.training.parallel import alone
from poise.training.schedules import learning_rate

_SHOWN = 512  # training images that samples are compared with


class Watch:
    """Readings, probes and grids of one run on their way to the guard."""

    def __init__(self, job: Prepared, state: TrainState) -> None:
        self._job, self._state = job, state
        settings = job.config.stability
        self.facts = facts_of(job, state)
        self.on = settings.policy != "off"
        self.stops = settings.policy == "repair" and settings.early_stop
        self._probes = probe_detectors(self.facts)
        self.guard = Guard(
            self.facts, self._probes, policy=settings.policy, max_repairs=settings.max_repairs
        )
        self.summary = Summary(self.facts)
        self._readout = Readout(job.runtime.device)
        self._record: StepRecord | None = None
        self._waited = 0.0
        self._late: list[Order] = []  # from readings that a checkpoint waited for
        self._kit = self._make_kit()
        self._grid = _grid_detector(job)

    def begin(self) -> None:
        """A session begins: what was under way in the last one is void."""
        self._readout = Readout(self._job.runtime.device)
        self._waited, self._late = 0.0, []

    def judge(self, record: StepRecord, waited: float) -> list[Order]:
        """What is to be done after an update; `waited` are seconds of the session up to now."""
        if not self.on:
            return []
        self._record = record
        self._readout.put(record, waited - self._waited)
        self._waited = waited
        late, self._late = self._late, []
        return late + self._read(wait=False)

    def _read(self, *, wait: bool) -> list[Order]:
        orders: list[Order] = []
        for reading in self._readout.take(wait=wait):
            self.summary.add(reading)
            for detector in self._probes:
                read = getattr(detector, "read", None)
                if read is not None:
                    read(reading)
            orders += self.guard.note(reading, self._diagnose)
        return orders

    def _diagnose(self, sign: Sign) -> Sign:
        """Compute the last update again, if nothing has changed since."""
        if self._record is None:
            return sign
        here = alone(self._state, len(self._record.batch.images))
        found = examine(here, self._job.config, self._record)
        return diagnose(sign, found, dtype=self._state.denoiser.dtype)

    def look(self, record: StepRecord, journal: Journal) -> list[Order]:
        """A look inside the network, if one is due."""
        every = self._job.config.stability.probe_every
        if not self.on or self._kit is None or record.step % every:
            return []
        journal.phase = "probe"
        found = probe(self._state, self._kit)
        journal.phase = "step"
        journal.probe = found.to_json()
        return self.guard.note_probe(found)

    def look_at_grid(self, journal: Journal) -> list[Order]:
        """A look at the samples, if there are new ones."""
        if not self.on or self._grid is None or journal.last_grid is None:
            return []
        images, journal.last_grid = journal.last_grid, None
        names = self._job.facts.label_names
        labels = [i % len(names) for i in range(len(images))] if names else None
        signs = self._grid.look(images, labels, self._state.images_seen)
        return [order for sign in signs for order in self.guard.note_sign(sign)]

    def state(self) -> dict[str, Any]:
        """Everything as plain data, for a checkpoint; waits for what is under way."""
        self._late += self._read(wait=True)
        return {
            "guard": self.guard.state(),
            "summary": self.summary.sums,
            "grid": None if self._grid is None else self._grid.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.guard.restore(state["guard"])
        self.summary.sums = state["summary"]
        if self._grid is not None:
            self._grid.restore(state["grid"])
        self.begin()

    def _make_kit(self) -> ProbeKit | None:
        job = self._job
        if not self.on or not len(job.splits.val):
            return None
        return make_kit(job.dataset, job.splits, self._state.denoiser, job.config)


def facts_of(job: Prepared, state: TrainState) -> Facts:
    """What the detectors know of a run before it starts."""
    config, training = job.config, job.config.training
    weights = weights_of(state.denoiser)
    forced = {
        f"{name}.weight"
        for name, module in state.denoiser.named_modules()
        if hasattr(module, "force_unit_weight") and getattr(module, "forced", False)
    }
    names = job.dataset.names
    return Facts(
        names=tuple(weights),
        forced=tuple(name in forced for name in weights),
        betas=training.betas if training.optimizer in ("adam", "adamw") else None,
        train_images=len(job.splits.train),
        file_names=lambda index: names[index],
        profiles=tuple(profile_name(std) for std in state.ema.profiles),
        centres=tuple(band_centres(config.diffusion)),
        num_classes=len(job.facts.label_names),
        batch=training.batch,
        total_images=training.images,
        warmup_images=round(training.warmup * training.images),
        sigma_data=job.facts.sigma_data,
        planned=lambda images: learning_rate(training, images),
        weighted_draws=sampling_weights(job.dataset, job.splits.train, config.data.balance)
        is not None,
        policy=config.stability.policy,
        exact_moments=_plain_gradients(training),
    )


def _plain_gradients(training: TrainingConfig) -> bool:
    """Whether the optimiser gets the gradients as they were measured."""
    touched = training.grad_clip != "none" or training.grad_normalise
    return not touched and not training.l1 and not training.l2


def _grid_detector(job: Prepared) -> DiversityCollapse | None:
    if job.facts.latents or not len(job.splits.train):
        return None
    step = max(1, len(job.splits.train) // _SHOWN)
    members = job.splits.train[::step][:_SHOWN]
    images = np.ascontiguousarray(np.asarray(job.dataset.images[members]).transpose(0, 2, 3, 1))
    labels = None if job.dataset.labels is None else job.dataset.labels[members]
    return DiversityCollapse(images, labels, job.config.training.images)
