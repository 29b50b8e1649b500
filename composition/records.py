"""The records of servers, where a command finds them: in the configured store, below those of servers.toml.

The commands come in (`registering`), which talk to a running gateway through `remote_records` in the same words.
Everybody sees the JSON of the REST API. What may hold a secret is masked before it is shown to anybody.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from composition.api.shapes import shown
from composition.record_rules import refused_folders
from composition.servers_file import Configuration
from composition.stores import MEMORY, default_store, store_at
from composition.tables import Problem, check
from providers.errors import CallerError, ConfigurationError
from providers.identity import Identity
from providers.lines import Json
from providers.reach import reach_problem
from providers.resource import McpServerResource
from providers.store import McpResourceStoreBase

_NOT_KEPT = (
    "nothing that a command writes would be kept: the servers of this gateway are in its memory alone (store). "
    'Set store = "sqlite:///path/to/servers.db" under [gateway], or name a running gateway with --gateway'
)


class Records(ABC):
    """Where the commands find servers. Names are checked there, and permission too."""

    @abstractmethod
    async def all(self) -> list[Json]:
        """Every server that may be read, by name."""

    @abstractmethod
    async def get(self, name: str) -> Json:
        """One server.

        Raises:
            CallerError: there is none of that name.
        """

    @abstractmethod
    async def add(self, fields: Mapping[str, Any]) -> Json:
        """A new server.

        Args:
            fields: of the record, by the keys of servers.toml.

        Raises:
            CallerError: the name is taken.
            ConfigurationError: the fields do not make a server.
        """

    @abstractmethod
    async def switch(self, name: str, *, is_enabled: bool) -> Json:
        """Switch a server on or off.

        Raises:
            CallerError: there is none of that name, or it may not be changed here.
        """

    @abstractmethod
    async def remove(self, name: str) -> None:
        """Remove a server.

        Raises:
            CallerError: there is none of that name, or it may not be changed here.
        """


class StoreRecords(Records):
    """Those of a store, and of servers.toml, which wins.

    Args:
        store: None where nothing outlives a gateway.
        operator: who runs the command: what is added is theirs.
    """

    def __init__(self, configuration: Configuration, store: McpResourceStoreBase | None, operator: Identity) -> None:
        self._configuration, self._store, self._operator = configuration, store, operator

    async def all(self) -> list[Json]:
        stored = await self._store.list_all() if self._store else {}
        return [shown(resource) for _, resource in sorted({**stored, **self._configuration.resources}.items())]

    async def get(self, name: str) -> Json:
        return shown(self._configuration.resources.get(name) or await self._stored(name))

    async def add(self, fields: Mapping[str, Any]) -> Json:
        return shown(await self.put(self._resource(fields)))

    async def put(self, resource: McpServerResource) -> McpServerResource:
        """Keep a new server, as its operator's.

        Raises:
            CallerError: there is one of this name already.
        """
        store = self._writable(resource.name)
        if await store.get(resource.name) is not None:
            raise CallerError(f"server '{resource.name}' is there already. Remove it first, or choose another name")
        own = resource.model_copy(update={"created_by": self._operator.key})
        return await store.upsert(own, expected_version=0)

    async def switch(self, name: str, *, is_enabled: bool) -> Json:
        store, now = self._writable(name), await self._stored(name)
        if now.is_enabled is is_enabled:
            return shown(now)
        wanted = McpServerResource.model_validate(now.model_dump() | {"is_enabled": is_enabled})
        return shown(await store.upsert(wanted, expected_version=now.version))

    async def remove(self, name: str) -> None:
        store, now = self._writable(name), await self._stored(name)
        await store.delete(name, expected_version=now.version)

    async def _stored(self, name: str) -> McpServerResource:
        resource = await self._store.get(name) if self._store else None
        if resource is None:
            raise CallerError(f"there is no server '{name}'")
        return resource

    def _writable(self, name: str) -> McpResourceStoreBase:
        if name in self._configuration.resources:
            where = self._configuration.path
            raise CallerError(f"server '{name}' stands in '{where}'. Edit that file; a gateway that runs follows it")
        if self._store is None:
            raise ConfigurationError(_NOT_KEPT)
        return self._store

    def _resource(self, fields: Mapping[str, Any]) -> McpServerResource:
        given = {key: value for key, value in fields.items() if value is not None}
        known = [Problem((), text)] if (text := _reach_problem(given)) else []
        data = {
            "timeouts": self._configuration.settings.timeouts.model_dump(),
            **given,
        }
        resource, problems = check(McpServerResource, data, given, known)
        if resource is None or problems:
            raise ConfigurationError([_sentence(problem) for problem in problems])
        if refused := refused_folders(resource, self._configuration.settings, self._configuration.path):
            raise ConfigurationError(refused)
        return resource


def _reach_problem(given: Mapping[str, Any]) -> str | None:
    """How a server is reached is checked here too: the model does so only when all else is in order."""
    return reach_problem(None, [key for key, value in given.items() if value not in ((), {}, [])])


def _sentence(problem: Problem) -> str:
    key = ".".join(str(part) for part in problem.key or ())
    return f"{key}: {problem.text}" if key else f"the server {problem.text}"


@asynccontextmanager
async def configured_store(configuration: Configuration) -> AsyncIterator[McpResourceStoreBase | None]:
    """The store of the gateways with this configuration, open; None where they keep servers in memory alone.

    Raises:
        ConfigurationError: it cannot be used.
    """
    url = configuration.settings.store or default_store(configuration)
    if url == MEMORY:
        yield None
        return
    async with store_at(url) as store:
        yield store
