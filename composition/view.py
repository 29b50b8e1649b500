"""A view: the mounts that clients find at one address, as a FastMCP provider, under the names that they use there.

A front server asks here. The registry is the view of all servers, `composition.alone` has views of one. Lists come from
the mounts' catalogues, all at once, each within its own deadline; what is asked for by name is found by an exact
look-up. What the caller may not read is not there.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import anyio
from fastmcp.prompts.base import Prompt
from fastmcp.resources.base import Resource
from fastmcp.resources.template import ResourceTemplate
from fastmcp.server.providers import Provider
from fastmcp.tools.base import Tool

from composition.mount import Mount
from composition.names import SEPARATOR, Names, server_of
from providers import lines
from providers.caller import Caller, user_session
from providers.catalogue import Listing
from providers.components import Offer, OfferedTool
from providers.errors import NotAuthenticated
from providers.identity import Identity
from providers.listener import Listeners

_INTERNAL_ERROR = -32603
LATE = "does not say what it offers. Try again."
"""Of a server that is being started, or is slow; no fault is known of it."""

Component = TypeVar("Component")
Found = tuple[Mount, str]
"""A mount, and a name or URI as its backend has it."""


class OwnComponents(Protocol):
    """Tools of the gateway itself, beside those of the servers."""

    @property
    def tools(self) -> Mapping[str, OfferedTool]:
        """By public name. All begin with a server's name that no server can have then."""

    @property
    def instructions(self) -> str:
        """What a model reads of them first."""

    @property
    def shows_others(self) -> bool:
        """Whether lists show any tool of a server."""

    def shows(self, name: str) -> bool:
        """Whether lists show this tool of a server."""


class View(Provider):
    """What one front server offers. `server` is the one that it shows; None: all of them."""

    server: str | None = None
    own: OwnComponents | None = None

    @property
    @abstractmethod
    def listeners(self) -> Listeners:
        """The clients that hear of changes."""

    @abstractmethod
    def identity(self) -> Identity:
        """As whom the current request is made.

        Raises:
            NotAuthenticated: it has no verified principal.
        """

    @abstractmethod
    async def caller(self) -> Caller | None:
        """Who makes the current request; None for one without a verified principal, who sees nothing."""

    @abstractmethod
    def readable(self, caller: Caller) -> list[Mount]:
        """The mounts that are there for a caller, by name."""

    @abstractmethod
    def judge(self, server: str, identity: Identity, session: str | None = None) -> tuple[bool, str]:
        """Whether a server is there for a user, and by which rule. The reasons why not are for the operator alone: a
        caller is not to tell them apart.

        Args:
            session: the client session; None where the client's era has none.
        """

    def server_of(self, name: str) -> str:
        """The server that a tool or prompt is of, if there is one."""
        return self.server or name.partition(SEPARATOR)[0]

    def server_of_uri(self, uri: str) -> str:
        """The server that a resource is of, if there is one."""
        return self.server or server_of(uri)

    @abstractmethod
    def names(self, mount: Mount) -> Names:
        """The names under which a mount's components are known here."""

    @abstractmethod
    def find(self, name: str, caller: Caller) -> Found | None:
        """Where a tool or prompt is, if that server is there for this caller."""

    @abstractmethod
    def find_uri(self, uri: str, caller: Caller) -> Found | None:
        """Where a resource is, or a template."""

    # --- as a provider

    async def offers(self, caller: Caller) -> list[tuple[Mount, Offer]]:
        """What each server that a caller may read offers, by name. One that is late or away is left out."""
        mounts = self.readable(caller)
        listings: dict[str, Listing | None] = {}
        late = []
        for mount in mounts:
            listings[mount.resource.name] = listing = mount.catalogue.peek(caller)
            if listing is None:
                late.append(mount)
            else:
                mount.catalogue.renew_if_stale(caller)
        if late:
            await _ask_all(late, caller, listings)
        if self.server is not None and mounts and listings[self.server] is None:
            why = mounts[0].catalogue.error(caller) or f"server '{self.server}': {LATE}"
            raise lines.mcp_error(_INTERNAL_ERROR, str(why))  # nothing is no answer where there is nothing else to show
        return [
            (mount, mount.offer(found, self.names(mount)))
            for mount in mounts
            if (found := listings[mount.resource.name])
        ]

    async def _list(self, pick: Callable[[Offer], Mapping[str, Component]]) -> list[Component]:
        caller = await self.caller()
        if caller is None:
            return []
        return [component for _, offer in await self.offers(caller) for component in pick(offer).values()]

    async def _list_tools(self) -> Sequence[Tool]:
        if self.own is None:
            return await self._list(lambda offer: offer.tools)
        if await self.caller() is None:
            return []
        others = await self._list(lambda offer: offer.tools) if self.own.shows_others else []
        return [*self.own.tools.values(), *(tool for tool in others if self.own.shows(tool.name))]

    async def _list_resources(self) -> Sequence[Resource]:
        return await self._list(lambda offer: offer.resources)

    async def _list_resource_templates(self) -> Sequence[ResourceTemplate]:
        return await self._list(lambda offer: offer.templates)

    async def _list_prompts(self) -> Sequence[Prompt]:
        return await self._list(lambda offer: offer.prompts)

    async def _get_tool(self, name: str, version: Any = None) -> Tool | None:
        caller = await self.caller()
        if self.own is not None and caller is not None and name in self.own.tools:
            return self.own.tools[name]
        found = self.find(name, caller) if caller else None
        if found is None or caller is None:
            return None
        mount, own = found
        listing = mount.catalogue.peek(caller) or await mount.catalogue.get(caller)
        if listing is None:
            return mount.unlisted_tool(own, self.names(mount), mount.catalogue.error(caller))
        return mount.offer(listing, self.names(mount)).tools.get(name)

    async def _get_prompt(self, name: str, version: Any = None) -> Prompt | None:
        caller = await self.caller()
        found = self.find(name, caller) if caller else None
        if found is None or caller is None:
            return None
        mount, own = found
        listing = mount.catalogue.peek(caller) or await mount.catalogue.get(caller)
        if listing is None:
            return mount.unlisted_prompt(own, self.names(mount), mount.catalogue.error(caller))
        return mount.offer(listing, self.names(mount)).prompts.get(name)

    async def _get_resource(self, uri: str, version: Any = None) -> Resource | None:
        caller = await self.caller()
        found = self.find_uri(uri, caller) if caller else None
        if found is None:
            return None
        mount, own = found
        return mount.resource_at(own, self.names(mount))

    async def _get_resource_template(self, uri: str, version: Any = None) -> ResourceTemplate | None:
        return None

    async def get_tasks(self) -> Sequence[Any]:
        return []  # FastMCP asks at start, by listing everything; none of ours runs as a task

    def input_schema(self, name: str) -> Mapping[str, Any] | None:
        """A tool's input schema, as far as the caller may know it and it is in memory; the SDK checks headers by it."""
        try:
            identity = self.identity()
        except NotAuthenticated:
            return None
        if self.own is not None and name in self.own.tools:
            return self.own.tools[name].parameters
        # Who asks is a client of 2026-07-28, which has no session.
        found = self.find(name, Caller(identity, user_session(identity), has_session=False))
        listing = found[0].catalogue.known_to(identity) if found else None
        if found is None or listing is None:
            return None
        tool = found[0].offer(listing, self.names(found[0])).tools.get(name)
        return tool.parameters if tool else None


async def _ask_all(late: list[Mount], caller: Caller, listings: dict[str, Listing | None]) -> None:
    async def ask(mount: Mount) -> None:
        patience = mount.resource.timeouts.list
        listings[mount.resource.name] = await mount.catalogue.get(caller, patience)

    async with anyio.create_task_group() as tasks:
        for mount in late:
            tasks.start_soon(ask, mount)
