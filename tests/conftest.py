"""Shared by all tests: poise first, so that its thread settings hold before torch loads."""

import poise  # noqa: F401
