"""Signals that ask a run to stop, so that it stops after its state was saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def catch_signals() -> Iterator[list[str]]:
    """SIGINT and SIGTERM fill the list instead of ending the process; a second SIGINT ends it."""
    caught: list[str] = []

    def note(number: int, _: object) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number).name)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals stay with whoever owns it
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that the run's status is written either way."""

    def interrupt(_: int, __: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
