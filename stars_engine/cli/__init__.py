"""The command `stars`."""

from stars_engine.cli.app import main

__all__ = ["main"]
