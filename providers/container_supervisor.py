"""`ContainerSupervisor`: what concerns all containers of a gateway together.

The gateway comes in: for each container server it asks for a launcher, and it runs the supervisor for as long as it
lives. Here is which identity the gateway has at the engine, how many containers there may be, which of them are idle,
which images have to be pulled, and that what Docker has and what we know stay equal, also after the engine was away.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from providers import ownership
from providers.connection import ConnectionState
from providers.container_http import OpenRemote
from providers.container_keys import PullPolicy
from providers.container_launcher import ContainerLauncher
from providers.container_log import ContainerLog
from providers.docker import McpContainerManager
from providers.docker_engine import EngineUnavailable, ImageMissing
from providers.errors import BackendError, BackendUnavailable, ConfigurationError
from providers.hardening import ImageFacts
from providers.pool import McpConnectionPool
from providers.resource import McpServerResource

logger = logging.getLogger(__name__)

_TICK = 1.0
_RECONCILE_EVERY = 30.0
_ROOM_EVERY = 0.2


@dataclass(frozen=True, slots=True)
class ContainerOptions:
    """Of the gateway's settings, those for containers."""

    configuration: Path
    """The servers.toml, by which the next gateway knows that it is the same one."""
    state: Path
    host: str | None = None
    allowed_paths: Collection[str] = ()
    max_containers: int = 20


class ContainerSupervisor:
    """An async context manager: its body is the life of the containers.

    Args:
        open_remote: opens a wire to a URL.
        lookup: the record of a server as it is now.
    """

    def __init__(
        self,
        options: ContainerOptions,
        pool: McpConnectionPool,
        open_remote: OpenRemote,
        lookup: Callable[[str], McpServerResource | None],
    ) -> None:
        self.open_remote = open_remote
        self._options, self._pool, self._lookup = options, pool, lookup
        self._launchers: list[ContainerLauncher] = []
        self._manager: McpContainerManager | None = None
        self._claiming = anyio.Lock()
        self._taken, self._freed = 0, anyio.Event()
        self._logs: dict[str, ContainerLog] = {}
        self._tasks: TaskGroup | None = None
        self._reconciled_at = float("-inf")
        self._noted: dict[str, Mapping[str, Any]] = {}
        self._pulled = anyio.Event()
        self.engine_problem: EngineUnavailable | None = None
        """Why the engine cannot be asked anything, as long as that is so."""

    def __repr__(self) -> str:
        return f"<ContainerSupervisor {self._taken}/{self._options.max_containers} containers>"

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
            self._tasks.start_soon(self._pull, launcher)
        return launcher

    # --- lifetime

    async def __aenter__(self) -> ContainerSupervisor:
        self._claiming, self._freed, self._pulled = anyio.Lock(), anyio.Event(), anyio.Event()
        self._taken, self._reconciled_at = 0, float("-inf")
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._run)
        self._tasks.start_soon(self._pull_all)
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
        manager = self._manager
        if manager is None:
            return
        try:
            with anyio.move_on_after(30):
                async with anyio.create_task_group() as tasks:
                    for launcher in self._launchers:
                        tasks.start_soon(partial(launcher.stop_all, keep=True))
                await manager.reconcile(adopt=lambda made: self._is_kept(made.server), everything=True)
        except BackendError as error:
            logger.warning("%s What is left of its containers is removed at the next start.", error)
        finally:
            self._manager = None
            manager.close()
            manager.instance.release()

    def start_soon(self, work: Callable[..., Any], *args: Any) -> None:
        if self._tasks is None:
            raise BackendUnavailable("", "the gateway is shutting down.", not_sent=True)
        self._tasks.start_soon(_guarded, work, *args)

    async def manager(self) -> McpContainerManager:
        """The container manager; with the first call this gateway takes an identity and sweeps up behind those that
        were killed.

        Raises:
            BackendUnavailable: the gateway's record of its containers cannot be kept.
        """
        async with self._claiming:
            if self._manager is None:
                options = self._options
                try:
                    claim = partial(ownership.claim, options.state, options.configuration)
                    instance = await anyio.to_thread.run_sync(claim)
                except ConfigurationError as error:
                    raise BackendUnavailable("", str(error), not_sent=True) from None
                self._manager = McpContainerManager(instance, host=options.host, allowed_paths=options.allowed_paths)
            return self._manager

    # --- how many

    async def take_slot(self, server: str) -> None:
        """Reserve room for one container, made by stopping an idle one if need be.

        Raises:
            BackendUnavailable: all are in use.
        """
        most = self._options.max_containers
        with anyio.move_on_after(self._pool.limits.acquire_timeout):
            while self._taken >= most:
                self._make_room()
                with anyio.move_on_after(_ROOM_EVERY):
                    await self._freed.wait()
            self._taken += 1
            return
        problem = f"all {most} containers are in use; raise max_containers. Try again later."
        raise BackendUnavailable(server, problem, not_sent=True)

    def free_slot(self) -> None:
        self._taken -= 1
        self._freed.set()
        self._freed = anyio.Event()

    def _make_room(self) -> None:
        if any(launcher.stop_one_idle() for launcher in self._launchers):
            return
        idle = [
            connection
            for connection in self._pool.connections()
            if connection.target.resource.is_container and connection.state is ConnectionState.IDLE
        ]
        for connection in sorted(idle, key=lambda each: each.last_used_at)[:1]:
            logger.info("server '%s': stopping an idle container to make room", connection.server)
            self._pool.retire(connection)

    def failures(self, server: str) -> int:
        return self._pool.backoff.failures(server)

    def log(self, server: str) -> Callable[[str], None]:
        """Takes the lines that a server's stdio containers write to stderr."""
        if server not in self._logs and self._manager is not None and self._tasks is not None:
            self._logs[server] = ContainerLog(self._manager.instance.log_file(server))
            self._tasks.start_soon(self._logs[server].run)
        return self._logs[server]

    # --- images

    async def _pull_all(self) -> None:
        async with anyio.create_task_group() as tasks:
            for launcher in self._current():
                tasks.start_soon(self._pull, launcher)
        self._pulled.set()

    async def pulled(self) -> None:
        """Wait until the images of all servers are there, or known not to come."""
        await self._pulled.wait()

    async def _pull(self, launcher: ContainerLauncher) -> None:
        """Fetch a server's image where its `pull` says so. No call ever waits for this."""
        resource = launcher.resource
        if not resource.is_enabled:
            return
        try:
            manager = await self.manager()
            image = await _image(manager, resource)
            if resource.pull is PullPolicy.NEVER or (image and resource.pull is PullPolicy.MISSING):
                await _compare(manager, resource, image)
                return
            launcher.pulling = "asking the registry"
            logger.info("server '%s': pulling '%s'", resource.name, resource.docker_image)

            def tell(words: str) -> None:
                launcher.pulling = words

            await _compare(manager, resource, await manager.pull_image(resource, tell))
            logger.info("server '%s': '%s' is here", resource.name, resource.docker_image)
            self._pool.backoff.forget(resource.name, before_generation=sys.maxsize)
        except ImageMissing as error:
            logger.warning("%s", error)
        except BackendError as error:
            logger.warning("server '%s': %s", resource.name, error.problem)
        finally:
            launcher.pulling = None

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
        has_a_past = await anyio.to_thread.run_sync(self._has_a_past)
        while True:
            try:
                if self._launchers or has_a_past:
                    await self._look(is_back=self.engine_problem is not None)
                    self.engine_problem = None
            except EngineUnavailable as error:
                if self.engine_problem is None:
                    logger.warning("%s", error.problem)
                self.engine_problem = error
            except BackendError as error:
                logger.warning("%s", error.problem)
            except Exception:  # one look ends here: a fault in it must not end the gateway
                logger.exception("looking after the containers failed; it is tried again")
            await anyio.sleep(_TICK)

    def _has_a_past(self) -> bool:
        """Whether a gateway with this servers.toml ever had containers: some may still be there."""
        return bool(ownership.known(self._options.state, self._options.configuration))

    async def _look(self, *, is_back: bool) -> None:
        manager = await self.manager()
        for launcher in self._launchers:
            launcher.is_replaced = launcher.is_replaced or not self._is_wanted(launcher)
            self._stop_idle(launcher)
        statuses = {status.container.id: status for status in await manager.list_servers()}
        for launcher in self._launchers:
            for container in launcher.noticed(statuses):
                launcher.lost(container.scope, await manager.get_status(container))
        if is_back or anyio.current_time() - self._reconciled_at > _RECONCILE_EVERY:
            await self._reconcile(manager)
        await self._note(manager)
        self._launchers = [each for each in self._launchers if not each.is_replaced or not each.is_empty]

    async def _reconcile(self, manager: McpContainerManager) -> None:
        kept = [each.resource for each in self._current() if self._is_kept(each.resource.name)]
        wanted = {resource.name: await manager.fingerprint(resource) for resource in kept}
        await manager.reconcile(adopt=lambda made: wanted.get(made.server) == made.fingerprint)
        options = self._options
        for instance in await anyio.to_thread.run_sync(ownership.abandoned, options.state, options.configuration):
            try:
                orphans = McpContainerManager(instance, host=options.host)
                await orphans.reconcile(adopt=lambda _: False, everything=True)
                orphans.close()
            finally:
                instance.release()
        self._reconciled_at = anyio.current_time()

    def _stop_idle(self, launcher: ContainerLauncher) -> None:
        resource = launcher.resource
        limit = resource.idle_stop or (float("inf") if resource.keep else self._pool.limits.idle_timeout)
        for connection in self._pool.connections(resource.name):
            is_ours = connection.target.open_wire is launcher and connection.state is ConnectionState.IDLE
            if is_ours and launcher.idle_for(connection.key.whose, connection.last_used_at) > limit:
                self._pool.retire(connection)
        launcher.stop_idle(limit)

    async def _note(self, manager: McpContainerManager) -> None:
        """Write down how it stands with each server, for the command line."""
        for launcher in self._current():
            name, facts = launcher.resource.name, launcher.facts()
            if self._noted.get(name) != facts:
                self._noted[name] = facts
                await anyio.to_thread.run_sync(manager.instance.note, "servers", name, facts)

    def end_session(self, session: str) -> None:
        """A client session ended, and with it the containers that were its own."""
        for launcher in self._launchers:
            launcher.end_scope(session)


async def _guarded(work: Callable[..., Any], *args: Any) -> None:
    try:
        await work(*args)
    except Exception:  # a task ends here: a fault with one container must not end the gateway
        logger.exception("work on a container failed")


async def _image(manager: McpContainerManager, resource: McpServerResource) -> ImageFacts | None:
    try:
        return await manager.image(resource)
    except ImageMissing:
        return None


async def _compare(manager: McpContainerManager, resource: McpServerResource, image: ImageFacts | None) -> None:
    """Write down which image a server has, and tell when it is another one than last time."""
    if image is None:
        return
    facts = {"image": resource.docker_image, "id": image.id, "digest": image.digest}
    known = await anyio.to_thread.run_sync(manager.instance.note, "images", resource.name, facts)
    if isinstance(known, dict) and known.get("image") == resource.docker_image and known.get("id") != image.id:
        changed = "server '%s': '%s' is another image now: %s, it was %s. Pin it with @sha256:… if that is not wanted."
        logger.warning(changed, resource.name, resource.docker_image, image.id[:19], str(known.get("id"))[:19])
