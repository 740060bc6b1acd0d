"""`python -m stars_engine` is the command `stars`."""

from __future__ import annotations

from stars_engine.cli import main

if __name__ == "__main__":
    main()
