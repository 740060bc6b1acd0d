"""The punctuation and whitespace of JSON, as terminals of a grammar."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """The punctuation and whitespace of JSON.

    Attributes:
        comma: Text between items and between properties.
        colon: Text between a name and its value.
        blank: A regular expression for optional whitespace between any two parts, or None.
    """

    comma: str = ","
    colon: str = ":"
    blank: str | None = None

    def terminals(self, prefix: str) -> list[str]:
        """Return the terminals for punctuation."""
        blank = "" if self.blank is None else f"({self.blank})?"

        def line(name: str, text: str, *, before: bool = True, after: bool = True) -> str:
            around = (blank if before else "", blank if after else "")
            regex = "".join(f"\\x{{{ord(letter):x}}}" for letter in text)
            return f"{prefix}_{name}: /{around[0]}{regex}{around[1]}/"

        return [
            line("COMMA", self.comma),
            line("COLON", self.colon),
            *(line(f"OPEN_{kind}", text, before=False) for kind, text in (("O", "{"), ("A", "["))),
            *(line(f"CLOSE_{kind}", text, after=False) for kind, text in (("O", "}"), ("A", "]"))),
        ]


# The bound keeps small models from writing whitespace forever.
SPACED = Layout(blank=r"\x20|\x0A[\x20\x09]{0,32}")
