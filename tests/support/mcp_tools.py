"""Tools as MCP servers list them: a file system, git, fetch, issues and pages of notes."""

from __future__ import annotations

from typing import Any

DRAFT_7 = "http://json-schema.org/draft-07/schema#"

READ_FILE = {
    "name": "read_text_file",
    "title": "Read Text File",
    "description": "Read the complete contents of a file as text.",
    "inputSchema": {
        "$schema": DRAFT_7,
        "type": "object",
        "properties": {
            "path": {"type": "string", "maxLength": 8},
            "tail": {"type": "number", "description": "only the last N lines"},
            "head": {"type": "number", "description": "only the first N lines"},
        },
        "required": ["path"],
        "additionalProperties": False,
    },
    "annotations": {"readOnlyHint": True},
}
EDIT_FILE = {
    "name": "edit_file",
    "description": "Make line-based edits to a text file.",
    "inputSchema": {
        "$schema": DRAFT_7,
        "type": "object",
        "properties": {
            "path": {"type": "string", "maxLength": 8},
            "edits": {
                "type": "array",
                "maxItems": 2,
                "items": {
                    "type": "object",
                    "properties": {
                        "oldText": {"type": "string", "maxLength": 4},
                        "newText": {"type": "string", "maxLength": 4},
                    },
                    "required": ["oldText", "newText"],
                    "additionalProperties": False,
                },
            },
            "dryRun": {"type": "boolean", "default": False},
        },
        "required": ["path", "edits"],
        "additionalProperties": False,
    },
}
LIST_ALLOWED = {
    "name": "list_allowed_directories",
    "description": "Returns the directories that this server may access.",
    "inputSchema": {"type": "object", "properties": {}, "required": []},
}
DIRECTORY_TREE = {
    "name": "directory_tree",
    "inputSchema": {
        "type": "object",
        "properties": {"root": {"$ref": "#/$defs/Entry"}},
        "required": ["root"],
        "$defs": {
            "Entry": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 4},
                    "type": {"enum": ["file", "directory"]},
                    "children": {
                        "type": "array",
                        "maxItems": 1,
                        "items": {"$ref": "#/$defs/Entry"},
                    },
                },
                "required": ["name", "type"],
            }
        },
    },
}
GIT_LOG = {
    "name": "git_log",
    "description": "Shows the commit logs",
    "inputSchema": {
        "title": "GitLog",
        "type": "object",
        "properties": {
            "repo_path": {"title": "Repo Path", "type": "string", "maxLength": 6},
            "max_count": {"title": "Max Count", "type": "integer", "default": 10},
            "start_timestamp": {
                "anyOf": [{"type": "string", "maxLength": 6}, {"type": "null"}],
                "default": None,
                "title": "Start Timestamp",
            },
        },
        "required": ["repo_path"],
    },
}
FETCH = {
    "name": "fetch",
    "description": "Fetches a URL from the internet.",
    "inputSchema": {
        "description": "Parameters for fetching a URL.",
        "title": "Fetch",
        "type": "object",
        "properties": {
            "url": {"type": "string", "minLength": 1, "maxLength": 12},
            "max_length": {
                "type": "integer",
                "exclusiveMinimum": 0,
                "exclusiveMaximum": 1_000_000,
                "default": 5000,
            },
            "raw": {"type": "boolean", "default": False},
        },
        "required": ["url"],
    },
}
CREATE_ISSUE = {
    "name": "issues/create",
    "description": "Create a new issue in a repository.",
    "inputSchema": {
        "type": "object",
        "properties": {
            "owner": {"type": "string", "maxLength": 4},
            "labels": {
                "type": "array",
                "maxItems": 2,
                "items": {"type": "string", "maxLength": 4},
            },
            "state": {"type": "string", "enum": ["open", "closed"]},
            "assignee": {
                "oneOf": [{"type": "integer"}, {"type": "null"}],
            },
        },
        "required": ["owner", "state"],
    },
    "_meta": {"server": "issues"},
}
CREATE_PAGE = {
    "name": "post-page",
    "description": "Create a page",
    "inputSchema": {
        "type": "object",
        "properties": {"parent": {"anyOf": [{"$ref": "#/$defs/parent"}, {"enum": ["root"]}]}},
        "required": ["parent"],
        "$defs": {
            "page": {
                "type": "object",
                "properties": {"page_id": {"type": "string", "format": "uuid"}},
                "required": ["page_id"],
                "additionalProperties": True,
            },
            "parent": {
                "oneOf": [
                    {"$ref": "#/$defs/page"},
                    {
                        "type": "object",
                        "properties": {"type": {"const": "workspace"}},
                        "required": ["type"],
                        "additionalProperties": True,
                    },
                ]
            },
        },
    },
}
TOOLS: list[dict[str, Any]] = [
    READ_FILE,
    EDIT_FILE,
    LIST_ALLOWED,
    DIRECTORY_TREE,
    GIT_LOG,
    FETCH,
    CREATE_ISSUE,
    CREATE_PAGE,
]
