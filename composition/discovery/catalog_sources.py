"""Where catalogs are: files of the operator, and addresses on the web. What is in them, by the names that we give.

The command line and the tools for models come in; the cache fetches, the reader reads, and the conversion says what
each entry becomes. A catalog that cannot be had is told and costs the others nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from dataclasses import dataclass, field

import anyio.to_thread

from composition.discovery.cache import MAX_BYTES, Document, DocumentCache, DocumentUnavailable
from composition.discovery.catalog import Catalog, Entry, read_catalog
from composition.discovery.catalog_document import Unreadable
from composition.discovery.catalog_resources import NOTHING, Given, converted
from composition.discovery.found import Found, Source, told_apart
from providers.errors import CallerError, ConfigurationError, GatewayError

DOCKER_CATALOG = "https://desktop.docker.com/mcp/catalog/v3/catalog.yaml"
"""The one that Docker publishes, which is read where the operator names none."""

_OTHERWISE = (
    "Try again later, or name a catalog: a file or an address, with --catalog or as `catalogs` under [gateway]."
)
_ACCEPTED = "application/yaml, application/json;q=0.9, */*;q=0.1"


@dataclass
class Shelf:
    """All catalogs together. Of two entries with one name the first catalog's holds, and `notes` says so."""

    entries: dict[str, Entry] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, place: str, catalog: Catalog) -> None:
        known = {*self.entries, *self.problems}
        if again := [name for name in (*catalog.entries, *catalog.problems) if name in known]:
            few = ", ".join(again[:3]) + (" …" if len(again) > 3 else "")
            self.notes.append(f"{place}: {len(again)} of its servers are in an earlier catalog, which holds ({few}).")
        self.entries |= {name: entry for name, entry in catalog.entries.items() if name not in known}
        self.problems |= {name: problem for name, problem in catalog.problems.items() if name not in known}

    def names(self) -> dict[str, str]:
        """What each entry is called with us."""
        return told_apart([*self.entries, *self.problems])

    def servers(self) -> list[Found]:
        """Every server, with nothing given yet; one whose entry cannot be read with the reason."""
        names = self.names()
        found = [converted(original, entry, names[original]) for original, entry in self.entries.items()]
        return [*found, *(self._wrong(original, names[original]) for original in self.problems)]

    def find(self, name: str, given: Given = NOTHING, called: str | None = None) -> Found:
        """One server, by its name in the catalog or by ours.

        Args:
            called: what it is to be called with us, if not as in lists.

        Raises:
            CallerError: there is none.
            ConfigurationError: what was given does not fit it.
        """
        names = self.names()
        original = name if name in names else next((each for each, ours in names.items() if ours == name), None)
        if original is None:
            raise CallerError(f"No catalog has a server '{name}'. `server.py catalog search` shows what there is.")
        ours = called or names[original]
        if original in self.problems:
            return self._wrong(original, ours)
        return converted(original, self.entries[original], ours, given)

    def _wrong(self, original: str, name: str) -> Found:
        problem = f"its entry in the catalog is wrong: {self.problems[original]}"
        return Found(name, original, Source.CATALOG, "unknown", title=original, problem=problem)


async def load(places: Collection[str], cache: DocumentCache) -> Shelf:
    """The catalogs of these files and addresses, those that can be had; of none: Docker's own.

    Raises:
        DocumentUnavailable: none answers; it says why of each.
        ConfigurationError: none can be had, and one of them is wrong.
    """
    shelf, failures, is_away = Shelf(), list[str](), True
    for place in places or (DOCKER_CATALOG,):
        try:
            document = await _document(place, cache)
        except GatewayError as error:
            told = str(error)
            failures.append(told if told.startswith(place) else f"{place}: {told}")
            is_away = is_away and isinstance(error, DocumentUnavailable)
            continue
        shelf.add(place, document.value)
        shelf.notes += [document.note] if document.note else []
    if failures and not (shelf.entries or shelf.problems):
        if not is_away:
            raise ConfigurationError(failures)
        raise DocumentUnavailable("\n".join([*failures, _OTHERWISE]))
    shelf.notes += failures
    return shelf


async def _document(place: str, cache: DocumentCache) -> Document[Catalog]:
    if place.startswith(("http://", "https://")):
        return await cache.get(place, read_catalog, accept=_ACCEPTED, outlives=True)
    return await anyio.to_thread.run_sync(lambda: Document(read_catalog(_file(place))))


def _file(path: str) -> bytes:
    """The bytes of a file; never those of a device or a pipe, which have no end.

    Raises:
        Unreadable: it is none, or too large.
    """
    try:
        whole = os.path.expanduser(path)  # noqa: PTH111 - Path's raises where there is no home
        descriptor = os.open(whole, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as opened:  # noqa: PTH123 - a descriptor
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Unreadable("It is not a file.")
            content = opened.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise Unreadable(f"It cannot be read: {(reason or 'no such file').lower()}.") from None
    if len(content) > MAX_BYTES:
        raise Unreadable(f"It holds more than {MAX_BYTES:,} bytes.")
    return content
