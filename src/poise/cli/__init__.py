"""The command line: arguments in, one call of `poise.api`, an exit code out."""

from poise.cli.entry import app, main

__all__ = ["app", "main"]
