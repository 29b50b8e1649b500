"""`Roster`: of one gateway's containers, which are being made, are in use, or are ending. No Docker here.

The container manager comes in, from threads too, before and after each thing that it does to a container. Called is the
instance, whose record says which containers were ever made. A name may be had again as soon as its container is gone;
so who speaks of a container means its id, and a late word about an old one does nothing to the next.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from providers.container import Container
from providers.ownership import Instance

_DOUBT_SECONDS = 120.0
"""How long the engine may take to make what it was asked for, after we stopped waiting for its answer."""

_LAST_GONE = 256
"""More than are removed while the engine tells what there is."""


class Use(StrEnum):
    """What this gateway does with a container. One that it does nothing with is an orphan, or was forsaken."""

    MAKING = "making"
    IN_USE = "in use"
    ENDING = "ending"
    FORSAKEN = "forsaken"
    """Nobody uses it any more, and nobody else may: it is to be removed."""


@dataclass(slots=True)
class _Entry:
    server: str
    container_id: str = ""
    """Empty until it is made."""
    use: Use = Use.MAKING


class Roster:
    """Args:
    instance: keeps the names and ids over the gateway's end.
    """

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._entries: dict[str, _Entry] = {}
        self._in_doubt: dict[str, float] = {}
        """Names of containers that were perhaps made, and since when."""
        self._gone = deque[str](maxlen=_LAST_GONE)
        """Ids of those that were removed last."""
        self._writing = threading.Lock()
        """Held in threads, while a name and its record change together. The event loop does not wait for that: what it
        does here is one step each."""

    def __repr__(self) -> str:
        uses = ", ".join(f"{name} {entry.use}" for name, entry in self._entries.items())
        return f"<Roster {uses or 'empty'}>"

    @property
    def servers(self) -> set[str]:
        """Those of which something is being made or in use."""
        return {entry.server for entry in list(self._entries.values()) if entry.use in (Use.MAKING, Use.IN_USE)}

    def has(self, name: str) -> bool:
        """Whether a container of this name is being made, in use, or ending."""
        return name in self._entries

    @property
    def has_forsaken(self) -> bool:
        return any(entry.use is Use.FORSAKEN for entry in list(self._entries.values()))

    def use_of(self, container: Container) -> Use | None:
        entry = self._entries.get(container.name)
        return entry.use if entry and entry.container_id in (container.id, "") else None

    # --- making

    def reserve(self, name: str, server: str) -> bool:
        """Take a name for a container that is about to be made; False if one of ours has it."""
        with self._writing:
            if name in self._entries or name in self._instance.containers():
                return False
            self._entries[name] = _Entry(server)
            self._instance.remember(name)
            return True

    def made(self, container: Container) -> None:
        with self._writing:
            self._instance.remember(container.name, container.id)
            self._entries[container.name] = _Entry(container.server, container.id, Use.IN_USE)

    def not_made(self, name: str) -> None:
        """The engine refused to make it: its name is free again."""
        with self._writing:
            self._drop(name)

    def perhaps_made(self, name: str) -> None:
        """Nobody knows: what is found under the name is to be removed, now or when the engine gets to it."""
        with self._writing:
            self._entries.pop(name, None)
            self._in_doubt[name] = time.monotonic()

    # --- using and ending

    def take(self, container: Container) -> bool:
        """Take a container that ran when it was listed into use, unless this gateway does anything with it already, or
        has removed it since."""
        if container.id in self._gone:
            return False
        mine = _Entry(container.server, container.id, Use.IN_USE)
        return self._entries.setdefault(container.name, mine) is mine

    def ending(self, container: Container) -> None:
        entry = self._entries.setdefault(container.name, _Entry(container.server, container.id))
        if entry.container_id == container.id:
            entry.use = Use.ENDING

    def forsake(self, container: Container) -> None:
        """Its user is gone, or its end failed: the next reconciliation removes it."""
        entry = self._entries.get(container.name)
        if entry is not None and entry.container_id == container.id:
            entry.use = Use.FORSAKEN

    def gone(self, container: Container) -> None:
        """It was removed: its secrets and its name go, unless another container has the name by now."""
        with self._writing:
            self._gone.append(container.id)
            entry = self._entries.get(container.name)
            if entry is None or entry.container_id == container.id:
                self._drop(container.name, container.id)

    def tidy(self, known: Mapping[str, str], there: Collection[str], *, everything: bool) -> None:
        """Forget the names under which nothing is there any more.

        Args:
            known: names and ids, read before the engine was asked what there is: what came later is not missing.
            there: names of the containers that it has.
            everything: also those in use. What is in doubt stays written down for the next gateway.
        """
        with self._writing:
            now = self._instance.containers()
            for name in {**known, **self._entries}.keys() - set(there):
                entry = self._entries.get(name)
                is_used = entry is not None and entry.use is not Use.FORSAKEN
                if now.get(name) != known.get(name) or (is_used and not everything):
                    continue
                if name not in self._in_doubt or self._is_settled(name):
                    self._drop(name, known.get(name))
                elif everything:
                    self._instance.drop_secrets(name)

    def _is_settled(self, name: str) -> bool:
        return time.monotonic() - self._in_doubt[name] > _DOUBT_SECONDS

    def _drop(self, name: str, container_id: str | None = None) -> None:
        """With an id: unless the name is another container's by now, which the command line or the gateway made known.
        They write beside each other, so only the record itself can tell."""
        self._entries.pop(name, None)
        self._in_doubt.pop(name, None)
        self._instance.forget(name, container_id)
