"""Fit guides to a language model: value heads that judge its unfinished answers."""
