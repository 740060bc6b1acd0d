"""Load what is needed locally of a model behind a server: its tokenizer."""

from __future__ import annotations

from typing import Any

from stars_engine.config.models import Checkpoint
from stars_engine.config.servers import Server
from stars_engine.loading.models import load_tokenizer


def tokenizer_source(server: Server) -> Checkpoint:
    """Return the source of a served model's tokenizer."""
    name = server.tokenizer_name_or_path
    # As `tokenizer_name_or_path`, a directory may hold the tokenizer alone.
    return Checkpoint(name_or_path=name, tokenizer_name_or_path=name, revision=server.revision)


def load_served_tokenizer(server: Server) -> Any:
    """Load the tokenizer of a served model.

    Raises:
        ModelLoadError: There is no tokenizer, or it cannot be read.
    """
    return load_tokenizer(tokenizer_source(server))
