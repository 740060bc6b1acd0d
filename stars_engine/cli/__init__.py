"""The command `stars`."""

from stars_engine.cli.interrupts import run_interruptible

__all__ = ["main"]


def main() -> None:
    """Run the command line; see `stars_engine.cli.app`."""
    run_interruptible(_run)


def _run() -> None:
    from stars_engine.cli.app import main as run  # takes long enough to be interrupted

    run()
