"""Convert JSON schemas to grammars, and report what a grammar cannot express."""

from stars_engine.json_schema.held import HeldSchema, Unheld
from stars_engine.json_schema.layout import SPACED, Layout
from stars_engine.json_schema.reading import read_schema
from stars_engine.json_schema.rules import Rules, UnsatisfiableError

__all__ = ["SPACED", "HeldSchema", "Layout", "Rules", "Unheld", "UnsatisfiableError", "read_schema"]
