"""What clients send that FastMCP has no components for: completion, subscriptions, and news of their roots.

A front server comes in with raw params (FastMCP 4.x; on 3.4 none of this is served). Each request is routed by the
name or URI in it, like a call, and runs within the sub-server's middleware. What may not be read answers like what does
not exist.
"""

from __future__ import annotations

from typing import Any

import anyio
from anyio.abc import TaskGroup
from fastmcp import FastMCP
from fastmcp.exceptions import FastMCPError, NotFoundError

from composition.mount import Mount
from composition.view import Found, View
from providers import lines, low_level
from providers.caller import Caller
from providers.catalogue import KINDS
from providers.connection import PooledConnection
from providers.errors import CallerError
from providers.lines import Json, MCPError
from providers.listener import MAX_SUBSCRIPTIONS, Listener
from providers.listening import ACKNOWLEDGED, SUBSCRIPTION_META_KEY
from providers.pool import McpConnectionPool
from providers.resource import Isolation
from providers.subscriptions import UPDATED

_INVALID_PARAMS, _INTERNAL_ERROR = -32602, -32603
_ROOTS_CHANGED = "notifications/roots/list_changed"
_TELL_SECONDS = 5.0
_NOTHING: Json = {"completion": {"values": []}}
"""What FastMCP answers for a prompt or template that it does not know."""


class Relay:
    def __init__(self, view: View, pool: McpConnectionPool) -> None:
        self._view, self._pool = view, pool

    def __repr__(self) -> str:
        return f"<Relay of {self._view!r}>"

    def serve(self, server: FastMCP[Any]) -> None:
        """Have a front server's low-level messages answered here."""
        low_level.serve_others(
            server,
            {
                "completion/complete": self.complete,
                "resources/subscribe": self.subscribe,
                "resources/unsubscribe": self.unsubscribe,
                "subscriptions/listen": self.listen,
            },
            {_ROOTS_CHANGED: self.roots_changed},
        )

    # --- completion

    async def complete(self, request: Any, params: Json) -> Json:
        """Suggestions for an argument, from the server that the prompt or template belongs to."""
        caller, reference = await self._view.caller(), params["ref"]
        key, find = ("name", self._view.find) if reference["type"] == "ref/prompt" else ("uri", self._view.find_uri)
        found = find(str(reference[key]), caller.identity) if caller else None
        if found is None:
            return _NOTHING
        mount, own = found
        try:
            return await mount.complete(params | {"ref": reference | {key: own}})
        except FastMCPError as error:
            raise _shown(error) from None

    # --- subscriptions of a handshake client

    async def subscribe(self, request: Any, params: Json) -> Json:
        """Have the client's session told when a resource is updated."""
        uri, caller = str(params["uri"]), await self._view.caller()
        found = self._view.find_uri(uri, caller.identity) if caller else None
        if found is None or caller is None or not caller.has_session:
            raise _unknown_resource(uri)
        mount, own = found
        try:
            await mount.subscribe(self._view.listeners.of_session(caller), own)
        except NotFoundError:
            raise _unknown_resource(uri) from None
        except FastMCPError as error:
            raise _shown(error) from None
        return {}

    async def unsubscribe(self, request: Any, params: Json) -> Json:
        """End a subscription; that there is none is no error."""
        uri, caller = str(params["uri"]), await self._view.caller()
        found = self._view.find_uri(uri, caller.identity) if caller else None
        listener = self._view.listeners.find(caller) if caller else None
        if found is not None and listener is not None:
            mount, own = found
            mount.unsubscribe(listener, own)
        return {}

    # --- `subscriptions/listen` of a 2026-07-28 client

    async def listen(self, request: Any, params: Json) -> Json:
        """One stream: the acknowledgement, then what the client asked for and may hear, until one side ends it."""
        meta = {SUBSCRIPTION_META_KEY: request.request_id}
        caller = await self._view.caller()
        if caller is None:
            raise lines.mcp_error(_INVALID_PARAMS, "authentication is required")
        asked, found = params["notifications"], self._find_all(params["notifications"], caller)
        honored = dict.fromkeys(_flags(asked), True) | ({"resourceSubscriptions": list(found)} if found else {})
        try:
            with self._view.listeners.stream(caller, frozenset(_flags(asked).values())) as listener:
                async with anyio.create_task_group() as tasks:
                    joining = [_Joining(mount, listener, own, uri) for uri, (mount, own) in found.items()]
                    for each in joining:
                        tasks.start_soon(each.run)
                    with anyio.move_on_after(_TELL_SECONDS):  # who hears the acknowledgement counts on what comes next
                        for each in joining:
                            await each.is_done.wait()
                    for each in joining:
                        each.is_late = not each.is_done.is_set()
                    await lines.tell_client(request, ACKNOWLEDGED, {"notifications": honored, "_meta": meta})
                    async for method, told in listener.mailbox:
                        stamped = told | {"_meta": (told.get("_meta") or {}) | meta}
                        await lines.tell_client(request, method, stamped)
                    tasks.cancel_scope.cancel()
        except CallerError as error:
            raise _shown(error) from None
        return {"_meta": meta}

    def _find_all(self, asked: Json, caller: Caller) -> dict[str, Found]:
        """The resources that can be subscribed to, as far as is known, each with its server. One that may not be read
        is left out like one that does not exist."""
        uris = [str(uri) for uri in asked.get("resourceSubscriptions") or []]
        if len(uris) > MAX_SUBSCRIPTIONS:
            problem = f"one stream may name {MAX_SUBSCRIPTIONS:,} resources, and this one names {len(uris):,}"
            raise lines.mcp_error(_INVALID_PARAMS, problem)
        routed = {uri: self._view.find_uri(uri, caller.identity) for uri in uris}
        return {uri: found for uri, found in routed.items() if found and _takes_subscriptions(found[0], caller)}

    # --- roots

    async def roots_changed(self) -> None:
        """The client's roots changed: the backends that are this client session's own are told, and no others."""
        caller = await self._view.caller()
        if caller is None or not caller.has_session:
            return
        async with anyio.create_task_group() as tasks:
            for connection in self._pool.connections():
                if (
                    connection.ends_with_session == caller.session
                    and "roots" in connection.opener.capabilities.declared
                ):
                    _tell_soon(tasks, connection, _ROOTS_CHANGED)


def _tell_soon(tasks: TaskGroup, connection: PooledConnection, method: str) -> None:
    async def tell() -> None:
        if connection.is_open and connection.session is not None and not connection.session.is_modern:
            with anyio.move_on_after(_TELL_SECONDS):
                await connection.session.tell(method)

    tasks.start_soon(tell)


class _Joining:
    """One resource of a stream, on its way to its server. What cannot be subscribed to never tells anything; in this
    era that is no error. A server that starts slowly is not waited for: if the stream is acknowledged before it is
    ready, something may be missed, and the client hears once that the resource was updated."""

    def __init__(self, mount: Mount, listener: Listener, own: str, uri: str) -> None:
        self._mount, self._listener, self._own, self._uri = mount, listener, own, uri
        self.is_done = anyio.Event()
        self.is_late = False

    async def run(self) -> None:
        try:
            await self._mount.subscribe(self._listener, self._own)
        except (FastMCPError, MCPError):
            return
        finally:
            self.is_done.set()
        if self.is_late:
            self._listener.tell(UPDATED, {"uri": self._uri})


def _flags(asked: Json) -> dict[str, str]:
    """The lists whose changes are asked for, each with its notification."""
    known = {f"{kind}ListChanged": f"notifications/{kind}/list_changed" for kind in KINDS}
    return {flag: method for flag, method in known.items() if asked.get(flag) is True}


def _takes_subscriptions(mount: Mount, caller: Caller) -> bool:
    listing = mount.catalogue.known_to(caller.identity)
    declared = (listing.facts.get("capabilities") or {}) if listing else {"resources": {"subscribe": True}}
    takes_any = declared.get("resources") is not None
    return takes_any and mount.resource.isolation is not Isolation.CALL


def _unknown_resource(uri: str) -> Exception:
    return lines.mcp_error(_INVALID_PARAMS, f"Unknown resource: {uri!r}")


def _shown(error: FastMCPError) -> Exception:
    """An error of ours, as a raw request is answered with."""
    return lines.mcp_error(_INVALID_PARAMS if isinstance(error, CallerError) else _INTERNAL_ERROR, str(error))
