"""The least that a backend's results must be like; `lines` holds them against it.

The SDK's own models refuse kinds of content that are newer than themselves. Whether content is understood is for the
client at the end to judge: here a block must say what kind it is, and hold what that kind cannot do without, if it is
one of those that MCP has.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, model_validator


class _Contents(BaseModel):
    uri: str


class _Block(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: str

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> _Block:
        held = self.model_extra or {}
        for key in _NEEDED.get(self.type, ()):
            if not isinstance(held.get(key), str):
                raise ValueError(f"'{key}' must be text")
        if self.type == "resource":
            _Contents.model_validate(held.get("resource"))
        return self


_NEEDED: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "image": ("data", "mimeType"),
    "audio": ("data", "mimeType"),
    "resource_link": ("uri", "name"),
}


class _Message(BaseModel):
    role: str
    content: _Block | list[_Block]


class _ToolResult(BaseModel):
    content: list[_Block]


class _PromptResult(BaseModel):
    messages: list[_Message]


class _ReadResult(BaseModel):
    contents: list[_Contents]


SHAPES: Mapping[str, type[BaseModel]] = {
    "tools/call": _ToolResult,
    "prompts/get": _PromptResult,
    "resources/read": _ReadResult,
}
"""By the method that they answer."""
