"""The container managers of a gateway: its own, and those of gateways that have gone, whose kept containers it uses.

The supervisor comes in. Called are `ownership` for who is gone, and the managers themselves. An identity is taken with
the first manager that is asked for, and everything is let go together, at the end.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from providers import ownership
from providers.container import Container
from providers.docker import McpContainerManager
from providers.errors import BackendError, BackendUnavailable, ConfigurationError
from providers.ownership import Instance
from providers.resource import McpServerResource

logger = logging.getLogger(__name__)

_CLOSING_SECONDS = 30.0

Marks = Callable[[str, str, str, str], Mapping[str, str]]
"""Labels, given the server, the container's name, its image and its scope."""


@dataclass(frozen=True, slots=True)
class ContainerOptions:
    """Of the gateway's settings, those for containers."""

    configuration: Path
    """The servers.toml, by which the next gateway knows that it is the same one."""
    state: Path
    host: str | None = None
    allowed_paths: Collection[str] = ()
    unseen: tuple[str, ...] = ()  # paths that no container may see, besides those that the instance knows
    max_containers: int = 20
    marks: Marks | None = None
    """Further labels of each container, where several replicas may make it."""


class Managers:
    """What a gateway reaches its containers by."""

    def __init__(self, options: ContainerOptions) -> None:
        self._options = options
        self._taken: list[McpContainerManager] = []
        self._taking = anyio.Lock()

    def __repr__(self) -> str:
        return f"<Managers {self._taken}>"

    @property
    def taken(self) -> list[McpContainerManager]:
        """Its own first."""
        return list(self._taken)

    def has_a_past(self) -> bool:
        """Whether a gateway with this servers.toml ever had containers: some may still be there. It reads files."""
        return bool(ownership.known(self._options.state, self._options.configuration))

    async def own(self) -> McpContainerManager:
        """The gateway's own manager.

        Raises:
            BackendUnavailable: the gateway's record of its containers cannot be kept.
        """
        if not self._taken:
            async with self._taking:
                if not self._taken:
                    self._taken.append(await self._claimed())
        return self._taken[0]

    async def _claimed(self) -> McpContainerManager:
        options = self._options
        try:
            claim = partial(ownership.claim, options.state, options.configuration)
            return self._manager_of(await anyio.to_thread.run_sync(claim))
        except ConfigurationError as error:
            raise BackendUnavailable("", str(error), not_sent=True) from None

    def _manager_of(self, instance: Instance) -> McpContainerManager:
        if self._options.marks is not None:
            instance.marks = self._options.marks
        instance.hidden = tuple(dict.fromkeys((*instance.hidden, *self._options.unseen)))
        return McpContainerManager(instance, host=self._options.host, allowed_paths=self._options.allowed_paths)

    async def keeper(self, resource: McpServerResource) -> McpContainerManager:
        """The manager that has the container over HTTP of a server, or is to make one. Where a gateway that has gone
        left one that is to be kept, its identity is taken over with it.

        Raises:
            BackendUnavailable: the gateway's record of its containers cannot be kept.
        """
        own = await self.own()
        if not resource.keep:
            return own
        async with self._taking, self._orphans() as orphans:
            for manager in [*self._taken, *orphans]:
                if await _has(manager, resource):
                    if manager not in self._taken:
                        self._taken.append(manager)
                    return manager
        return own

    @asynccontextmanager
    async def _orphans(self) -> AsyncIterator[list[McpContainerManager]]:
        """Those of the gateways that have gone. They are let go with the block, whatever happens in it, but for those
        that were taken."""
        options = self._options
        instances = await anyio.to_thread.run_sync(ownership.abandoned, options.state, options.configuration)
        with ExitStack() as held:
            orphans = [self._manager_of(instance) for instance in instances]
            for manager in orphans:
                held.callback(self._let_go, manager)
            yield orphans

    def _let_go(self, manager: McpContainerManager) -> None:
        if manager not in self._taken:
            manager.close()
            manager.instance.release()

    async def reconcile(self, kept: Collection[McpServerResource]) -> None:
        """Make the engine and what we know equal, and sweep up behind gateways that have gone.

        Args:
            kept: servers whose containers over HTTP outlive their gateway: of them one that was made as it would be
                made now stays.
        """
        for manager in self.taken:
            await manager.reconcile(adopt=await _alike(manager, kept))
        async with self._taking, self._orphans() as orphans:
            for manager in orphans:
                await manager.reconcile(adopt=await _alike(manager, kept), everything=True)

    async def close(self, is_kept: Callable[[str], bool]) -> None:
        """Remove every container but those of servers that are to be kept, and let everything go."""
        taken, self._taken = self._taken, []
        with ExitStack() as held:
            for manager in taken:
                held.callback(self._let_go, manager)
            for manager in taken:
                try:
                    with anyio.move_on_after(_CLOSING_SECONDS):
                        await manager.reconcile(adopt=lambda made: is_kept(made.server), everything=True)
                except BackendError as error:
                    logger.warning("%s What is left of its containers is removed at the next start.", error)


async def _has(manager: McpContainerManager, resource: McpServerResource) -> bool:
    """Whether a container of this server runs there that was made as it would be made now."""
    is_alike = await _alike(manager, [resource])
    return any(status.is_running and is_alike(status.container) for status in await manager.list_servers())


async def _alike(manager: McpContainerManager, resources: Collection[McpServerResource]) -> Callable[[Container], bool]:
    wanted = {resource.name: await manager.fingerprint(resource) for resource in resources}
    return lambda made: wanted.get(made.server) == made.fingerprint
