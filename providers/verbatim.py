"""What goes to the client word for word: results, errors and lists as the backend sent them.

The SDK shapes every answer by its own models, which drop the fields that they do not know and refuse new kinds of
content, and FastMCP turns a backend's error into a tool's text. So our components leave what is to be sent here, in the
slot of the request that runs, and return the least that FastMCP takes; `word_for_word`, outermost in the SDK's own
middleware, puts it in place. Long lists are cut into pages here, by bytes. On FastMCP 3.4 there is no such middleware:
nobody has a slot, and components answer with the SDK's models.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from fastmcp import FastMCP

from providers import lines, low_level
from providers.lines import Json, MCPError

INVALID_PARAMS = -32602

PAGE_BYTES = 1_000_000
"""JSON in one page of a list. The SDK's client takes no event of more than 1 MiB; shorter lists are one page, as many
clients read no second one."""

_LISTS = {
    "tools/list": "tools",
    "resources/list": "resources",
    "resources/templates/list": "resourceTemplates",
    "prompts/list": "prompts",
}
_ENVELOPE = ("resultType", "ttlMs", "cacheScope")
"""What our own connection to the client adds in the 2026-07-28 era, beside who we are, in `_meta`."""


@dataclass(slots=True)
class _Slot:
    """What one request is to be answered with."""

    result: Json | None = None
    error: MCPError | None = None
    shown: list[tuple[Json, int]] = field(default_factory=list)


_slot: ContextVar[_Slot | None] = ContextVar("apollos_answer", default=None)


def answer(result: Json) -> bool:
    """Have the current request answered with this. False where that cannot be: the caller builds a model of it."""
    slot = _slot.get()
    if slot is not None:
        slot.result = result
    return slot is not None


def refuse(error: MCPError) -> None:
    """Have the current request answered with this error, code and data included, whatever FastMCP makes of it."""
    slot = _slot.get()
    if slot is not None:
        slot.error = error


def show(form: Json, size: Callable[[], int]) -> bool:
    """Have the current list show this next, `size` bytes of JSON. False as for `answer`."""
    slot = _slot.get()
    if slot is not None:
        slot.shown.append((form, size()))
    return slot is not None


def install(server: FastMCP[Any]) -> None:
    """Let this server's answers go out word for word, where the SDK allows it."""
    low_level.wrap_requests(server, word_for_word)


async def word_for_word(context: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
    """The SDK's middleware: the answer as it was left in the slot, in the envelope of the client's era.

    Raises:
        MCPError: the one that was left, or the cursor is none of ours.
    """
    slot = _Slot()
    token = _slot.set(slot)
    try:
        given = await call_next(context)
    finally:
        _slot.reset(token)
    if slot.error is not None:
        raise slot.error
    if not isinstance(given, dict):
        return given
    if key := _LISTS.get(context.method):
        return given | _page(key, slot.shown, (context.params or {}).get("cursor"))
    return given if slot.result is None else _enveloped(slot.result, given)


def _enveloped(result: Json, given: Json) -> Json:
    envelope = {key: given[key] for key in _ENVELOPE if key in given}
    meta = {**(given.get("_meta") or {}), **(result.get("_meta") or {})}
    return envelope | result | ({"_meta": meta} if meta else {})


def _page(key: str, shown: list[tuple[Json, int]], cursor: Any) -> Json:
    start = 0 if cursor is None else _position(cursor)
    if start > len(shown):
        raise _invalid_cursor()
    room, page = PAGE_BYTES, list[Json]()
    for form, size in shown[start:]:
        room -= size
        if room < 0 and page:
            return {key: page, "nextCursor": _cursor(start + len(page))}
        page.append(form)
    return {key: page}


def _cursor(position: int) -> str:
    return urlsafe_b64encode(f"from {position}".encode()).decode()


def _position(cursor: Any) -> int:
    try:
        word, _, number = urlsafe_b64decode(str(cursor)).decode().partition(" ")
        if word == "from" and number.isascii() and number.isdecimal():
            return int(number[:9])
    except (ValueError, binascii.Error):
        pass
    raise _invalid_cursor()


def _invalid_cursor() -> MCPError:
    return lines.mcp_error(INVALID_PARAMS, "Invalid cursor")
