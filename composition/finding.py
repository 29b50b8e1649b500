"""Where models find servers: catalogs, the MCP Registry, and addresses that they know. Each as a `Found`.

`dynamic` comes in with words, or with the name of one server and what is given for it. The caches are those of the
command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

import anyio.to_thread

from composition.discovery.cache import DocumentCache, cache_folder
from composition.discovery.catalog_resources import Given
from composition.discovery.catalog_search import ranked
from composition.discovery.catalog_sources import Shelf, load
from composition.discovery.found import Found, Source, State, fitting_name
from composition.discovery.registry_client import RegistryClient
from composition.discovery.registry_packages import best_way, ways
from composition.settings import Settings
from providers.errors import CallerError, ConfigurationError, GatewayError


class Place(StrEnum):
    """Where a server is found."""

    CATALOG = "catalog"
    REGISTRY = "registry"
    URL = "url"
    OWN = "own"


class Finder:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cache = DocumentCache(cache_folder(settings.state_dir))
        self._registry = RegistryClient(self._cache, settings.mcp_registry)

    async def search(self, words: str, place: Place | None, limit: int) -> tuple[list[Found], list[str]]:
        """What has these words, and what a person should know: a source that cannot be had costs the others nothing."""
        found: list[Found] = []
        notes: list[str] = []
        for each, look in ((Place.CATALOG, self._in_catalogs), (Place.REGISTRY, self._in_registry)):
            if place in (None, each):
                try:
                    found += await look(words, limit)
                except GatewayError as error:
                    notes.append(f"{each}: {error}")
        return found, notes

    async def _shelf(self) -> Shelf:
        return await load(self._settings.catalogs, self._cache)

    async def _in_catalogs(self, words: str, limit: int) -> list[Found]:
        shelf = await self._shelf()
        return await anyio.to_thread.run_sync(lambda: ranked(shelf.servers(), words)[:limit])  # hundreds of entries

    async def _in_registry(self, words: str, limit: int) -> list[Found]:
        answer = await self._registry.search(words, limit)
        return [best_way(server) for server in answer.servers]

    async def ways(self, place: Place, name: str, given: Mapping[str, Any], called: str | None = None) -> list[Found]:
        """Each way to run one server, the one with the least in its way first; never empty.

        Args:
            name: in its catalog or in the registry; or the address.
            given: its configuration, by the names of its needs.
            called: what it is to be called with us.

        Raises:
            CallerError: there is none, or what was given does not fit it.
            GatewayError: its source cannot be had.
        """
        try:
            match place:
                case Place.CATALOG:
                    return [await self._entry(name, given, called)]
                case Place.REGISTRY:
                    document = await self._registry.get(name)
                    order = list(State)
                    found = ways(document, _as_texts(given), called)
                    return sorted(found, key=lambda each: (order.index(each.state), len(each.missing)))
                case Place.URL:
                    return [_at(name, given, called)]
                case Place.OWN:
                    raise CallerError("What is here already is not added. Find its tools with gateway_find_tools.")
        except ConfigurationError as error:
            raise CallerError(str(error)) from None

    async def _entry(self, name: str, given: Mapping[str, Any], called: str | None) -> Found:
        shelf = await self._shelf()
        if name not in {*shelf.names(), *shelf.names().values()}:
            raise CallerError(f"No catalog has a server '{name}'.")
        return shelf.find(name, Given(given), called)


def _as_texts(given: Mapping[str, Any]) -> dict[str, list[str]]:
    return {
        key: [_text(each) for each in (value if isinstance(value, list) else [value])] for key, value in given.items()
    }


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _at(url: str, given: Mapping[str, Any], called: str | None) -> Found:
    if given:
        raise CallerError("A server at an address takes no configuration.")
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        host = ""
    if not url.startswith(("https://", "http://")) or not host or "${" in url:
        raise CallerError("With the source 'url' the name is an address that begins with https://.")
    found = Found(called or fitting_name(host), url, Source.OWN, "remote", title=host)
    return replace(found, resource={"url": url, "transport_type": "streamable_http"})
