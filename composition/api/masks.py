"""What of a record may hold a secret: how it is hidden in an answer, and found again when the answer is sent back.

`shapes` comes in. Values of `env`, `headers` and `docker_secrets`, arguments (those of tools that are programs, too),
and the user and the query of a `url` are shown as `***`. A write that has `***` in the same place keeps what is stored
there, but never for another server: a header that is sent to one origin is not sent to another because somebody changed
the address.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from providers.resource import McpServerResource

MASK = "***"
_TABLES = ("env", "headers", "docker_secrets")
_LISTS = ("args", "docker_command")

_NOT_STORED = f"has {MASK} where nothing is stored. Send the value"
_ELSEWHERE = f"has {MASK}, which stands for a value of another address. Send the values with the new address"


def masked(resource: McpServerResource) -> McpServerResource:
    """The record without what may hold a secret. It is for showing only."""
    update: dict[str, Any] = {key: dict.fromkeys(getattr(resource, key), MASK) for key in _TABLES}
    update |= {key: (MASK,) * len(getattr(resource, key)) for key in _LISTS}
    update["docker_tools"] = {
        name: tool.model_copy(update={"args": (MASK,) * len(tool.args)}) for name, tool in resource.docker_tools.items()
    }
    if resource.url is not None:
        update["url"] = masked_url(resource.url)
    return resource.model_copy(update=update)


def masked_url(url: str) -> str:
    """A URL without its user, the values of its query and its fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:  # that of a disabled server may hold anything
        return MASK
    _, at, host = parts.netloc.rpartition("@")
    query = "&".join(_masked_pair(pair) for pair in parts.query.split("&") if pair)
    return urlunsplit(
        (parts.scheme, f"{MASK}@{host}" if at else host, parts.path, query, MASK if parts.fragment else "")
    )


def _masked_pair(pair: str) -> str:
    name, equals, _ = pair.partition("=")
    return f"{name}={MASK}" if equals else MASK


def restored(values: dict[str, Any], stored: McpServerResource | None) -> Iterator[tuple[str, str]]:
    """Put what is stored in place of each mask; gives what cannot be, as key and predicate."""
    url = values.get("url")
    if isinstance(url, str) and MASK in url and url != _masked_url_of(stored):
        yield "url", f"has {MASK} and is not the address that is stored. Send it whole"
    elif isinstance(url, str) and MASK in url and stored is not None:
        values["url"] = stored.url
    for key in (*_TABLES, *_LISTS):
        value = values.get(key)
        if not value or MASK not in (value.values() if isinstance(value, Mapping) else value):
            continue
        if stored is not None and _origin(values.get("url")) != _origin(stored.url):
            yield key, _ELSEWHERE
            continue
        kept = _kept(value, getattr(stored, key) if stored is not None else type(value)())
        if kept is None:
            yield key, _NOT_STORED
        else:
            values[key] = kept
    for name, tool in (values.get("docker_tools") or {}).items():
        if MASK in tool.get("args", ()):
            known = stored.docker_tools.get(name) if stored is not None else None
            kept = _kept(tool["args"], known.args if known else ())
            if kept is None:
                yield "docker_tools", _NOT_STORED
            else:
                tool["args"] = kept


def _kept(value: Any, known: Any) -> Any:
    """A table or list with what is known in place of each mask, or None where that is not known."""
    if isinstance(value, Mapping):
        if any(each == MASK and name not in known for name, each in value.items()):
            return None
        return {name: known[name] if each == MASK else each for name, each in value.items()}
    if any(each == MASK and place >= len(known) for place, each in enumerate(value)):
        return None
    return tuple(known[place] if each == MASK else each for place, each in enumerate(value))


def _masked_url_of(stored: McpServerResource | None) -> str | None:
    return masked_url(stored.url) if stored is not None and stored.url is not None else None


def _origin(url: Any) -> tuple[str, str, int | None] | None:
    """Where a URL leads, or None for what is reached in another way."""
    if not isinstance(url, str):
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return ("", url, None)
    default = 443 if parts.scheme == "https" else 80
    return parts.scheme.lower(), (parts.hostname or "").lower(), port or default
