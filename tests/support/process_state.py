"""The state of the process that tests share, to see whether one of them leaves it changed."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
from typing import Any


def process_state() -> dict[str, Any]:
    """Return what a test must leave as it was, by name."""
    state: dict[str, Any] = {
        "working directory": os.getcwd(),  # noqa: PTH109 - as a string
        "hooks": (sys.excepthook, threading.excepthook),
        "recursion limit": sys.getrecursionlimit(),
        "switch interval": sys.getswitchinterval(),
        "garbage collection": gc.isenabled(),
        "handlers of signals": tuple(
            signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
        ),
        "root logger": (logging.root.level, logging.root.disabled, logging.root.manager.disable),
    }
    if torch := sys.modules.get("torch"):
        state["torch"] = (
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
        )
    if llama_index := sys.modules.get("llama_index.core"):
        names = ("_llm", "_embed_model", "_tokenizer")
        settings = {name: getattr(llama_index.Settings, name) for name in names}
        # LlamaIndex sets its default, of tiktoken, when it first counts tokens.
        tokenizer = llama_index.global_tokenizer
        settings["global_tokenizer"] = None if "<Encoding" in repr(tokenizer) else tokenizer
        state["LlamaIndex"] = settings
    if langchain := sys.modules.get("langchain_core.globals"):
        state["LangChain"] = (
            langchain.get_llm_cache(),
            langchain.get_debug(),
            langchain.get_verbose(),
        )
    return state


def environment() -> dict[str, str]:
    """Return the variables that tests see; pytest names the current test in one of them."""
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
