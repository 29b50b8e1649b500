"""What the server `flows` has, and says: the words that a client must see again."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

HANDSHAKE, NEWEST = "2025-11-25", "2026-07-28"
OF_MCP = "io.modelcontextprotocol/"
LEVELS = ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"]
PAGE = 4

CHANGED = {kind: f"notifications/{kind}/list_changed" for kind in ("tools", "prompts", "resources")}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {"place": {"$anchor": "place", "type": "object", "properties": {"street": {"type": "string"}}}},
    "properties": {"place": {"$ref": "#/$defs/place"}, "n": {"type": "number"}},
    "if": {"required": ["n"]},
    "then": {"required": ["place"]},
    "additionalProperties": True,
}
FULL_TOOL = {
    "name": "describe",
    "description": "Has no title, and everything else.",
    "inputSchema": SCHEMA,
    "outputSchema": {"type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]},
    "annotations": {"readOnlyHint": True, "openWorldHint": False},
    "icons": [{"src": f"data:image/png;base64,{PIXEL}", "mimeType": "image/png", "sizes": ["1x1"]}],
    "_meta": {"example.com/own": {"deep": [1, None, {"x": "y"}]}},
}
DESCRIPTION = {
    "content": [
        {"type": "text", "text": "h\u00e9 \u2028 \U0001f600", "annotations": {"audience": ["user"], "priority": 0.5}},
        {"type": "image", "data": PIXEL, "mimeType": "image/png", "_meta": {"example.com/own": 1}},
        {"type": "audio", "data": "UklGRg==", "mimeType": "audio/wav"},
        {"type": "resource_link", "uri": "flow://text", "name": "text", "size": 5, "mimeType": "text/plain"},
        {"type": "resource", "resource": {"uri": "flow://text", "mimeType": "text/plain", "text": "hello"}},
    ],
    "structuredContent": {"n": 1.5, "deep": [{"null": None}]},
    "isError": False,
    "_meta": {"example.com/own": [True, None]},
}
TEXT = {"uri": "flow://text", "name": "text", "title": "A text", "mimeType": "text/plain", "size": 5}
BLOB = {"uri": "flow://blob", "name": "blob", "mimeType": "image/png", "annotations": {"priority": 1.0}}
TEMPLATE = {"uriTemplate": "flow://item/{id}", "name": "item", "description": "One item.", "mimeType": "text/plain"}
PROMPT = {"name": "sum-up", "title": "Sum up", "arguments": [{"name": "topic", "required": True}]}
SAMPLING = {
    "messages": [{"role": "user", "content": {"type": "image", "data": PIXEL, "mimeType": "image/png"}}],
    "modelPreferences": {"hints": [{"name": "claude"}], "costPriority": 0.1},
    "systemPrompt": "Be brief.",
    "temperature": 0.5,
    "maxTokens": 99,
    "stopSequences": ["stop"],
    "tools": [{"name": "look", "inputSchema": {"type": "object"}}],
    "toolChoice": {"mode": "auto"},
}
FORM = {
    "mode": "form",
    "message": "Who are you?",
    "requestedSchema": {
        "type": "object",
        "properties": {"name": {"type": "string", "title": "Name"}, "age": {"type": "integer", "default": 30}},
        "required": ["name"],
    },
}
URL = {"mode": "url", "message": "Please sign in.", "url": "https://login.example.com/?a=1&b=2"}
CAPABILITIES = {
    "tools": {"listChanged": True},
    "prompts": {"listChanged": True},
    "resources": {"listChanged": True, "subscribe": True},
    "completions": {},
    "logging": {},
}
