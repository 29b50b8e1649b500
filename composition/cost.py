"""What a tool's definition costs a model, which reads it with every question.

The `tools` command and the API come in. Each model counts in its own way; four bytes of JSON to a token is the rule of
thumb, and it is the same for all tools, so that they can be compared. Pure.
"""

from __future__ import annotations

from pydantic_core import to_json

from providers.lines import Json

_BYTES_PER_TOKEN = 4
_READ = ("name", "title", "description", "inputSchema")
"""What a host shows a model of a tool."""


def tokens_of(form: Json) -> int:
    """An estimate in tokens, at least 1."""
    return max(1, len(to_json({key: form[key] for key in _READ if key in form})) // _BYTES_PER_TOKEN)
