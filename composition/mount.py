"""A mount: one resource offered under its namespace, as a FastMCP sub-server of the registry.

The sub-server's middleware is one list, outermost first: identity, store (access), docker, pool. It stands by itself,
with the backend's own names; what is here gives its components the server's name in front, and enters it once for each
call.
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

SEPARATOR = "_"

_GENERATIONS = itertools.count(1)
"""One count for all mounts: a server that is removed and added again does not meet its own past."""


class Mount:
    """One mounted resource: its target, its catalogue, its sub-server.

    Args:
        lookup: the record of a server as it is now, or None when it is gone.
        open_wire: how a session of this resource is opened.
        on_change: told which kinds of component changed, and for whom.
        local: the local user, or None where callers bring tokens.
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
    ) -> None:
        self.resource = resource
        self._sessions = sessions
        self._lookup = lookup
        self.target = self._new_target(resource, open_wire)
        self.catalogue = Catalogue(pool, lambda: self.target, on_change, refresh_interval)
        self.subscriptions = Subscriptions(
            pool, lambda: self.target, self._may_read, lambda uri: into_namespace(uri, resource.name)
        )
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
        self._offers: WeakKeyDictionary[Offer, Offer] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"<Mount {self.resource.name} generation {self.target.generation}>"

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
        """Have a listener told when the resource at a URI within the namespace is updated; see `Subscriptions`."""
        inner = out_of_namespace(uri)
        await self.server.enter(
            "resources/subscribe", {"uri": inner}, lambda: self.subscriptions.subscribe(listener, inner)
        )

    def unsubscribe(self, listener: Listener, uri: str) -> None:
        self.subscriptions.unsubscribe(listener, out_of_namespace(uri))

    # --- under the namespace

    def offer(self, listing: Listing) -> Offer:
        """A listing's components under the server's name; made once for each."""
        inner = self.backend.offer(listing)
        offer = self._offers.get(inner)
        if offer is None:
            offer = self._offers[inner] = self._namespaced(inner)
        return offer

    def _namespaced(self, inner: Offer) -> Offer:
        name, offer = self.resource.name, Offer()
        for tool in inner.tools.values():
            public = f"{name}{SEPARATOR}{tool.name}"
            offer.tools[public] = OfferedTool.of(tool.form | {"name": public}, self._tool_caller(tool.name))
        for resource in inner.resources.values():
            uri = into_namespace(resource.form["uri"], name)
            offer.resources[uri] = self.resource_at(uri, resource.form)
        for template in inner.templates.values():
            uri = into_namespace(template.form["uriTemplate"], name)
            offer.templates[uri] = OfferedTemplate.of(template.form | {"uriTemplate": uri})
        for prompt in inner.prompts.values():
            public = f"{name}{SEPARATOR}{prompt.name}"
            offer.prompts[public] = OfferedPrompt.of(prompt.form | {"name": public}, self._prompt_getter(prompt.name))
        return offer

    def unlisted_tool(self, name: str, why: BackendError | None) -> OfferedTool:
        """A tool that cannot be looked up, as the backend is not to be had: calling it says why. The attempt to list it
        was this call's attempt; where there was none, the call makes it."""
        call = _refusing(why) if why else self._tool_caller(name)
        return OfferedTool.of({"name": f"{self.resource.name}{SEPARATOR}{name}"}, call)

    def unlisted_prompt(self, name: str, why: BackendError | None) -> OfferedPrompt:
        get = _refusing(why) if why else self._prompt_getter(name)
        return OfferedPrompt.of({"name": f"{self.resource.name}{SEPARATOR}{name}"}, get)

    def resource_at(self, uri: str, form: Json | None = None) -> OfferedResource:
        """The resource at a URI within the namespace. A backend may serve what it does not list."""
        inner = out_of_namespace(uri)
        return OfferedResource.of((form or {"name": uri}) | {"uri": uri}, self._resource_reader(inner))

    def _tool_caller(self, name: str) -> Callable[[Json], Any]:
        async def call(arguments: Json) -> ToolResult:
            result = await self.server.call_tool(name, arguments)
            if isinstance(result, RawToolResult) and "content" in result.raw:
                content = [_namespaced_content(item, self.resource.name) for item in result.raw["content"]]
                return RawToolResult.of(result.raw | {"content": content})
            return result

        return call

    def _resource_reader(self, uri: str) -> Callable[[], Any]:
        async def read() -> ResourceResult:
            result = await self.server.read_resource(uri)
            if isinstance(result, RawResourceResult):
                contents = [_namespaced_uri(item, self.resource.name) for item in result.raw.get("contents", [])]
                return RawResourceResult.of(result.raw | {"contents": contents})
            return result

        return read

    def _prompt_getter(self, name: str) -> Callable[[Json | None], Any]:
        async def get(arguments: Json | None) -> PromptResult:
            result = await self.server.render_prompt(name, arguments)
            if isinstance(result, RawPromptResult):
                messages = [
                    message | {"content": _namespaced_content(message.get("content"), self.resource.name)}
                    for message in result.raw.get("messages", [])
                ]
                return RawPromptResult.of(result.raw | {"messages": messages})
            return result

        return get


def _refusing(why: BackendError) -> Callable[[Any], Any]:
    async def refuse(arguments: Any) -> Any:
        raise why.again()

    return refuse


def into_namespace(uri: str, server: str) -> str:
    """`scheme://path` as `scheme://server/path`. Any other URI keeps all that follows its scheme, colon included, so
    that the way back is exact: `urn:a:b` is `urn://server/:a:b`, and `x://:80` is `x://server/://:80`."""
    scheme, _, rest = uri.partition(":")
    if rest.startswith("//") and not rest.startswith("//:"):
        return f"{scheme}://{server}/{rest[2:]}"
    return f"{scheme}://{server}/:{rest}"


def out_of_namespace(uri: str) -> str:
    """The backend's own URI for one within its namespace."""
    scheme, _, rest = uri.partition("://")
    _, _, path = rest.partition("/")
    return f"{scheme}{path}" if path.startswith(":") else f"{scheme}://{path}"


def server_of(uri: str) -> str:
    """The server that a URI within the registry belongs to."""
    return uri.partition("://")[2].partition("/")[0]


def _namespaced_uri(item: Any, server: str) -> Any:
    if isinstance(item, dict) and isinstance(item.get("uri"), str):
        return item | {"uri": into_namespace(item["uri"], server)}
    return item


def _namespaced_content(item: Any, server: str) -> Any:
    """A content block whose URIs can be read through the gateway."""
    if not isinstance(item, dict):
        return item
    match item.get("type"):
        case "resource_link":
            return _namespaced_uri(item, server)
        case "resource":
            return item | {"resource": _namespaced_uri(item.get("resource"), server)}
        case _:
            return item
