"""Fixtures of all tests of fetching."""

from fake_sources import programs, server

__all__ = ["programs", "server"]
