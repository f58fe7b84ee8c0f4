"""Poise: train diffusion models on your own images and keep the run on an even keel."""

import os
from typing import TYPE_CHECKING, Any

from poise.errors import PoiseError

if TYPE_CHECKING:
    from poise.api import (
        Run,
        audit_images,
        compare,
        evaluate_samples,
        load,
        make_reference,
        prepare_images,
        train,
        tune,
    )

# Threads that spin long while they wait make a step many times slower as soon as another process
# wants the same cores. Must be said before torch loads; docs/decisions/0002.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__all__ = [
    "PoiseError",
    "Run",
    "audit_images",
    "compare",
    "evaluate_samples",
    "load",
    "make_reference",
    "prepare_images",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Import the toolkit at first use, so that `poise --help` answers at once."""
    if name in __all__:
        from poise import api

        return getattr(api, name)
    raise AttributeError(f"module 'poise' has no attribute {name!r}")
