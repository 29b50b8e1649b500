"""Subscriptions to the resources of one server: one at the backend for many clients.

`composition.mount` comes in with a listener and a URI. Who would use the same backend connection (pool key) shares a
channel: it keeps what the backend was asked to tell equal to what is wanted, and ends when nobody wants anything. It
holds no lease meanwhile, as that would keep others out; a pin keeps the connection from being closed as idle. When the
connection ends, it is opened again after a pause, what was subscribed is subscribed anew, and each client hears once
that its resources were updated, because that may be so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextvars import Context

import anyio
from anyio.abc import TaskGroup

from providers import lines
from providers.caller import Caller
from providers.channel import FIRST_PAUSE, Channel, Watch, WatchState
from providers.connection import Key, Target, key_for
from providers.errors import BackendError, BackendUnavailable, CallerError
from providers.identity import Identity
from providers.lease import Lease, lease
from providers.lines import Json, MCPError
from providers.listener import Listener
from providers.pool import McpConnectionPool
from providers.resource import Isolation

logger = logging.getLogger(__name__)

UPDATED = "notifications/resources/updated"

_METHOD_NOT_FOUND, _INVALID_PARAMS = -32601, -32602
_SETTLED_SECONDS = 10.0
"""A connection that lived so long is no part of a row of failures."""


class Subscriptions:
    """Those of one server.

    Args:
        target: the current generation.
        may_read: whether this user may read the server now; asked again with each notification.
        public: the URI by which a client knows one of the backend's.
    """

    def __init__(
        self,
        pool: McpConnectionPool,
        target: Callable[[], Target],
        may_read: Callable[[Identity], bool],
        public: Callable[[Caller, str], str],
    ) -> None:
        self._pool, self._target, self._may_read, self._public = pool, target, may_read, public
        self._channels: dict[Key, Channel] = {}
        self._tasks: TaskGroup | None = None

    def __repr__(self) -> str:
        return f"<Subscriptions {self._target().resource.name} {len(self._channels)} channels>"

    def start(self, tasks: TaskGroup) -> None:
        """Work in this task group from now on."""
        self._tasks = tasks
        self._channels.clear()

    # --- what clients want

    async def subscribe(self, listener: Listener, uri: str) -> None:
        """Have a listener told when a resource of the backend is updated.

        Args:
            uri: the backend's own.

        Raises:
            MCPError: the backend refused.
            BackendError: it cannot be asked.
            CallerError: the listener has too many, or this server keeps nothing to subscribe to.
        """
        target = self._target()
        if target.resource.isolation is Isolation.CALL:
            raise CallerError(
                f"server '{target.resource.name}': it keeps nothing from one call to the next (isolation 'call'), "
                "so there is nothing to subscribe to."
            )
        channel = self._channel_for(listener, target)
        watch = self._join(channel, listener, uri)
        try:
            if watch.state is WatchState.NEW:
                await watch.tried.wait()
            if watch.error is not None:
                raise _anew(watch.error)
        except BaseException:
            self.unsubscribe(listener, uri)
            raise

    def _channel_for(self, listener: Listener, target: Target) -> Channel:
        key = key_for(target, listener.caller)
        channel = self._channels.get(key)
        if channel is None:
            if self._tasks is None:
                raise BackendUnavailable(target.resource.name, "the gateway is shutting down.", not_sent=True)
            channel = self._channels[key] = Channel(key, listener.caller)
            # In a context of its own: it outlives the request that it is made in, and is to know nothing of it.
            Context().run(self._tasks.start_soon, self._keep, channel)
        return channel

    def _join(self, channel: Channel, listener: Listener, uri: str) -> Watch:
        watch = channel.watches.get(uri)
        if watch is None or listener not in watch.listeners:
            listener.begin(channel.key.server, uri, lambda: self.unsubscribe(listener, uri))
            watch = channel.watches.setdefault(uri, Watch())
            watch.listeners.add(listener)
            channel.changed.set()
        return watch

    def unsubscribe(self, listener: Listener, uri: str) -> None:
        """Tell a listener no more; the backend hears of it when nobody is left who wants it told."""
        listener.done(self._target().resource.name, uri)
        for channel in self._channels.values():
            watch = channel.watches.get(uri)
            if watch is not None and listener in watch.listeners:
                watch.listeners.discard(listener)
                if not watch.listeners:
                    del channel.watches[uri]
                    watch.tried.set()
                    channel.changed.set()

    def review(self) -> None:
        """The server's record changed: who may not read it any more is not subscribed any more, and what is reached in
        another way now is subscribed there."""
        for channel in list(self._channels.values()):
            for uri, watch in list(channel.watches.items()):
                for listener in list(watch.listeners):
                    if not self._may_read(listener.identity):
                        self.unsubscribe(listener, uri)
                    elif key_for(self._target(), listener.caller) != channel.key:
                        self._move(listener, uri)
            channel.is_over = channel.key.generation != self._target().generation
            channel.changed.set()

    def _move(self, listener: Listener, uri: str) -> None:
        self.unsubscribe(listener, uri)
        if self._target().resource.isolation is not Isolation.CALL and self._tasks is not None:
            watch = self._join(self._channel_for(listener, self._target()), listener, uri)
            if watch.state is WatchState.NEW:
                watch.state = WatchState.LOST

    def close(self) -> None:
        """The server is gone."""
        for channel in self._channels.values():
            for uri, watch in list(channel.watches.items()):
                for listener in list(watch.listeners):
                    self.unsubscribe(listener, uri)
            channel.is_over = True
            channel.changed.set()

    # --- what the backend tells

    def updated(self, key: Key, params: Json) -> None:
        """A connection with this key said that a resource was updated: whoever subscribed hears it, nobody else. It may
        be a part of what was subscribed to."""
        channel, uri = self._channels.get(key), params.get("uri")
        if channel is None or not isinstance(uri, str):
            return
        concerned = [watch for wanted, watch in channel.watches.items() if _covers(wanted, uri)]
        self._tell({listener for watch in concerned for listener in watch.listeners}, uri, params)

    def _tell(self, listeners: Iterable[Listener], uri: str, params: Json) -> None:
        for listener in listeners:
            if self._may_read(listener.identity):
                listener.tell(UPDATED, params | {"uri": self._public(listener.caller, uri)})

    # --- one channel

    async def _keep(self, channel: Channel) -> None:
        """Keep one channel as it is wanted, until nobody wants anything."""
        try:
            while not channel.is_over and (channel.watches or channel.held):
                channel.changed = anyio.Event()
                if channel.has_lost_connection:
                    await self._rest_after_loss(channel)
                try:
                    await self._reconcile(channel)
                except BackendError as error:
                    logger.debug("server '%s': subscriptions wait (%s)", channel.key.server, error.problem)
                    channel.fail(error)
                    await self._rest(channel)
                    continue
                if channel.watches:
                    await channel.wait()
        except Exception as fault:  # a task ends here: one server's fault must not end the gateway
            logger.exception("server '%s': its subscriptions ended", channel.key.server, exc_info=fault)
            channel.fail(BackendUnavailable(channel.key.server, "its subscriptions failed. See the gateway's log."))
        finally:
            channel.detach()
            if self._channels.get(channel.key) is channel:
                del self._channels[channel.key]

    async def _rest_after_loss(self, channel: Channel) -> None:
        assert channel.connection is not None
        if anyio.current_time() - channel.connection.created_at > _SETTLED_SECONDS:
            channel.pause = FIRST_PAUSE
        channel.detach()
        if channel.missing:
            await self._rest(channel)

    async def _rest(self, channel: Channel) -> None:
        """A pause that grows from failure to failure; who subscribes meanwhile does not wait for its end."""
        target = self._target()
        await channel.wait(max(channel.pause, self._pool.backoff.rests_for(target.key)))
        channel.pause = min(channel.pause * 2, target.longest_rest)

    async def _reconcile(self, channel: Channel) -> None:
        """Ask the backend for what is missing, and tell it what is not wanted any more."""
        target = self._target()
        if channel.is_over or target.generation != channel.key.generation:
            return  # `review` comes, or was here
        if not channel.missing and not (channel.surplus and channel.connection):
            return
        caller = self._on_whose_behalf(channel)
        async with lease(self._pool, target, caller, may_evict=channel.is_new) as held:
            if not channel.missing and held.connection is not channel.connection:
                channel.detach()  # what is not wanted any more was lost anyway
                return
            channel.attach(held.connection)
            try:
                if held.session.is_modern:
                    await _listen(held, channel, self._restored)
                else:
                    await _ask(held, channel, self._restored, target.resource.timeouts.initialize)
            finally:
                channel.pin()

    def _on_whose_behalf(self, channel: Channel) -> Caller:
        """Of those who wait for something, any who may read the server."""
        for uri in channel.missing:
            for listener in channel.watches[uri].listeners:
                if self._may_read(listener.identity):
                    return listener.caller
        return channel.caller

    def _restored(self, watch: Watch, uri: str) -> None:
        """What was lost is subscribed again; something may have been missed."""
        self._tell(watch.listeners, uri, {"uri": uri})


async def _ask(held: Lease, channel: Channel, restored: Callable[[Watch, str], None], patience: float) -> None:
    """With a handshake: one request for each resource."""
    for uri in channel.missing:
        watch = channel.watches.get(uri)
        if watch is None:
            continue
        try:
            await held.request("resources/subscribe", {"uri": uri}, deadline=patience)
        except MCPError as error:
            if not _is_told_unasked(error, held):
                logger.info("server '%s' refused a subscription (%s)", channel.key.server, error)
                watch.settle(error)
                continue
        else:
            channel.held.add(uri)
        if held.connection is not channel.connection:  # the request had to go over a new one
            channel.attach(held.connection)
            channel.held.add(uri)
            channel.changed.set()  # what was held on the old one is missing now
        _settle(watch, uri, restored)
    for uri in channel.surplus:
        channel.held.discard(uri)
        try:
            await held.request("resources/unsubscribe", {"uri": uri}, deadline=patience)
        except MCPError as error:
            logger.debug("server '%s' refused to end a subscription (%s)", channel.key.server, error)


def _is_told_unasked(error: MCPError, held: Lease) -> bool:
    """Whether a server has resources, but knows no subscriptions: what it tells by itself is passed on then."""
    has_resources = (held.session.facts.get("capabilities") or {}).get("resources") is not None
    return has_resources and lines.error_data(error)["code"] == _METHOD_NOT_FOUND


async def _listen(held: Lease, channel: Channel, restored: Callable[[Watch, str], None]) -> None:
    """In the 2026-07-28 era: all of them on one stream."""
    listening, wanted = held.session.listening, frozenset(channel.watches)
    if listening is None or not listening.takes_resources:
        for uri in channel.missing:
            channel.watches[uri].settle(lines.mcp_error(_METHOD_NOT_FOUND, "Method not found"))
        return
    try:
        honored = await listening.watch(wanted)
    except MCPError as error:
        for uri in channel.missing:
            channel.watches[uri].settle(error)
        return
    channel.held = set(wanted)
    for uri in channel.missing:
        watch = channel.watches[uri]
        if uri in honored:
            _settle(watch, uri, restored)
        elif uri in wanted:
            watch.settle(lines.mcp_error(_INVALID_PARAMS, f"The server takes no subscription to {uri!r}"))


def _settle(watch: Watch, uri: str, restored: Callable[[Watch, str], None]) -> None:
    was_lost = watch.state is WatchState.LOST
    watch.settle()
    if was_lost:
        restored(watch, uri)


def _covers(wanted: str, uri: str) -> bool:
    """Whether a resource is what was subscribed to, or a part of it."""
    whole = wanted.rstrip("/")
    return uri.rstrip("/") == whole or uri.startswith((f"{whole}/", f"{wanted}#", f"{wanted}?"))


def _anew(error: Exception) -> Exception:
    """An error that several callers wait for, for each its own."""
    if isinstance(error, BackendError):
        return error.again()
    data = lines.error_data(error)
    return lines.mcp_error(data["code"], data["message"], data.get("data"))
