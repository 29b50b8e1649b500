"""The MCP Registry: what it lists, page by page, and one server of it in one version.

The commands and the tools for models come in; `cache` fetches, keeps copies and bounds everything. Any server that
speaks `/v0.1` of the registry's API will do. It is a directory of what strangers announce: an entry that cannot be read
is left out, and never takes the others with it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from composition.discovery.cache import DocumentCache, DocumentUnavailable
from composition.discovery.registry_document import ServerDocument, Unreadable, read_server
from providers.errors import CallerError

OFFICIAL = "https://registry.modelcontextprotocol.io"

_PAGE = 100
_MOST_PAGES = 20
_JSON = "application/json"


@dataclass(frozen=True)
class Answer:
    """What a search brought. `notes` say what a person should know: a copy instead of an answer, entries left out."""

    servers: tuple[ServerDocument, ...]
    notes: tuple[str, ...] = ()
    is_cut: bool = False


class RegistryClient:
    """One registry. It holds no state but its cache."""

    def __init__(self, cache: DocumentCache, url: str = OFFICIAL) -> None:
        self._cache, self._url = cache, url.rstrip("/")

    async def search(self, words: str = "", limit: int = 30) -> Answer:
        """The newest version of each server that has these words, at most `limit`.

        The registry looks for one text and, in older builds, in names alone; so it is asked for the longest word, and
        those that have the other words too come first.

        Raises:
            DocumentUnavailable: the registry does not answer, and there is no copy of an earlier answer.
        """
        parts = words.lower().split()
        servers: dict[str, ServerDocument] = {}
        notes: dict[str, None] = {}
        cursor, seen, pages = "", set[str](), 0
        while pages < _MOST_PAGES and (len(servers) < limit or len(parts) > 1):
            page = await self._page(max(parts, key=len, default=""), cursor, limit)
            pages += 1
            servers |= {each.name: each for each in page.servers if each.name not in servers}
            notes |= dict.fromkeys(page.notes)
            if not page.cursor or page.cursor in seen:
                break
            seen.add(cursor := page.cursor)
        ranked = sorted(servers.values(), key=lambda each: -sum(word in _words_of(each) for word in parts))
        return Answer(tuple(ranked[:limit]), tuple(notes), len(ranked) > limit or bool(cursor and page.cursor))

    async def get(self, name: str, version: str = "latest") -> ServerDocument:
        """One server.

        Raises:
            CallerError: the registry has no such server, or no such version.
            DocumentUnavailable: the registry does not answer, and there is no copy of an earlier answer.
        """
        url = f"{self._url}/v0.1/servers/{quote(name, safe='')}/versions/{quote(version, safe='')}"
        try:
            return (await self._cache.get(url, _server, accept=_JSON)).value
        except DocumentUnavailable as error:
            if not error.is_missing:
                raise
        which = "" if version == "latest" else f" in version '{version}'"
        raise CallerError(f"the registry has no server '{name}'{which}. Look for it: server.py registry search")

    async def _page(self, word: str, cursor: str, limit: int) -> _Page:
        size = max(1, min(_PAGE, limit if not word else _PAGE))
        query = {"search": word, "version": "latest", "limit": str(size), "cursor": cursor}
        url = f"{self._url}/v0.1/servers?{urlencode({key: value for key, value in query.items() if value})}"
        document = await self._cache.get(url, _page, accept=_JSON)
        left_out = document.value.unreadable
        notes = [document.note, f"{left_out} of its entries cannot be read." if left_out else None]
        return _Page(document.value.servers, document.value.cursor, left_out, tuple(note for note in notes if note))


@dataclass(frozen=True)
class _Page:
    servers: tuple[ServerDocument, ...]
    cursor: str
    unreadable: int
    notes: tuple[str, ...] = ()


def _page(content: bytes) -> _Page:
    """One page of a list.

    Raises:
        ValueError: it is none.
    """
    body = _json(content)
    if not isinstance(body, dict) or not isinstance(body.get("servers"), list):
        raise ValueError("it is no list of servers")
    servers: list[ServerDocument] = []
    unreadable = 0
    for entry in body["servers"]:
        try:
            servers.append(read_server(entry))
        except Unreadable:
            unreadable += 1
    metadata = body.get("metadata")
    table = metadata if isinstance(metadata, dict) else {}
    cursor = table.get("nextCursor") or table.get("next_cursor") or ""
    known = tuple(each for each in servers if each.status != "deleted")
    return _Page(known, cursor if isinstance(cursor, str) else "", unreadable)


def _server(content: bytes) -> ServerDocument:
    try:
        return read_server(_json(content))
    except Unreadable as error:
        raise ValueError(f"its entry {error}") from None


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError:
        raise ValueError("it is not JSON") from None


def _words_of(server: ServerDocument) -> str:
    return f"{server.name} {server.title} {server.description}".lower()
