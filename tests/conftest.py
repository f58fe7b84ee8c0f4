"""Shared by all tests: poise first, so that its thread settings hold before torch loads."""

import os
import tempfile
from pathlib import Path

import pytest

# Features and encoders of the tests are not for the cache of whoever runs them.
_CACHE = tempfile.TemporaryDirectory(prefix="poise-tests-")
os.environ["POISE_CACHE"] = _CACHE.name

if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core: one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import poise  # noqa: F401


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run on the digits; read it, do not change it."""
    import tiny

    root = tmp_path_factory.mktemp("undisturbed") / "run"
    images = str(tiny.IMAGES)
    options = ["--run", str(root), "--images", images, *tiny.set_options()]
    assert tiny.call("train", "digits", *options) == 0
    return root
