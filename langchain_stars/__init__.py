"""STARS for LangChain: a `BaseLLM` and a chat model that align text during generation.

Importing this package loads neither models nor torch.
"""

from stars_engine.errors import needs_extra

with needs_extra("langchain"):
    from langchain_stars.chat_model import ChatStars
    from langchain_stars.errors import StarsContextOverflowError
    from langchain_stars.llm import StarsLLM
    from langchain_stars.refusals import StarsRefusalError, refusal_of

__all__ = [
    "ChatStars",
    "StarsContextOverflowError",
    "StarsLLM",
    "StarsRefusalError",
    "refusal_of",
]
