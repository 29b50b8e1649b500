"""`McpContainerManager`: makes, starts, looks at, stops and removes the containers of servers.

The launchers, the supervisor and the command line come in. Called are `docker_engine`, `container_plan` for what is to
be made, and `ownership` for which containers are ours. When a container should run is not decided here; and nothing
here touches a container that is not proven to be ours.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio

from providers.container import (
    Address,
    Container,
    ContainerStatus,
    listed_status_of,
    missing,
    name_in,
    status_of,
)
from providers.container_plan import Plan
from providers.docker_engine import (
    QUICK,
    SLOW,
    Api,
    APIError,
    DockerEngine,
    ImageMissing,
    NotFound,
    tolerating,
)
from providers.engine import EngineAddress
from providers.errors import BackendError, BackendUnavailable
from providers.hardening import ImageFacts, check_mounts, container_port, image_facts, volume_problem, volumes_of
from providers.image_pull import ImagePull
from providers.ownership import INSTANCE, SERVER, Instance
from providers.resource import McpServerResource

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Attempt:
    """One container on its way, in a thread that goes on when its caller gives up."""

    resource: McpServerResource
    scope: str
    made: Container | None = None
    is_abandoned: bool = False


class McpContainerManager:
    """The containers of one gateway at one Docker engine.

    Args:
        instance: the gateway's identity, by which it knows its own containers.
        host: the engine, where the operator chose one; else Docker's own rules say which.
        allowed_paths: the folders of this machine below which servers may mount.
    """

    def __init__(self, instance: Instance, *, host: str | None = None, allowed_paths: Collection[str] = ()) -> None:
        self.instance = instance
        self._allowed_paths, self._engine = allowed_paths, DockerEngine(host)
        self._strangers: set[str] = set()
        self._taking_over = anyio.Lock()
        """What is taken into use is not removed at the same moment."""
        self._live: dict[str, str] = {}
        """Names of the containers that are in use, or being made, with their servers."""

    def __repr__(self) -> str:
        return f"<McpContainerManager {self.instance.id} {self._engine!r}>"

    @property
    def engine(self) -> EngineAddress:
        """Where the engine is.

        Raises:
            ConfigurationError: that cannot be told.
        """
        return self._engine.address

    @property
    def tls_context(self) -> ssl.SSLContext | None:
        return self._engine.tls_context

    async def api_version(self, server: str) -> str:
        """The version of Docker's API that we speak with this engine."""
        return await self._engine.api_version(server)

    def close(self) -> None:
        self._engine.close()

    # --- images

    async def image(self, resource: McpServerResource) -> ImageFacts:
        """What the engine has under a server's image.

        Raises:
            ImageMissing: nothing.
        """
        return await self._engine.call(resource.name, partial(_image, resource), QUICK)

    async def pull_image(
        self, resource: McpServerResource, progress: Callable[[str], None] = lambda _: None
    ) -> ImageFacts:
        """Fetch a server's image, within its `pull` timeout.

        Args:
            progress: told now and then how far it is, in words.

        Raises:
            ImageMissing: it could not be fetched.
        """

        events = partial(self._engine.pull, resource.name, resource.docker_image or "")
        if problem := await ImagePull(events).wait(resource.timeouts.pull, progress):
            problem = problem.removeprefix(f"server '{resource.name}': ").rstrip(".")
            raise ImageMissing(
                resource.name, f"its image could not be pulled: {problem}. {_how(resource)}", not_sent=True
            )
        return await self.image(resource)

    # --- making, starting and ending

    async def start_server(self, resource: McpServerResource, scope: str = "shared") -> Container:
        """A running container for a server: one of ours that was made alike and runs, or else a new one.

        Raises:
            BackendUnavailable: there is none to be had.
        """
        wanted = await self.fingerprint(resource)
        async with self._taking_over:
            for status in await self.list_servers():
                made = status.container
                if status.is_running and (made.server, made.scope, made.fingerprint) == (resource.name, scope, wanted):
                    self._live[made.name] = made.server
                    return made
        container = await self.create_server(resource, scope)
        try:
            await self.start_created(container)
        except BackendError:
            await self.stop_server(container, grace=0)
            raise
        return container

    async def fingerprint(self, resource: McpServerResource) -> str:
        """What a container that would be made now has as its fingerprint; nothing where there is no image."""
        try:
            return await self._engine.call(resource.name, lambda api: self._plan(resource, api).fingerprint, QUICK)
        except ImageMissing:
            return ""

    async def create_server(self, resource: McpServerResource, scope: str) -> Container:
        """Make a container and do not start it yet.

        Raises:
            ImageMissing, EngineUnavailable, BackendUnavailable: it cannot be made; the message says why.
        """
        await self._engine.call(resource.name, lambda api: api.ping(), QUICK)  # a hung engine is not worth a long wait
        attempt = _Attempt(resource, scope)
        try:
            return await self._engine.call(resource.name, partial(self._create, attempt), SLOW)
        except BaseException:
            attempt.is_abandoned = True
            self._abandon(attempt)
            raise

    async def start_created(self, container: Container) -> None:
        """Start what was created."""
        await self._engine.call(container.server, lambda api: api.start(container.id), SLOW)

    def _plan(self, resource: McpServerResource, api: Api) -> Plan:
        return Plan(resource, _image(resource, api), self.instance, is_inside=self._engine.own_id is not None)

    def _abandon(self, attempt: _Attempt) -> None:
        """Nobody waits for its container any more: reconciliation removes it."""
        if attempt.made is not None:
            self._live.pop(attempt.made.name, None)

    def _create(self, attempt: _Attempt, api: Api) -> Container:
        attempt.made = self._make(attempt.resource, attempt.scope, api)
        if attempt.is_abandoned:
            self._abandon(attempt)
        return attempt.made

    def _make(self, resource: McpServerResource, scope: str, api: Api) -> Container:
        check_mounts(resource, self._allowed_paths, [self.engine.socket_path] if self.engine.socket_path else [])
        _check_volumes(resource, api)
        plan = self._plan(resource, api)
        for name in plan.names():
            if name not in self.instance.containers() and (made := self._create_named(name, plan, scope, api)):
                return made
        raise BackendUnavailable(resource.name, "Docker has no name left for its container.", not_sent=True)

    def _create_named(self, name: str, plan: Plan, scope: str, api: Api) -> Container | None:
        """Make a container of this name; None if a stranger has the name."""
        server = self._live[name] = plan.resource.name
        self.instance.remember(name)
        try:
            if plan.network_to_make:
                self._ensure_network(plan.network_to_make, api)
            folder = self._write_secrets(plan.resource, name) if plan.resource.docker_secrets else None
            made = api.create_container_from_config(plan.body(name, scope, folder), name)
        except (APIError, BackendError) as error:
            self._let_go(name)
            if getattr(error, "status_code", None) != 409:
                raise
            logger.warning(
                "server '%s': a container that is not ours has the name '%s'; it is left alone", server, name
            )
            return None
        self.instance.remember(name, made["Id"])
        return Container(made["Id"], name, server, scope, plan.fingerprint)

    def _write_secrets(self, resource: McpServerResource, name: str) -> str:
        if not self.engine.is_local:
            problem = "its docker_secrets are files of this machine, which the engine does not see. Use env instead."
            raise BackendUnavailable(resource.name, problem, not_sent=True)
        return self.instance.write_secrets(name, resource.docker_secrets)

    def _ensure_network(self, wanted: Mapping[str, Any], api: Api) -> None:
        name = wanted["name"]
        if not any(network["Name"] == name for network in api.networks(names=[name])):
            with tolerating(409):  # somebody who came at the same moment
                api.create_network(**wanted, check_duplicate=True)
        if self._engine.own_id is not None and self._engine.own_id not in _members(name, api):
            api.connect_container_to_network(self._engine.own_id, name)

    async def address(self, resource: McpServerResource, container: Container) -> Address:
        """Where a running container's port is to be had.

        Raises:
            BackendUnavailable: it has none, because it ended.
        """
        return await self._engine.call(container.server, partial(self._address, resource, container), QUICK)

    def _address(self, resource: McpServerResource, container: Container, api: Api) -> Address:
        facts, port = api.inspect_container(container.id), container_port(resource)
        bindings = (facts["NetworkSettings"].get("Ports") or {}).get(f"{port}/tcp") or []
        if bindings:
            return Address("127.0.0.1" if self.engine.is_local else self.engine.tcp[0], int(bindings[0]["HostPort"]))
        for network in (facts["NetworkSettings"].get("Networks") or {}).values():
            if facts["State"]["Running"] and network.get("IPAddress"):
                return Address(network["IPAddress"], port)
        raise BackendUnavailable(container.server, f"its container {status_of(facts).obituary()}.", not_sent=True)

    async def stop_server(self, container: Container, grace: float = 5.0) -> None:
        """Stop a container, kill it after `grace` seconds, and remove it with what was made for it. One that is gone
        already is no error."""

        self._live.pop(container.name, None)  # if the engine is away, reconciliation removes it later

        def stop(api: Api) -> None:
            with tolerating(404, 409):  # 409: its removal is under way
                if grace > 0:
                    api.stop(container.id, timeout=max(1, round(grace)))
                api.remove_container(container.id, v=True, force=True)
            self._let_go(container.name)

        await self._engine.call(container.server, stop, grace + SLOW)

    async def signal(self, container: Container, signal: str) -> None:
        """Send a signal to a container's process; one that has ended is no error."""

        def kill(api: Api) -> None:
            with tolerating(404, 409):
                api.kill(container.id, signal)

        await self._engine.call(container.server, kill, QUICK)

    def _let_go(self, name: str) -> None:
        self._live.pop(name, None)
        self.instance.drop_secrets(name)
        self.instance.forget(name)

    # --- looking

    async def get_status(self, container: Container) -> ContainerStatus:
        """Everything that Docker knows of a container of ours."""

        def inspect(api: Api) -> ContainerStatus:
            try:
                return status_of(api.inspect_container(container.id))
            except NotFound:
                return missing(container)

        return await self._engine.call(container.server, inspect, QUICK)

    async def list_servers(self) -> list[ContainerStatus]:
        """Our containers, running or not. One that carries our labels without being ours is reported and left out."""
        return await self._engine.call("", self._list, QUICK)

    def _list(self, api: Api) -> list[ContainerStatus]:
        found = api.containers(all=True, filters={"label": f"{INSTANCE}={self.instance.id}"})
        for facts in found:
            if not self._owns(facts) and facts["Id"] not in self._strangers:
                self._strangers.add(facts["Id"])
                logger.warning("container '%s' carries our labels and is not ours; it is left alone", name_in(facts))
        return [listed_status_of(facts) for facts in found if self._owns(facts)]

    def _owns(self, facts: Mapping[str, Any]) -> bool:
        return self.instance.owns(name_in(facts), facts["Id"], facts["ImageID"], facts.get("Labels") or {})

    async def get_logs(self, container: Container, tail: int = 100, since: float | None = None) -> list[str]:
        """The last lines of a container over HTTP, each with its time in front, as Docker writes it. Those of stdio
        containers are not with Docker, because their output is MCP.

        Args:
            since: seconds since the epoch; older lines are left out.
        """
        options: dict[str, Any] = {"timestamps": True, "tail": tail} | ({"since": since} if since else {})
        raw = await self._engine.call(container.server, lambda api: api.logs(container.id, **options), QUICK)
        return [line for line in raw.decode(errors="replace").splitlines() if line]

    async def memory(self, container: Container) -> int | None:
        """The bytes of memory that a container uses now."""
        ask = partial(Api.stats, container=container.id, stream=False, one_shot=True)
        usage = (await self._engine.call(container.server, ask, QUICK)).get("memory_stats", {}).get("usage")
        return int(usage) if usage is not None else None

    # --- putting in order

    async def reconcile(self, adopt: Callable[[Container], bool], *, everything: bool = False) -> set[str]:
        """Make the engine and what we know equal: of our containers, those that nobody uses are removed, unless
        `adopt` takes them. What was written down of a container that is gone is forgotten.

        Args:
            everything: also those in use: the gateway ends, or it is another one that was killed.
        """
        in_use = {} if everything else self._live
        if everything:
            await self._engine.rest()  # what was being made is there now, and what was being removed is gone
        kept = set()
        for status in await self.list_servers():
            container = status.container
            async with self._taking_over:
                if container.name in in_use or (status.is_running and adopt(container)):
                    kept.add(container.name)
                else:
                    logger.info("server '%s': removing a container that nobody uses", container.server)
                    await self.stop_server(container, grace=0)
        await self._engine.call("", partial(self._tidy, kept, everything), SLOW)
        return kept

    def _tidy(self, kept: Collection[str], everything: bool, api: Api) -> None:
        for name in self.instance.containers():
            if name not in kept and (everything or name not in self._live):
                self._let_go(name)
        for network in api.networks(filters={"label": f"{INSTANCE}={self.instance.id}"}):
            if network["Labels"].get(SERVER) in self._live.values():
                continue
            with tolerating(403, 404):  # somebody is on it
                if self._engine.own_id is not None and _members(network["Id"], api) == {self._engine.own_id}:
                    api.disconnect_container_from_network(self._engine.own_id, network["Id"])
                api.remove_network(network["Id"])


def _image(resource: McpServerResource, api: Api) -> ImageFacts:
    try:
        return image_facts(api.inspect_image(resource.docker_image))
    except NotFound:
        problem = f"its image '{resource.docker_image}' is not at the engine. {_how(resource)}"
        raise ImageMissing(resource.name, problem, not_sent=True) from None


def _how(resource: McpServerResource) -> str:
    return f"Run: docker pull {resource.docker_image}"


def _check_volumes(resource: McpServerResource, api: Api) -> None:
    for volume in volumes_of(resource):
        if volume.is_bind:
            continue
        try:
            problem = volume_problem(api.inspect_volume(volume.source).get("Options"))
        except NotFound:
            continue
        if problem:
            raise BackendUnavailable(resource.name, f"volume '{volume.source}' {problem}.", not_sent=True)


def _members(network: str, api: Api) -> set[str]:
    return set(api.inspect_network(network).get("Containers") or {})
