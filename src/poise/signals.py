"""Signals that ask a run to stop, so that it stops after its state was saved."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


class StopNow(BaseException):
    """Raised out of work that changes nothing, so that a stop is heard at once."""


@dataclass
class Caught:
    """The signals that came, and whether the work of the moment may be broken off."""

    names: list[str] = field(default_factory=list)
    breakable: bool = False
    phase: Callable[[], str] = field(default=lambda: "step")  # asked when the first signal comes
    during: str = ""  # the phase in which it came

    @contextmanager
    def breaking(self) -> Iterator[None]:
        """Work that changes nothing: a signal ends it with `StopNow`, also one that came before."""
        if self.names:
            raise StopNow
        self.breakable = True
        try:
            yield
        finally:
            self.breakable = False


@contextmanager
def catch_signals() -> Iterator[Caught]:
    """SIGINT and SIGTERM are noted instead of ending the process; a second SIGINT ends it."""
    caught = Caught()

    def note(number: int, _: object) -> None:
        if caught.names and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.during = caught.during or caught.phase()
        caught.names.append(signal.Signals(number).name)
        if caught.breakable:
            caught.breakable = False
            raise StopNow

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
