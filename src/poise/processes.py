"""Whether the process that left its name in a file is still there."""

import os
import platform
import uuid
from pathlib import Path
from typing import Any

import psutil

_SAME = 2.0  # seconds by which two readings of one start may differ


def this_process() -> dict[str, Any]:
    """What tells this process from all others, for `is_running` to read.

    Returns:
        `machine`; `pid`; `started` in seconds since 1970, since numbers are given anew.
    """
    return {
        "machine": _machine(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
    }


def is_running(written: Any) -> bool | None:
    """Whether a process is there that is this very one.

    Args:
        written: what `this_process` returned there.

    Returns:
        None where that cannot be known: it is of another machine or a user who hides it, or
        something else was written.
    """
    try:
        machine, pid = written["machine"], written["pid"]
        started = float(written["started"])
        if machine != _machine() or type(pid) is not int:
            return None
        process = psutil.Process(pid)
        if abs(process.create_time() - started) > _SAME:
            return False
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except (KeyError, OverflowError, TypeError, ValueError, psutil.AccessDenied):
        return None


def _machine() -> str:
    """What processes have in common that see each other's numbers; names repeat in containers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{platform.node()} {uuid.getnode()}"
