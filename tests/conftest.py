"""Shared by all tests: poise first, so that its thread settings hold before torch loads."""

from pathlib import Path

import pytest

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
