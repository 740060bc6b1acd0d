"""STARS for LlamaIndex: a `CustomLLM` that aligns text during generation.

Importing this package loads neither models nor torch.
"""

from stars_engine.errors import needs_extra

with needs_extra("llamaindex"):
    from llamaindex_stars.llm import StarsLLM

__all__ = ["StarsLLM"]
