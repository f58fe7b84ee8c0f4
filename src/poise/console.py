"""What the person in front of the terminal sees: stages and bars; elsewhere, plain lines."""

import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

_PLAIN_SECONDS = 10.0
_OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")  # categories of characters that a terminal acts upon


class Bar:
    """Progress of one piece of work; `show` may be called as often as one likes."""

    def __init__(self, name: str, total: int, console: Console) -> None:
        name = inert(name)
        self._name, self._total, self._console = name, total, console
        self._started = self._said = time.monotonic()
        self._start_at: int | None = None
        self._rich: Progress | None = None
        if console.is_terminal:
            self._rich = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=console,
                transient=True,
            )
            self._task = self._rich.add_task(name, total=total, note="")
            self._rich.start()

    def show(self, done: int, total: int | None = None, note: str = "") -> None:
        """`done` of `total` is reached; `note` stands beside it."""
        self._total, note = total or self._total, inert(note)
        if self._start_at is None:
            self._start_at = done
        if self._rich is not None:
            self._rich.update(self._task, completed=done, total=self._total, note=note)
            return
        now = time.monotonic()
        if now - self._said < _PLAIN_SECONDS:
            return
        self._said = now
        rate = (done - self._start_at) / (now - self._started)
        left = f", {duration((self._total - done) / rate)} left" if rate > 0 else ""
        tail = f", {note}" if note else ""
        line = f"{self._name}: {done:,} of {self._total:,}{left}{tail}"
        self._console.print(line, markup=False, highlight=False)

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._rich is not None:
            self._rich.stop()


class Screen:
    """Prints stages and bars to standard error, or nothing when quiet."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, soft_wrap=True)

    def say(self, text: str) -> None:
        """One line; nothing in `text` is interpreted, neither here nor by the terminal."""
        self._console.print(inert(text), markup=False, highlight=False)

    @contextmanager
    def bar(self, name: str, total: int) -> Iterator[Bar]:
        """A bar for the length of the block."""
        bar = Bar(name, total, self._console)
        try:
            yield bar
        finally:
            bar.close()


def inert(text: str) -> str:
    """`text` with the characters that a terminal obeys written out: `\\u001b[31m`, `\\u000a`.

    File names may hold any of them: to move the cursor, to colour, to begin a line of their own.
    """
    if text.isprintable():
        return text
    return "".join(
        f"\\u{ord(sign):04x}" if unicodedata.category(sign) in _OBEYED else sign for sign in text
    )


def duration(seconds: float) -> str:
    """`3 min 20 s`: a length of time for people."""
    seconds = max(0, round(seconds))
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
