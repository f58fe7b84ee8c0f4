"""Orders carried out on a real state: what goes back, what stays, what is written down."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import small_run as small
import tiny
import torch

from poise.artifacts import load_tensors
from poise.errors import ArtifactError, Stopped
from poise.journal import Journal
from poise.learning.fresh import feed_from, fresh_state
from poise.learning.repair import Rate, Repairer
from poise.learning.session import Quarantine
from poise.learning.watch import facts_of
from poise.stability.guard import Guard, Order
from poise.stability.incident import Sign
from poise.training.ema import power_beta
from poise.training.loop import TrainState, steps, weights_of
from poise.training.optim import optimizer_tensors

B = small.BATCH


@dataclass
class Bench:
    """A run of some updates with a checkpoint at each number of updates in `saved`."""

    root: Path
    state: TrainState
    journal: Journal
    guard: Guard
    repairer: Repairer

    def train(self, updates: int) -> None:
        job = self.journal.job
        feed = feed_from(job, self.state.images_seen)
        until = self.state.images_seen + updates * B
        for record in steps(self.state, feed, job.config, until=until):
            self.journal.meter.add(record)

    def order(self, action: Any, cause: str, since: int = 0, **culprit: Any) -> Order:
        now = self.state.images_seen
        return Order(action, Sign(cause, "critical", now, since, f"{cause}.", culprit=culprit))

    def tensors(self) -> dict[str, torch.Tensor]:
        state = self.state
        found = {f"w/{k}": w for k, w in weights_of(state.denoiser).items()}
        moments = optimizer_tensors(state.optimizer, weights_of(state.denoiser))
        found |= {f"o/{k}": w for k, w in moments.items()}
        found |= {f"g/{k}": w for k, w in (state.gate.tensors() if state.gate else {}).items()}
        for std, averages in state.ema.profiles.items():
            found |= {f"{std}/{k}": w for k, w in averages.items()}
        return {k: w.detach().clone() for k, w in found.items()}

    def saved(self) -> list[int]:
        return [int(p.stem) for p in self.journal.job.run.checkpoint_files()]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(tiny.same_bits(one[k], other[k]) for k in one)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Bench]:
    def made(**settings: object) -> Bench:
        job = small.job(tmp_path / "run", small.configured(**settings))
        state = fresh_state(job, lambda text: None)
        journal = Journal(job, state)
        guard = Guard(facts_of(job, state))
        quarantine = Quarantine(small.CLASSES, state.pixel_limit)
        repairer = Repairer(state, journal, guard, quarantine, Rate(B), job.config)
        journal.memory = lambda: {"guard": guard.state(), "quarantine": quarantine.state()}

        def recall(memory: dict[str, Any]) -> None:
            guard.restore(memory["guard"])
            quarantine.restore(memory["quarantine"])

        journal.recall = recall
        return Bench(job.run.root, state, journal, guard, repairer)

    return made


def test_the_factor_on_the_rate_in_closed_form() -> None:
    """Half the rate, rising over 50 updates from the first one on, each counting its images."""
    plain = Rate(B)
    assert [plain.at(n) for n in (0, 8, 10**6)] == [1.0] * 3
    assert not plain.warming(0)
    cut = Rate(B, scale=0.5, plateau=0.25, warm_from=160)
    for update in range(80):
        seen = 160 + update * B
        assert cut.at(seen) == pytest.approx(0.125 * min(1.0, (update + 1) / 50))
        assert cut.warming(seen) == (update < 49)
    other = Rate(1)
    other.restore(json.loads(json.dumps(cut.state())))
    assert other == cut


def test_back_to_the_last_bit_of_a_checkpoint(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.train(2)
    bench.journal.checkpoint()
    then = bench.tensors()
    bench.train(3)
    assert not equal(then, bench.tensors())
    with torch.no_grad():
        for weight in weights_of(bench.state.denoiser).values():
            weight.fill_(torch.nan)
    order = bench.order("rollback", "weights-damaged", since=3 * B)
    assert bench.repairer.carry_out([order]) is True
    assert equal(then, bench.tensors())
    assert (bench.state.images_seen, bench.state.step) == (2 * B, 2)
    (event,) = small.events(bench.root)
    assert event["action"] == "rollback" and event["images_seen"] == 5 * B
    assert (event["cost"]["images"], event["cost"]["back_to"]) == (3 * B, 2 * B)


def test_the_checkpoint_is_from_before_it_began(make: Callable[..., Bench]) -> None:
    """Later ones hold what is to be undone: they go."""
    bench = make()
    bench.journal.checkpoint()
    bench.train(1)
    bench.journal.checkpoint()
    then = bench.tensors()
    bench.train(1)
    bench.journal.checkpoint()
    assert B in bench.saved() and 2 * B in bench.saved()
    bench.repairer.carry_out([bench.order("rollback", "ascent", since=B + 3)])
    assert equal(then, bench.tensors())
    assert max(bench.saved()) == B
    # where all are later, the oldest one has to do
    bench.repairer.carry_out([bench.order("rollback", "ascent", since=0)])
    assert bench.state.images_seen == min(bench.saved())


def test_what_was_learned_of_trouble_is_not_undone(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.journal.checkpoint()
    bench.train(2)
    bench.guard.note_sign(Sign("weights-damaged", "critical", B, 0, "Before."))
    bench.guard.record.strikes[5] = 1
    bench.repairer.quarantine.images.add(9)
    record = json.loads(json.dumps(bench.guard.record_state()))
    (bench.root / "events.jsonl").write_text(
        json.dumps({"images_seen": B, "kind": "ascent", "message": "x", "cause": "ascent"}) + "\n"
    )
    bench.repairer.carry_out([bench.order("rollback", "weights-damaged")])
    assert [e["images_seen"] for e in small.events(bench.root)] == [B, 2 * B]
    assert json.loads(json.dumps(bench.guard.record_state())) == record
    assert bench.repairer.quarantine.images == {9}
    # a kill right now forgets nothing either
    memory = load_tensors(bench.journal.job.run.checkpoint_at(0))[1]["memory"]
    assert memory["guard"]["record"] == record
    assert memory["quarantine"]["images"] == [9]


def test_two_repairs_that_look_alike_are_two_events(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.journal.checkpoint()
    for _ in range(2):
        bench.train(1)
        (order,) = bench.guard.note_sign(
            Sign("weights-damaged", "critical", bench.state.images_seen, 0, "Again.")
        )
        bench.repairer.carry_out([order])
    first, second = small.events(bench.root)
    assert first["cost"].pop("repair") + 1 == second["cost"].pop("repair")
    assert first == second


def test_a_cut_rate_is_half_and_rises_again(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.train(2)
    bench.journal.checkpoint()
    bench.train(1)
    assert bench.repairer.carry_out([bench.order("cut-rate", "divergence", since=3 * B)])
    rate = bench.repairer.rate
    assert (rate.scale, rate.warm_from) == (0.5, 2 * B)
    assert bench.state.lr_scale == pytest.approx(0.5 / 50)
    feed = feed_from(bench.journal.job, bench.state.images_seen)
    record = next(steps(bench.state, feed, bench.journal.job.config, until=small.IMAGES))
    assert record.used_lr == pytest.approx(record.schedule_lr * 0.5 / 50)
    # the second time it falls further, and more than the rise takes back
    bench.repairer.carry_out([bench.order("cut-rate", "divergence", since=3 * B)])
    assert bench.repairer.rate.scale < 0.5


def test_a_rate_that_wanders_is_held_from_now_on(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.train(1)
    bench.state.lr_scale = 1.9
    assert bench.repairer.carry_out([bench.order("hold-rate", "lr-drift")]) is False
    assert bench.repairer.rate.held and bench.state.lr_scale == 1.0
    assert bench.state.images_seen == B


def test_full_precision_goes_back_and_computes_in_it(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.journal.checkpoint()
    bench.state.denoiser.dtype = torch.bfloat16
    bench.train(1)
    assert bench.repairer.carry_out([bench.order("full-precision", "precision-overflow")])
    assert bench.state.denoiser.dtype == torch.float32 and bench.state.images_seen == 0


def test_averages_come_from_a_checkpoint_and_follow_up_to_now(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.train(2)
    bench.journal.checkpoint()
    ((std, averages),) = bench.state.ema.profiles.items()
    weights = weights_of(bench.state.denoiser)
    then = {k: a.clone() for k, a in averages.items()}
    bench.train(3)
    for average in averages.values():
        average.fill_(torch.nan)
    raw = {k: w.detach().clone() for k, w in weights.items()}
    order = bench.order("restore-ema", "ema-damaged", since=4 * B)
    assert bench.repairer.carry_out([order]) is False
    keep = power_beta(std, 5 * B, 3 * B)
    for name, average in averages.items():
        torch.testing.assert_close(average, keep * then[name] + (1 - keep) * raw[name])
    assert all(torch.equal(raw[k], w) for k, w in weights.items())
    assert bench.state.images_seen == 5 * B
    (event,) = small.events(bench.root)
    assert event["cost"] == {"averages_from": 2 * B}


def test_without_a_checkpoint_averages_begin_anew(make: Callable[..., Bench]) -> None:
    bench = make(training__ema_stds=[0.05, 0.1])
    bench.train(2)
    bench.repairer.carry_out([bench.order("restore-ema", "ema-damaged", since=B)])
    for averages in bench.state.ema.profiles.values():
        for name, weight in weights_of(bench.state.denoiser).items():
            assert torch.equal(averages[name], weight)
            assert averages[name].data_ptr() != weight.data_ptr()
    assert small.events(bench.root)[0]["cost"] == {"averages_from": None}


def test_a_damaged_checkpoint_gives_no_averages(make: Callable[..., Bench]) -> None:
    """The one before it does."""
    bench = make()
    bench.journal.checkpoint()
    bench.train(1)
    bench.journal.checkpoint()
    path = bench.journal.job.run.checkpoint_at(B)
    path.write_bytes(path.read_bytes()[:-50])
    bench.train(1)
    bench.repairer.carry_out([bench.order("restore-ema", "ema-damaged", since=2 * B)])
    assert small.events(bench.root)[-1]["cost"] == {"averages_from": 0}


def test_two_strikes(make: Callable[..., Bench]) -> None:
    bench = make()
    for indices in ([3, 4], [4, 5]):
        order = bench.order("skip", "bad-batch", indices=indices)
        assert bench.repairer.carry_out([order]) is False
        bench.train(1)
    assert bench.repairer.quarantine.images == {4}
    assert bench.guard.record.strikes == {3: 1, 4: 2, 5: 1}
    assert {json.dumps(e["cost"]) for e in small.events(bench.root)} == {
        json.dumps({"images": B, "updates": 1})
    }


@pytest.mark.parametrize(
    ("cause", "kind"),
    [("non-finite-input", "non-finite"), ("out-of-range-data", "range"), ("bad-label", "label")],
)
def test_a_kind_of_image_is_screened_for(make: Callable[..., Bench], cause: str, kind: str) -> None:
    bench = make()
    assert bench.repairer.carry_out([bench.order("screen", cause, indices=[7, 8])]) is False
    assert bench.repairer.quarantine.screened == {kind}
    assert bench.repairer.quarantine.images == {7, 8}


def test_constant_images_are_screened_for_and_what_they_did_is_undone(
    make: Callable[..., Bench],
) -> None:
    bench = make()
    bench.journal.checkpoint()
    then = bench.tensors()
    bench.train(2)
    assert bench.repairer.carry_out([bench.order("screen", "constant-data", indices=[7])])
    assert equal(then, bench.tensors())
    assert bench.repairer.quarantine.screened == {"flat"}


def test_to_do_nothing_is_written_down_as_well(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.train(1)
    then = bench.tensors()
    for cause in ("plateau", "constant-data"):
        assert bench.repairer.carry_out([bench.order("none", cause)]) is False
    assert equal(then, bench.tensors())
    assert [e["action"] for e in small.events(bench.root)] == ["none", "none"]


def test_a_stop_ends_on_the_state_from_before(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.train(1)
    bench.journal.checkpoint()
    bench.train(1)
    bench.journal.checkpoint()
    stop = bench.order("stop", "ascent", since=B)
    with pytest.raises(Stopped) as stopped:
        bench.repairer.carry_out([bench.order("rollback", "weight-growth"), stop])
    assert stopped.value.cause == "ascent"
    assert f"{B:,} images is good" in str(stopped.value) and "--resume" in str(stopped.value)
    assert bench.saved() == [B]
    assert [(e["cause"], e["action"]) for e in small.events(bench.root)] == [("ascent", "stop")]


def test_a_stop_without_any_checkpoint_is_a_stop(make: Callable[..., Bench]) -> None:
    bench = make()
    with pytest.raises(Stopped) as stopped:
        bench.repairer.carry_out([bench.order("stop", "ascent")])
    assert stopped.value.cause == "ascent"
    assert "start a new run" in stopped.value.remedy


def test_nothing_to_go_back_to_is_an_error(make: Callable[..., Bench]) -> None:
    bench = make()
    with pytest.raises(ArtifactError, match="no checkpoint to go back to"):
        bench.repairer.carry_out([bench.order("rollback", "ascent")])


def test_half_the_images_at_once_down_to_one(make: Callable[..., Bench]) -> None:
    bench = make()
    for expected in (4, 2, 1):
        bench.repairer.make_room(MemoryError())
        assert bench.state.micro_batch == expected
    with pytest.raises(Stopped) as stopped:
        bench.repairer.make_room(MemoryError())
    assert stopped.value.cause == "out-of-memory"
    assert [e["action"] for e in small.events(bench.root)] == ["halve-micro-batch"] * 3 + ["stop"]


def test_where_nothing_may_be_repaired_memory_ends_the_run(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.guard.policy = "warn"
    with pytest.raises(Stopped, match="no memory for 8 images") as stopped:
        bench.repairer.make_room(MemoryError())
    assert "training.micro_batch" in stopped.value.remedy
    assert bench.state.micro_batch is None
