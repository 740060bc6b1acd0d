"""STARS for LlamaIndex: text aligned while it is generated, as a `CustomLLM`.

Importing this loads neither models nor torch.
"""

from stars_engine.errors import needs_extra

with needs_extra("llamaindex"):
    from llamaindex_stars.llm import StarsLLM

__all__ = ["StarsLLM"]
