"""STARS for LangChain: text aligned while it is generated, as a `BaseLLM` and as a chat model.

Importing this loads neither models nor torch.
"""

from stars_engine.errors import needs_extra

with needs_extra("langchain"):
    from langchain_stars.chat_model import ChatStars
    from langchain_stars.llm import StarsLLM
    from langchain_stars.refusals import StarsRefusalError, refusal_of

__all__ = ["ChatStars", "StarsLLM", "StarsRefusalError", "refusal_of"]
