"""Shared by all tests: poise first, so that its thread settings hold before torch loads."""

import os
from pathlib import Path

import pytest

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
