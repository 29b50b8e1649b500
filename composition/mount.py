"""A mount: one resource offered under its namespace, as a FastMCP sub-server of the registry.

The sub-server's middleware is one list, outermost first: identity, store (access), docker, pool. It stands by itself,
with the backend's own names; what is here gives its components the names under which clients know them (`names`), and
enters it once for each call.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from anyio.abc import TaskGroup
from fastmcp.prompts.base import PromptResult
from fastmcp.resources.base import ResourceResult
from fastmcp.server.dependencies import get_context
from fastmcp.tools.base import ToolResult

from composition.names import Names, Namespace
from providers.backend import BackendProvider, complete
from providers.caller import Caller, ClientSessions
from providers.catalogue import Catalogue, Listing
from providers.components import (
    Offer,
    OfferedPrompt,
    OfferedResource,
    OfferedTemplate,
    OfferedTool,
    RawPromptResult,
    RawResourceResult,
    RawToolResult,
)
from providers.connection import Target
from providers.container_middleware import DockerMiddleware
from providers.direct import DirectServer
from providers.errors import BackendError, InternalError
from providers.identity import Identity, IdentityMiddleware, current_identity
from providers.lease import PoolMiddleware
from providers.lines import Json
from providers.listener import Listener
from providers.parking import ParkingLot
from providers.pool import McpConnectionPool
from providers.resource import McpServerResource, may
from providers.store import StoreMiddleware
from providers.subscriptions import Subscriptions
from providers.wire import OpenWire

_GENERATIONS = itertools.count(1)
"""One count for all mounts: a server that is removed and added again does not meet its own past."""


class Mount:
    """One mounted resource: its target, its catalogue, its sub-server.

    Args:
        lookup: the record of a server as it is now, or None when it is gone.
        open_wire: how a session of this resource is opened.
        on_change: told which kinds of component changed, and for whom.
        local: the local user, or None where callers bring tokens.
        session: the client session that it is there for alone; None: whoever may read it.
    """

    def __init__(
        self,
        resource: McpServerResource,
        open_wire: OpenWire,
        *,
        pool: McpConnectionPool,
        sessions: ClientSessions,
        lookup: Callable[[str], McpServerResource | None],
        on_change: Callable[[frozenset[str], Identity], None],
        local: Identity | None,
        refresh_interval: float,
        parking: ParkingLot | None = None,
        session: str | None = None,
    ) -> None:
        self.resource, self.session = resource, session
        self.is_offered = session is None  # what a session adds is there once it was connected to
        self.namespace = Namespace(resource.name)
        self._sessions = sessions
        self._lookup = lookup
        self.target = self._new_target(resource, open_wire)
        self.catalogue = Catalogue(pool, lambda: self.target, on_change, refresh_interval)
        self.subscriptions = Subscriptions(pool, lambda: self.target, self._may_read, self._uri_for)
        self.backend = BackendProvider(self.catalogue, lambda: self.resource, self._caller)
        self.server = DirectServer(
            self.backend,
            name=resource.name,
            middleware=[
                IdentityMiddleware(local),
                StoreMiddleware(resource.name, lookup),
                DockerMiddleware(sessions, lambda: self.target),
                PoolMiddleware(pool, sessions, lambda: self.target, parking),
            ],
        )
        self._offers: WeakKeyDictionary[Offer, dict[Names, Offer]] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"<Mount {self.resource.name} generation {self.target.generation}>"

    def is_for(self, caller: Caller) -> bool:
        """Whether it is there for a caller."""
        return (
            self.is_offered and self.session in (None, caller.session) and may(caller.identity, "read", self.resource)
        )

    def start(self, tasks: TaskGroup) -> None:
        """Work in this task group from now on."""
        self.catalogue.start(tasks)
        self.subscriptions.start(tasks)

    def _new_target(self, resource: McpServerResource, open_wire: OpenWire) -> Target:
        # Not a bound method of `subscriptions`: a target comes first.
        return Target(
            resource,
            next(_GENERATIONS),
            open_wire,
            self._backend_changed,
            lambda key, params: self.subscriptions.updated(key, params),
            self._logged,
        )

    async def _logged(self, caller: Caller, params: Json) -> None:
        if self._may_read(self._sessions.identity_of(caller)):
            await self._sessions.log(caller, params)

    def _may_read(self, identity: Identity) -> bool:
        resource = self._lookup(self.resource.name)
        return resource is not None and resource.is_enabled and may(identity, "read", resource)

    def _uri_for(self, caller: Caller, own: str) -> str:
        """As this client knows one of the backend's URIs: it may have come for this server alone."""
        return own if caller.server else self.namespace.uri(own)

    def _caller(self) -> Caller:
        identity = current_identity()
        if identity is None:
            raise InternalError("a sub-server was asked without an identity")
        return self._sessions.caller(get_context(), identity)

    def _backend_changed(self, caller: Caller, method: str) -> None:
        if self._sessions.is_alive(caller):
            self.catalogue.changed(caller, method)

    def update(self, resource: McpServerResource, open_wire: OpenWire | None) -> None:
        """Take over a changed record.

        Args:
            open_wire: given when the backend is reached differently now: a new generation begins.
        """
        self.resource = resource
        if open_wire is None:
            self.target = replace(self.target, resource=resource)
        else:
            self.target = self._new_target(resource, open_wire)
            self.catalogue.changed_for_all()

    # --- what FastMCP has no components for

    async def complete(self, params: Json) -> Json:
        """What the backend suggests for an argument of a prompt or template.

        Args:
            params: of `completion/complete`, with the backend's own name or URI.
        """
        completion: Json = await self.server.enter("completion/complete", params, lambda: complete(params))
        return completion

    async def subscribe(self, listener: Listener, uri: str) -> None:
        """Have a listener told when the resource at one of the backend's own URIs is updated; see `Subscriptions`."""
        await self.server.enter(
            "resources/subscribe", {"uri": uri}, lambda: self.subscriptions.subscribe(listener, uri)
        )

    def unsubscribe(self, listener: Listener, uri: str) -> None:
        self.subscriptions.unsubscribe(listener, uri)

    # --- under the names that clients use

    def offer(self, listing: Listing, names: Names | None = None) -> Offer:
        """A listing's components; made once for each way of naming.

        Args:
            names: those of the namespace, if none are given.
        """
        inner, names = self.backend.offer(listing), names or self.namespace
        known = self._offers.setdefault(inner, {})
        if names not in known:
            known[names] = self._named(inner, names)
        return known[names]

    def _named(self, inner: Offer, names: Names) -> Offer:
        offer = Offer()
        for tool in inner.tools.values():
            public = names.name(tool.name)
            offer.tools[public] = OfferedTool.of(tool.form | {"name": public}, self._tool_caller(tool.name, names))
        for resource in inner.resources.values():
            own = resource.form["uri"]
            offer.resources[names.uri(own)] = self.resource_at(own, names, resource.form)
        for template in inner.templates.values():
            uri = names.uri(template.form["uriTemplate"])
            offer.templates[uri] = OfferedTemplate.of(template.form | {"uriTemplate": uri})
        for prompt in inner.prompts.values():
            public = names.name(prompt.name)
            get = self._prompt_getter(prompt.name, names)
            offer.prompts[public] = OfferedPrompt.of(prompt.form | {"name": public}, get)
        return offer

    def unlisted_tool(self, name: str, names: Names, why: BackendError | None) -> OfferedTool:
        """A tool that cannot be looked up, as the backend is not to be had: calling it says why. The attempt to list it
        was this call's attempt; where there was none, the call makes it."""
        call = _refusing(why) if why else self._tool_caller(name, names)
        return OfferedTool.of({"name": names.name(name)}, call)

    def unlisted_prompt(self, name: str, names: Names, why: BackendError | None) -> OfferedPrompt:
        get = _refusing(why) if why else self._prompt_getter(name, names)
        return OfferedPrompt.of({"name": names.name(name)}, get)

    def resource_at(self, own: str, names: Names, form: Json | None = None) -> OfferedResource:
        """The resource at one of the backend's own URIs. A backend may serve what it does not list."""
        uri = names.uri(own)
        return OfferedResource.of((form or {"name": uri}) | {"uri": uri}, self._resource_reader(own, names))

    def _tool_caller(self, name: str, names: Names) -> Callable[[Json], Any]:
        async def call(arguments: Json) -> ToolResult:
            result = await self.server.call_tool(name, arguments)
            return RawToolResult.of(names.tool_result(result.raw)) if isinstance(result, RawToolResult) else result

        return call

    def _resource_reader(self, uri: str, names: Names) -> Callable[[], Any]:
        async def read() -> ResourceResult:
            result = await self.server.read_resource(uri)
            if isinstance(result, RawResourceResult):
                return RawResourceResult.of(names.resource_result(result.raw))
            return result

        return read

    def _prompt_getter(self, name: str, names: Names) -> Callable[[Json | None], Any]:
        async def get(arguments: Json | None) -> PromptResult:
            result = await self.server.render_prompt(name, arguments)
            if isinstance(result, RawPromptResult):
                return RawPromptResult.of(names.prompt_result(result.raw))
            return result

        return get


def _refusing(why: BackendError) -> Callable[[Any], Any]:
    async def refuse(arguments: Any) -> Any:
        raise why.again()

    return refuse
