"""What a request to the REST API may be like: its body, and the parameters of its query.

The routes come in. A body is JSON of at most 256 KiB that can be read in one way only: no member twice, no NaN, no half
of a pair. A write without the JSON media type is refused, so that no page of a browser can send one unasked.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlencode

import anyio
from starlette.requests import ClientDisconnect, Request

from composition.api.problems import Refusal, Wrong, invalid

MAX_BODY_BYTES = 256 * 1024
MAX_PAGE = 1000
_BODY_SECONDS = 30.0
_LONGEST_CURSOR = 256
JSON_TYPE, MERGE_PATCH_TYPE = "application/json", "application/merge-patch+json"

Item = TypeVar("Item")


async def json_object(request: Request, media_types: Sequence[str] = (JSON_TYPE,)) -> dict[str, Any]:
    """The JSON object of a request's body.

    Raises:
        Refusal: 400, 408, 413 or 415.
    """
    check_media_type(request, media_types)
    raw = await _body(request)
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_once_each, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        raise Refusal(400, "The body is not JSON, or has a member twice. Send one JSON object in UTF-8.") from None
    if not isinstance(value, dict):
        raise Refusal(400, "The body is not an object. Send one JSON object.")
    return value


def check_media_type(request: Request, media_types: Sequence[str]) -> None:
    """
    Raises:
        Refusal: 415, the body is said to be something else, or to be packed.
    """
    named = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    packed = request.headers.get("content-encoding", "identity").strip().lower()
    if named not in media_types or packed != "identity":
        accepted = {"Accept-Post" if request.method == "POST" else "Accept-Patch": ", ".join(media_types)}
        raise Refusal(415, f"Send the body as {' or '.join(media_types)}, not packed.", headers=accepted)


async def _body(request: Request) -> bytes:
    body = bytearray()
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdecimal() and int(declared[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    try:
        with anyio.fail_after(_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise _too_large()
    except TimeoutError:
        raise Refusal(408, "The body did not come in time.", headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise Refusal(400, "The body did not come.") from None
    return bytes(body)


def _too_large() -> Refusal:
    return Refusal(413, f"A body may have {MAX_BODY_BYTES:,} bytes.", headers={"Connection": "close"})


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a member stands twice")
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def merged(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON merge patch, applied (RFC 7396)."""
    result = dict(base)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            inner = result.get(key)
            result[key] = merged(inner if isinstance(inner, dict) else {}, value)
        else:
            result[key] = value
    return result


def number(request: Request, name: str, default: int | None, *, least: int, most: int) -> int | None:
    """A whole number of the query.

    Raises:
        Refusal: 400, it is none, or out of its range.
    """
    text = _one(request, name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and least <= int(text) <= most):
        raise invalid([Wrong(name, f"must be a whole number from {least} to {most}")])
    return int(text)


def flag(request: Request, name: str) -> bool:
    """
    Raises:
        Refusal: 400, it is neither true nor false.
    """
    text = _one(request, name) or "false"
    if text not in ("true", "false"):
        raise invalid([Wrong(name, "must be true or false")])
    return text == "true"


def _one(request: Request, name: str) -> str | None:
    given = request.query_params.getlist(name)
    if len(given) > 1:
        raise invalid([Wrong(name, "stands twice. Keep one")])
    return given[0] if given else None


def page(request: Request, items: Iterable[tuple[str, Item]]) -> tuple[list[Item], dict[str, str]]:
    """One page of what is sorted by name, and the header that leads to the next. Without `limit` it is everything.

    Raises:
        Refusal: 400, `limit` or `cursor` cannot be used.
    """
    limit, after = number(request, "limit", None, least=1, most=MAX_PAGE), _cursor(request)
    rest = [(name, item) for name, item in sorted(items, key=lambda each: each[0]) if name > after]
    shown = rest if limit is None else rest[:limit]
    headers = {}
    if len(shown) < len(rest):
        cursor = base64.urlsafe_b64encode(shown[-1][0].encode()).decode().rstrip("=")
        query = urlencode({"limit": limit, "cursor": cursor})
        headers["Link"] = f'<{request.url.path}?{query}>; rel="next"'
    return [item for _, item in shown], headers


def _cursor(request: Request) -> str:
    text = _one(request, "cursor")
    if text is None:
        return ""
    try:
        if not text or len(text) > _LONGEST_CURSOR:
            raise ValueError("no cursor")
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode()
    except (ValueError, binascii.Error):
        raise invalid([Wrong("cursor", "must be the one of the link to the next page")]) from None
