"""STARS for LangChain: text aligned while it is generated, as a `BaseLLM`.

Importing this loads neither models nor torch.
"""

from stars_engine.errors import needs_extra

with needs_extra("langchain"):
    from langchain_stars.llm import StarsLLM

__all__ = ["StarsLLM"]
