"""The own tools with which a model finds, adds, configures and removes servers, for its own session.

`gateway` makes them where `[gateway] dynamic` says so. What the caller may not read is not found here either. A server
is checked, connected to once, and only then there; what fails on the way leaves nothing behind. What a model says is
not trusted: it cannot name a secret, and what runs on this machine needs a pattern of the operator's or a person who
approves (`adding`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import anyio

from composition.adding import Adding
from composition.asking import AskingTools, Person
from composition.discovery.catalog_search import ranked
from composition.discovery.found import Found, Source
from composition.dynamic_forms import (
    AddServer,
    ConfigureServer,
    DescribeServer,
    FindServers,
    ListServers,
    RemoveServer,
    in_full,
    in_short,
    lacking,
    resource_of,
    texts_in,
)
from composition.finding import Finder, Place
from composition.own_tools import OwnTools
from composition.registry import Registry
from composition.settings import Settings
from composition.welcome import purpose
from providers.caller import Caller
from providers.container_log import harmless
from providers.errors import CallerError, GatewayError
from providers.lines import Json
from providers.parking import ParkingLot
from providers.resource import McpServerResource
from providers.secret_names import named_in
from providers.secrets import Owner, PassingSecrets

_HOW_TO_ADD = (
    "\n\nMore servers can be added: find one with gateway_find_servers, read what it needs with "
    "gateway_describe_server, add it with gateway_add_server, and remove it with gateway_remove_server."
)
_REFERENCE = re.compile(r"\$\{")


class DynamicTools:
    """
    Args:
        passing: the secrets that end with a session's server.
    """

    def __init__(
        self, settings: Settings, registry: Registry, adding: Adding, passing: PassingSecrets, parking: ParkingLot
    ) -> None:
        self._registry, self._adding, self._passing = registry, adding, passing
        self._finder = Finder(settings)
        self._asking = AskingTools(parking, settings.timeouts.question)
        self._origins: dict[str, AddServer] = {}
        """What was asked for when a session's server was added, so that it can be configured anew."""
        registry.on_unmount.append(self._forget)

    def __repr__(self) -> str:
        return f"<DynamicTools {len(self._origins)} servers added>"

    def offer(self, own: OwnTools) -> None:
        """Offer them among the own tools."""
        own.add("find_servers", FindServers, self._find, "Find MCP servers that can be added.", readOnlyHint=True)
        own.add("list_servers", ListServers, self._list, "The servers that you can use.", readOnlyHint=True)
        about = "What a server needs before it can be added, and what it would run."
        own.add("describe_server", DescribeServer, self._describe, about, readOnlyHint=True)
        about = (
            "Add a server, so that its tools can be used. Its user may be asked for approval and for secrets: "
            "never ask for a secret yourself."
        )
        own.add("add_server", AddServer, self._asking.tool("gateway_add_server", self._add), about)
        about = "Remove a server that was added with gateway_add_server."
        own.add("remove_server", RemoveServer, self._remove, about, destructiveHint=True)
        about = "Change the configuration of a server that was added, or have its user asked for its secrets anew."
        configure = self._asking.tool("gateway_configure_server", self._configure)
        own.add("configure_server", ConfigureServer, configure, about)
        own.instructions += _HOW_TO_ADD

    def _forget(self, server: str) -> None:
        self._origins.pop(server, None)
        self._passing.forget(server)

    # --- find, list, describe

    async def _find(self, caller: Caller, asked: FindServers) -> Json:
        own = ranked(self._own(caller), asked.query)[: asked.limit] if asked.source in (None, Place.OWN) else []
        found, notes = await self._finder.search(asked.query, asked.source, asked.limit)
        return {"servers": [in_short(each) for each in [*own, *found]], "notes": [harmless(note) for note in notes]}

    def _own(self, caller: Caller) -> list[Found]:
        """Those that are there for the caller already."""
        return [
            Found(name := mount.resource.name, name, Source.OWN, "offered", description=purpose(mount, caller.identity))
            for mount in self._registry.readable(caller)
        ]

    async def _list(self, caller: Caller, asked: ListServers) -> Json:
        return {
            "servers": [
                {
                    "name": mount.resource.name,
                    "description": purpose(mount, caller.identity),
                    "isForThisSessionAlone": mount.session is not None,
                }
                for mount in self._registry.readable(caller)
            ]
        }

    async def _describe(self, caller: Caller, asked: DescribeServer) -> Json:
        found = await self._ways(asked.source, asked.name, {})
        return {"ways": [self._described(each, caller) for each in found]}

    def _described(self, found: Found, caller: Caller) -> Json:
        try:
            resource = resource_of(found, {}) if found.problem is None else None
        except CallerError:  # it is none yet, before something is given
            resource = None
        return in_full(found, resource, self._adding.approval(resource, caller.identity) if resource else "")

    # --- add

    async def _add(self, caller: Caller, asked: AddServer, person: Person) -> Json:
        self._adding.check_room(caller)
        chosen = await self._chosen(asked)
        name = self._adding.name(caller, asked.called or chosen.name)
        resource = await self._as(name, chosen, asked, caller)
        resource = await self._adding.permitted(caller, resource, person)
        given = list[str]()
        is_there = False
        try:
            given = await self._adding.ask_for_missing(caller, resource, person)
            listing = await self._adding.connected(caller, resource)
            is_there = True
            if not self._adding.is_lasting:
                self._origins[name] = asked
        finally:
            if not is_there:
                with anyio.CancelScope(shield=True):
                    await self._adding.take_back(caller, name, given)
        tools = [f"{name}_{tool.get('name')}" for tool in listing.tools]
        return {"name": name, "tools": tools, "notes": [harmless(note) for note in chosen.notes]}

    async def _ways(self, place: Place, name: str, config: Mapping[str, Any], called: str | None = None) -> list[Found]:
        """As `Finder.ways`.

        Raises:
            CallerError: there is none, what was given does not fit, or it cannot be found out.
        """
        if any(_REFERENCE.search(text) for text in texts_in(config)):
            raise CallerError("A value of 'config' may not hold '${': secrets are never given there.")
        try:
            return await self._finder.ways(place, name, config, called)
        except CallerError:
            raise
        except GatewayError as error:
            raise CallerError(f"'{harmless(name)}' cannot be looked up: {error}") from None

    async def _chosen(self, asked: AddServer) -> Found:
        """Of the ways to run it the first that is possible, and of those one that needs no approval."""
        name, found = harmless(asked.name), await self._ways(asked.source, asked.name, asked.config)
        if asked.kind is not None and not (found := [each for each in found if each.kind == asked.kind]):
            raise CallerError(f"'{name}' is not offered as '{harmless(asked.kind)}'.")
        possible = [each for each in found if each.problem is None]
        if not possible:
            raise CallerError(f"'{name}' is not runnable here: {harmless(str(found[0].problem))}.")
        whole = [each for each in possible if not lacking(each)]
        if not whole:
            raise CallerError(f"'{name}' needs more in 'config': {'; '.join(lacking(possible[0]))}.")
        free = [each for each in whole if self._adding.allowed.covers(resource_of(each, {}))]
        return (free or whole)[0]

    async def _as(self, name: str, chosen: Found, asked: AddServer, caller: Caller) -> McpServerResource:
        """What a chosen way becomes under a name: its secrets have the name, too."""
        every = await self._ways(asked.source, asked.name, asked.config, name)
        same = [each for each in every if (each.kind, each.version) == (chosen.kind, chosen.version)]
        if not same or same[0].problem is not None or lacking(same[0]):
            raise CallerError(f"'{harmless(asked.name)}' has just changed. Try again.")
        return resource_of(same[0], self._adding.keys(caller))

    # --- remove, configure

    async def _remove(self, caller: Caller, asked: RemoveServer) -> Json:
        if not self._registry.remove_for(caller.session, asked.name):
            await self._adding.unkeep(caller, self._adding.kept(caller, asked.name))
        return {"removed": asked.name}

    async def _configure(self, caller: Caller, asked: ConfigureServer, person: Person) -> Json:
        own = {mount.resource.name: mount.resource for mount in self._registry.own_of(caller.session)}
        resource = own.get(asked.name) or self._adding.kept(caller, asked.name)
        origin = self._origins.get(asked.name) if asked.name in own else None
        if asked.config and origin is None:
            raise CallerError("Its configuration cannot be changed. Remove it, and add it with another.")
        if asked.secrets:
            await self._renew_secrets(caller, resource, asked.secrets, person)
        if asked.config and origin is not None:
            await self._replace(caller, resource, origin, asked.config, person)
        else:
            self._registry.restart(resource.name)
        return {"name": resource.name, "changed": sorted({*asked.config, *asked.secrets})}

    async def _renew_secrets(
        self, caller: Caller, resource: McpServerResource, names: list[str], person: Person
    ) -> None:
        if unknown := [name for name in names if name not in named_in(resource)]:
            raise CallerError(f"It has no secret '{harmless(unknown[0])}', but: {', '.join(named_in(resource))}.")
        if not resource.per_user:
            raise CallerError("Its secrets are the gateway's. An operator sets them with: server.py secret set")
        await self._adding.ask_for(caller, resource, person, names)

    async def _replace(
        self, caller: Caller, old: McpServerResource, origin: AddServer, config: Json, person: Person
    ) -> None:
        """With another configuration. If that does not work, the old one is back."""
        asked = origin.model_copy(update={"config": {**origin.config, **config}})
        resource = await self._as(old.name, await self._chosen(asked), asked, caller)
        resource = await self._adding.permitted(caller, resource, person)
        owner = Owner(caller.identity.key, old.name)
        kept = {name: value for name in named_in(old) if (value := self._passing.get(name, owner)) is not None}
        if not self._registry.remove_for(caller.session, old.name):
            raise CallerError(f"There is no server '{old.name}' any more.")
        for name, value in kept.items():
            self._passing.keep(name, value, owner)
        is_there = False
        try:
            await self._adding.ask_for_missing(caller, resource, person)
            await self._adding.connected(caller, resource)
            self._origins[old.name], is_there = asked, True
        except CallerError as error:
            raise CallerError(f"It stays as it was. {error}") from None
        finally:
            if not is_there:
                self._adding.put_back(caller, old)
                for name, value in kept.items():
                    self._passing.keep(name, value, owner)
                self._origins[old.name] = origin
