"""Shared by all tests: poise first, so that its thread settings hold before torch loads."""

from pathlib import Path

import pytest

import poise  # noqa: F401


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run on the digits, made through the command line; read it, do not change it."""
    import tiny

    root = tmp_path_factory.mktemp("undisturbed") / "run"
    code, output = tiny.finish(
        tiny.start(
            "train", "digits", "--run", str(root), "--images", str(tiny.IMAGES), *tiny.set_options()
        )
    )
    assert code == 0, output
    return root
