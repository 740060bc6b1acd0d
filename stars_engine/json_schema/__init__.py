"""Convert JSON schemas to grammars, and report what a grammar cannot express."""

from stars_engine.json_schema.layout import SPACED, Layout
from stars_engine.json_schema.reading import read_schema
from stars_engine.json_schema.rules import Rules, UnsatisfiableError
from stars_engine.json_schema.supported import SupportedSchema, Unsupported

__all__ = [
    "SPACED",
    "Layout",
    "Rules",
    "SupportedSchema",
    "UnsatisfiableError",
    "Unsupported",
    "read_schema",
]
