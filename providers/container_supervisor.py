"""`ContainerSupervisor`: what concerns all containers of a gateway together.

The gateway comes in: for each container server it asks for a launcher, and it runs the supervisor for as long as it
lives. Here is which containers are idle or have ended, which images have to be pulled, and that what Docker has and
what we know stay equal, also after the engine was away. Nothing that fails here, be it the disk, ends the gateway.
"""

from __future__ import annotations

import logging
import math
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from providers.connection import PooledConnection
from providers.container_http import OpenRemote
from providers.container_images import compare_image, image_of, with_each_image
from providers.container_keys import PullPolicy
from providers.container_launcher import ContainerLauncher
from providers.container_log import ContainerLog, last_lines
from providers.container_managers import ContainerOptions, Managers
from providers.container_slots import Idle, Slot, Slots
from providers.docker import McpContainerManager
from providers.docker_engine import EngineUnavailable, ImageMissing
from providers.errors import BackendError, BackendUnavailable
from providers.leases import Place, is_of_all_replicas
from providers.pool import McpConnectionPool
from providers.resource import McpServerResource, TransportType
from providers.sharing import Sharing

logger = logging.getLogger(__name__)

_TICK = 1.0
_RECONCILE_EVERY = 30.0
_TIDY_EVERY = 3.0
"""As long as there are containers that we failed to remove: an engine may be away for less than a tick."""
_CLOSING_SECONDS = 30.0


class ContainerSupervisor:
    """An async context manager: its body is the life of the containers.

    Args:
        open_remote: opens a wire to a URL.
        lookup: the record of a server as it is now.
        fill: gives a record with its secrets in place.
        sharing: where several replicas use the same containers.
    """

    def __init__(
        self,
        options: ContainerOptions,
        pool: McpConnectionPool,
        open_remote: OpenRemote,
        lookup: Callable[[str], McpServerResource | None],
        fill: Callable[[McpServerResource], Awaitable[McpServerResource]],
        sharing: Sharing | None = None,
    ) -> None:
        self.open_remote, self._fill = open_remote, fill
        self.sharing = sharing
        if sharing is not None:
            sharing.leases.is_needed = lambda place: self._slots.has(*place)
            sharing.leases.on_loss = self._lost
        self._options, self._pool, self._lookup = options, pool, lookup
        self._launchers: list[ContainerLauncher] = []
        self._managers = Managers(options)
        self._slots = Slots(options.max_containers, self._make_room)
        self._logs: dict[str, ContainerLog] = {}
        self._tasks: TaskGroup | None = None
        self._reconciled_at = float("-inf")
        self._noted: dict[str, Mapping[str, Any]] = {}
        self._complaint = ""
        """What the last look stumbled over: it is told once, and not every second."""
        self.engine_problem: EngineUnavailable | None = None
        """Why the engine cannot be asked anything, as long as that is so."""

    def __repr__(self) -> str:
        return f"<ContainerSupervisor {self._slots} {'without an engine' if self.engine_problem else 'in order'}>"

    @property
    def launchers(self) -> list[ContainerLauncher]:
        return self._launchers

    def launcher(self, resource: McpServerResource) -> ContainerLauncher:
        """How a record's sessions are opened from now on; what an earlier one of the same name had goes when idle."""
        for earlier in self._launchers:
            earlier.is_replaced = earlier.is_replaced or earlier.resource.name == resource.name
        launcher = ContainerLauncher(resource, self)
        self._launchers.append(launcher)
        if self._tasks is not None:
            self.start_soon(self._pull, launcher)
        return launcher

    async def filled(self, resource: McpServerResource) -> McpServerResource:
        """The record with its secrets in place, for whom a wire is being opened."""
        return await self._fill(resource)

    # --- lifetime

    async def __aenter__(self) -> ContainerSupervisor:
        self._managers, self._slots = Managers(self._options), Slots(self._options.max_containers, self._make_room)
        self._reconciled_at, self._complaint, self._logs = float("-inf"), "", {}
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._run)
        for launcher in self._current():
            launcher.has_image = anyio.Event()
            self.start_soon(self._pull, launcher)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        tasks, self._tasks = self._tasks, None
        assert tasks is not None
        tasks.cancel_scope.cancel()
        try:
            return await tasks.__aexit__(kind, error, trace)
        finally:
            with anyio.CancelScope(shield=True):
                await self._close()

    async def _close(self) -> None:
        with anyio.move_on_after(_CLOSING_SECONDS):
            async with anyio.create_task_group() as tasks:
                for launcher in self._launchers:
                    tasks.start_soon(_guarded, partial(launcher.stop_all, keep=True))
        await _guarded(self._managers.close, self._is_kept)

    def start_soon(self, work: Callable[..., Any], *args: Any) -> None:
        if self._tasks is None:
            raise BackendUnavailable("", "the gateway is shutting down.", not_sent=True)
        self._tasks.start_soon(_guarded, work, *args)

    async def manager(self) -> McpContainerManager:
        """The container manager; with the first call this gateway takes an identity.

        Raises:
            BackendUnavailable: the gateway's record of its containers cannot be kept.
        """
        return await self._managers.own()

    async def keeper(self, resource: McpServerResource) -> McpContainerManager:
        """The manager that has the container over HTTP of a server, or is to make one.

        Raises:
            BackendUnavailable: the gateway's record of its containers cannot be kept.
        """
        return await self._managers.keeper(resource)

    # --- how many

    async def take_slot(self, server: str, whose: str) -> Slot:
        """Reserve room for one container, made by stopping an idle one if need be.

        Raises:
            PoolExhausted: all are in use.
        """
        return await self._slots.take(server, whose, self._pool.limits.acquire_timeout)

    def free_slot(self, slot: Slot) -> None:
        self._slots.free(slot)

    def _make_room(self) -> bool:
        """Begin to stop the container that was idle longest; False if there is none. Those to be kept are let be, and
        those that somebody is subscribed to are the last to go."""
        idle = [each for launcher in self._launchers for each in launcher.idle()]
        for group in self._by_container():
            if all(connection.is_idle for connection in group) and not group[0].target.resource.keep:
                is_pinned = any(connection.pins for connection in group)
                since = math.inf if is_pinned else max(connection.last_used_at for connection in group)
                idle.append(Idle(since, partial(self._stop_group, group)))
        if idle:
            min(idle, key=lambda each: each.since).stop()
        return bool(idle)

    def _stop_group(self, group: list[PooledConnection]) -> None:
        """Stop an idle container with the sessions that it has."""
        logger.info("server '%s': stopping an idle container to make room", group[0].server)
        for connection in group:
            self._pool.retire(connection)
        self._slots.leave(group[0].server, group[0].key.whose)
        for launcher in self._launchers:
            if launcher is group[0].target.open_wire:
                launcher.end_scope(group[0].key.whose)  # it ends once its wires have

    def _by_container(self) -> list[list[PooledConnection]]:
        """The pool's connections to containers: over stdio each has its own, over HTTP those of a scope share one."""
        groups = defaultdict[object, list[PooledConnection]](list)
        for connection in self._pool.connections():
            resource = connection.target.resource
            has_container = resource.is_container and not resource.docker_tools  # those of tools live for one call
            if has_container and not connection.closing.is_set():
                over_stdio = resource.transport_type is TransportType.STDIO
                groups[connection if over_stdio else (connection.target.key, connection.key.whose)].append(connection)
        return list(groups.values())

    def failures(self, server: str) -> int:
        return self._pool.backoff.failures(server)

    def log(self, server: str) -> Callable[[str], None]:
        """Takes the lines that a server's stdio containers write to stderr."""
        if server not in self._logs:
            self._logs[server] = ContainerLog(self._managers.taken[0].instance.log_file(server))
            self.start_soon(self._logs[server].run)
        return self._logs[server]

    async def log_lines(self, resource: McpServerResource, tail: int) -> list[str]:
        """The last lines that a server's containers of this gateway wrote, each with its time in front.

        Raises:
            BackendError: the engine does not answer.
        """
        lines: list[str] = []
        for manager in self._managers.taken:
            if resource.transport_type is TransportType.STDIO:
                file = manager.instance.log_file(resource.name)
                lines += await anyio.to_thread.run_sync(last_lines, file, tail)
                continue
            for status in await manager.list_servers():
                if status.container.server == resource.name:
                    lines += await manager.get_logs(status.container, tail)
        return sorted(lines)[-tail:] if tail else []

    # --- images

    async def pulled(self, server: str | None = None) -> None:
        """Wait until the image of one server, or those of all, are there, or known not to come."""
        for launcher in self._current():
            if server in (None, launcher.resource.name):
                await launcher.has_image.wait()

    async def _pull(self, launcher: ContainerLauncher) -> None:
        """Fetch a server's image where its `pull` says so. No call ever waits for this."""
        resource = launcher.resource
        try:
            if not resource.is_enabled:
                return
            manager = await self.manager()
            for each in with_each_image(resource):
                await self._fetch(launcher, manager, each)
        except BackendError as error:
            logger.warning("server '%s': %s", resource.name, error.problem)
        except OSError as error:
            logger.warning("server '%s': which image it has is not written down (%s)", resource.name, error.strerror)
        finally:
            launcher.pulling = None
            launcher.has_image.set()

    async def _fetch(
        self, launcher: ContainerLauncher, manager: McpContainerManager, resource: McpServerResource
    ) -> None:
        image = await image_of(manager, resource)
        if resource.pull is PullPolicy.NEVER or (image and resource.pull is PullPolicy.MISSING):
            await compare_image(manager, resource, image)
            return
        launcher.pulling = "asking the registry"
        logger.info("server '%s': pulling '%s'", resource.name, resource.docker_image)

        def tell(words: str) -> None:
            launcher.pulling = words

        try:
            await compare_image(manager, resource, await manager.pull_image(resource, tell))
        except ImageMissing as error:
            logger.warning("%s", error)
            return
        logger.info("server '%s': '%s' is here", resource.name, resource.docker_image)
        self._pool.backoff.forget(resource.name, before_generation=sys.maxsize)

    # --- putting in order

    def _current(self) -> list[ContainerLauncher]:
        return [launcher for launcher in self._launchers if not launcher.is_replaced]

    def _is_wanted(self, launcher: ContainerLauncher) -> bool:
        record = self._lookup(launcher.resource.name)
        return record is not None and record.is_enabled and record.is_container

    def _is_kept(self, server: str) -> bool:
        """Whether a server's container outlives the gateway, and is taken over by the next one."""
        record = self._lookup(server)
        return record is not None and record.is_enabled and record.keep

    async def _run(self) -> None:
        has_a_past: bool | None = None
        while True:
            try:
                if has_a_past is None:
                    has_a_past = await anyio.to_thread.run_sync(self._managers.has_a_past)
                if self._launchers or has_a_past:
                    await self._look()
                self._complaint = ""
            except EngineUnavailable as error:
                self.engine_problem = error
                self._complain(error.problem)
            except BackendError as error:
                self._complain(error.problem)
            except OSError as error:
                self._complain(f"what is known of containers cannot be written down ({error.strerror or error})")
            except Exception as fault:  # noqa: BLE001  # one look ends here: a fault in it must not end the gateway
                self._complain(f"looking after the containers failed ({fault!r})", fault)
            await anyio.sleep(_TICK)

    def _complain(self, problem: str, fault: Exception | None = None) -> None:
        if problem != self._complaint:
            logger.warning("%s; it is tried again", problem.rstrip("."), exc_info=fault)
            self._complaint = problem

    async def _look(self) -> None:
        await self.manager()
        for launcher in self._launchers:
            launcher.is_replaced = launcher.is_replaced or not self._is_wanted(launcher)
            self._stop_idle(launcher)
        listed = [status for manager in self._managers.taken for status in await manager.list_servers()]
        if self.engine_problem is not None:
            self._is_back()
        statuses = {status.container.id: status for status in listed}
        for launcher in self._launchers:
            for manager, container in launcher.noticed(statuses):
                launcher.lost(container.scope, await manager.get_status(container))
        is_untidy = any(manager.is_untidy for manager in self._managers.taken)
        if anyio.current_time() - self._reconciled_at > (_TIDY_EVERY if is_untidy else _RECONCILE_EVERY):
            await self.put_in_order()
        await self._note()
        self._launchers = [each for each in self._launchers if not each.is_replaced or not each.is_empty]

    async def put_in_order(self) -> None:
        """Make what Docker has and what we know equal, and sweep up behind gateways that have gone.

        Raises:
            BackendError: the engine does not let us.
        """
        kept = [each.resource for each in self._current() if self._is_kept(each.resource.name)]
        await self._managers.reconcile(kept)
        self._reconciled_at = anyio.current_time()

    def _is_back(self) -> None:
        """The engine answers again. What failed meanwhile says nothing about the servers."""
        self.engine_problem, self._reconciled_at = None, float("-inf")
        for launcher in self._launchers:
            self._pool.backoff.forget(launcher.resource.name, before_generation=sys.maxsize)

    def _stop_idle(self, launcher: ContainerLauncher) -> None:
        resource = launcher.resource
        limit = resource.idle_stop or (float("inf") if resource.keep else self._pool.limits.idle_timeout)
        for connection in self._pool.connections(resource.name):
            is_ours = connection.target.open_wire is launcher and connection.is_idle and not connection.pins
            if is_ours and launcher.idle_for(connection.key.whose, connection.last_used_at) > limit:
                self._pool.retire(connection)
        launcher.stop_idle(limit)

    async def _note(self) -> None:
        """Write down how it stands with each server, for the command line."""
        instance = (await self.manager()).instance
        for launcher in self._current():
            name, facts = launcher.resource.name, launcher.facts()
            if self._noted.get(name) != facts:
                await anyio.to_thread.run_sync(instance.note, "servers", name, facts)
                self._noted[name] = facts

    def end_session(self, session: str) -> None:
        """A client session ended, and with it the containers that were its own."""
        for launcher in self._launchers:
            launcher.end_scope(session)

    # --- with other replicas

    def _lost(self, place: Place) -> None:
        """Another replica runs the containers of this place now."""
        for launcher in self._launchers:
            if launcher.resource.name == place[0]:
                launcher.end_scope(place[1])

    def let_go(self) -> None:
        """Begin to stop the containers that nobody calls now and that other replicas may run."""
        for connection in self._pool.connections():
            is_container = connection.target.resource.is_container and is_of_all_replicas(connection.key.whose)
            if is_container and connection.is_idle:
                self._pool.retire(connection)
                self._lost((connection.server, connection.key.whose))


async def _guarded(work: Callable[..., Any], *args: Any) -> None:
    try:
        await work(*args)
    except Exception:  # a task ends here: a fault with one container must not end the gateway
        logger.exception("work on a container failed")
