"""`python -m stars_engine.cli` is the command `stars` too."""

from __future__ import annotations

from stars_engine.cli import main

if __name__ == "__main__":
    main()
