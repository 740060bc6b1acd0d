"""STARS for LlamaIndex, by the import path of its integrations."""

from llamaindex_stars import StarsLLM

__all__ = ["StarsLLM"]
