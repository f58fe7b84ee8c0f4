"""The exceptions Poise raises on purpose; each says what was found, what was expected, what to do.

PoiseError                exit code 1
├── UsageError            exit code 2: a wrong argument, setting or name
├── DataError             the images: unreadable, too few, wrong shape
├── ArtifactError         a file of a run: missing, damaged, of another kind
├── TrainingError         the run cannot go on
│   └── Stopped           the guard ended it cleanly: the reason, and how to go on
└── Interrupted           exit code 130: stopped by a signal, state saved
"""

import difflib
from collections.abc import Iterable


class PoiseError(Exception):
    """A failure with its cause and its remedy, shown to the user as one block without traceback."""

    exit_code = 1

    def __init__(self, found: str, *, expected: str = "", remedy: str = "") -> None:
        """
        Args:
            found: what Poise met, with the name of the file or setting.
            expected: what it needed instead.
            remedy: what the user can do now.
        """
        self.found, self.expected, self.remedy = found, expected, remedy
        parts = [found]
        if expected:
            parts.append(f"Expected: {expected}")
        if remedy:
            parts.append(f"What to do: {remedy}")
        super().__init__("\n".join(parts))


class UsageError(PoiseError):
    """A wrong argument, an unknown setting, a value out of range."""

    exit_code = 2


class DataError(PoiseError):
    """Images that cannot be used as they are."""


class ArtifactError(PoiseError):
    """A file of a run folder that is missing, damaged, or not what its name says."""


class TrainingError(PoiseError):
    """A run that cannot go on."""


class Stopped(TrainingError):
    """The guard ended the run, after its state was saved; `cause` is a name of the catalogue."""

    cause = ""


class Interrupted(PoiseError):
    """The run was stopped by a signal after its state was saved."""

    exit_code = 130


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint `Did you mean 'x'?` for a misspelt `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else ""
