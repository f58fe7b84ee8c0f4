"""Signals that ask to stop are heard where nothing is lost by it."""

import os
import signal
import threading

import pytest

from poise.signals import Caught, StopNow, catch_signals, terminate_as_interrupt

BOTH = (signal.SIGINT, signal.SIGTERM)


def send(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def _handlers_come_back() -> object:
    before = [signal.getsignal(s) for s in BOTH]
    yield
    assert [signal.getsignal(s) for s in BOTH] == before


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_is_noted_and_work_goes_on(number: signal.Signals) -> None:
    with catch_signals() as caught:
        caught.phase = lambda: "checkpoint"
        assert caught.names == []
        send(number)
        assert caught.names == [number.name]
    assert caught.during == "checkpoint"


def test_work_that_changes_nothing_is_broken_off_at_once() -> None:
    done = []

    def work() -> None:
        done.append("begun")
        send()
        done.append("ended")

    with catch_signals() as caught:
        caught.phase = lambda: "grid"
        with pytest.raises(StopNow), caught.breaking():
            work()
        assert not caught.breakable
    assert done == ["begun"] and caught.during == "grid"


def test_a_signal_from_before_is_heard_when_such_work_begins() -> None:
    with catch_signals() as caught:
        send()
        with pytest.raises(StopNow), caught.breaking():
            raise AssertionError("it must not begin")


def test_after_such_work_a_signal_is_only_noted() -> None:
    with catch_signals() as caught:
        with caught.breaking():
            pass
        send()
        assert caught.names == ["SIGTERM"]


def test_an_error_in_such_work_ends_it_as_well() -> None:
    caught = Caught()
    with pytest.raises(ZeroDivisionError), caught.breaking():
        raise ZeroDivisionError
    assert not caught.breakable


def test_the_phase_is_that_of_the_first_signal() -> None:
    phases = iter(["validation", "step"])
    with catch_signals() as caught:
        caught.phase = lambda: next(phases)
        send()
        send()
    assert caught.during == "validation" and caught.names == ["SIGTERM", "SIGTERM"]


def test_who_presses_ctrl_c_twice_means_it() -> None:
    with catch_signals() as caught:
        send()
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert caught.names == ["SIGTERM"]


def test_a_stop_is_no_error_that_somebody_takes_for_his_own() -> None:
    assert not issubclass(StopNow, Exception)


def test_other_threads_leave_signals_to_their_owner() -> None:
    seen: list[object] = []

    def work() -> None:
        with catch_signals() as caught, terminate_as_interrupt():
            seen.append([signal.getsignal(s) for s in BOTH])
            with caught.breaking():
                seen.append(caught.names)

    before = [signal.getsignal(s) for s in BOTH]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, []]


def test_terminated_is_as_interrupted() -> None:
    with pytest.raises(KeyboardInterrupt), terminate_as_interrupt():
        send()


def test_within_it_signals_can_be_caught_for_a_while() -> None:
    with terminate_as_interrupt():
        with catch_signals() as caught:
            send()
        assert caught.names == ["SIGTERM"]
        with pytest.raises(KeyboardInterrupt):
            send()
