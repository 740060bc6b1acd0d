"""What adapters of frameworks share: fields, engines, response formats, tool names, metadata."""

from stars_engine.integrations.chat_defaults import (
    MAX_ANSWER_TOKENS,
    chat_sampling,
    warn_of_cut_calls,
)
from stars_engine.integrations.fields import MAX_ENGINES, UNSET, EngineFields, Unset
from stars_engine.integrations.metadata import (
    account_of,
    digest_of,
    identity,
    name_of_model,
    num_rejected_tokens,
    plain,
    short_identity,
    usage_of,
)
from stars_engine.integrations.other_names import OTHER_NAMES, REMOTE, own_names
from stars_engine.integrations.response_formats import (
    describes,
    grammar_of_response_format,
    grammar_of_schema,
)
from stars_engine.integrations.streams import asettled, refuse_several_answers, settled
from stars_engine.integrations.tool_checks import check_tools, lenient
from stars_engine.integrations.tool_names import ToolNames, read_tool_choice

__all__ = [
    "MAX_ANSWER_TOKENS",
    "MAX_ENGINES",
    "OTHER_NAMES",
    "REMOTE",
    "UNSET",
    "EngineFields",
    "ToolNames",
    "Unset",
    "account_of",
    "asettled",
    "chat_sampling",
    "check_tools",
    "describes",
    "digest_of",
    "grammar_of_response_format",
    "grammar_of_schema",
    "identity",
    "lenient",
    "name_of_model",
    "num_rejected_tokens",
    "own_names",
    "plain",
    "read_tool_choice",
    "refuse_several_answers",
    "settled",
    "short_identity",
    "usage_of",
    "warn_of_cut_calls",
]
