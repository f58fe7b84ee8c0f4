"""Shared by all tests: poise first, so that its thread settings hold before torch loads."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

# Features and encoders of the tests are not for the cache of whoever runs them.
os.environ["POISE_CACHE"] = tempfile.mkdtemp(prefix="poise-tests-")

if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core: one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import poise  # noqa: F401

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell does so to what it puts behind
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run on the digits; read it, do not change it."""
    import tiny

    root = tmp_path_factory.mktemp("undisturbed") / "run"
    images = str(tiny.IMAGES)
    options = ["--run", str(root), "--images", images, *tiny.set_options()]
    assert tiny.call("train", "digits", *options) == 0
    return root


def pytest_sessionfinish() -> None:
    """Each process takes its own cache away."""
    shutil.rmtree(os.environ["POISE_CACHE"], ignore_errors=True)
