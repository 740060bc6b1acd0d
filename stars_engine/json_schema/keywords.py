"""Keywords of our own in JSON schemas."""

from __future__ import annotations

# Why a grammar cannot write values of a type. The reader refuses it by name.
UNSUPPORTED = "x-unsupported"
# The largest number of decimal places of a decimal number. `multipleOf` would not do: validators
# divide floats, which are not exact.
DECIMAL_PLACES = "x-decimal-places"
