"""`McpContainerManager`: makes, starts, looks at, stops and removes the containers of servers. The only file that
imports the Docker SDK.

The supervisor and the command line come in. Called are the Docker SDK, in worker threads with a limiter and deadlines
of their own; `container_plan` for what is to be made, and `ownership` for which containers are ours. When a container
should run is not decided here; and nothing here touches a container that is not proven to be ours.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

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
from providers.engine import EngineAddress, find_engine, own_container_id
from providers.errors import BackendError, BackendUnavailable, ConfigurationError
from providers.hardening import ImageFacts, check_mounts, container_port, volume_problem, volumes_of
from providers.image_pull import ImagePull
from providers.ownership import INSTANCE, SERVER, Instance
from providers.resource import McpServerResource

logger = logging.getLogger(__name__)

_THREADS = 8
_QUICK, _SLOW = 5.0, 15.0
"""Seconds for a question to the engine, and for making, starting or ending a container."""
_SDK_SECONDS = 10
"""After which the SDK gives up by itself, so that a hung engine holds no thread for ever."""

Result = TypeVar("Result")


class ImageMissing(BackendUnavailable):
    """Raised when the engine does not have a server's image."""


class EngineUnavailable(BackendUnavailable):
    """Raised when the Docker engine cannot be reached, or does not answer in time."""


class McpContainerManager:
    """The containers of one gateway at one Docker engine.

    Args:
        instance: the gateway's identity, by which it knows its own containers.
        host: the engine, where the operator chose one; else Docker's own rules say which.
        allowed_paths: the folders of this machine below which servers may mount.
    """

    def __init__(self, instance: Instance, *, host: str | None = None, allowed_paths: Collection[str] = ()) -> None:
        self.instance = instance
        self._host, self._allowed_paths = host, allowed_paths
        self._threads = anyio.CapacityLimiter(_THREADS)
        self._connecting = threading.Lock()
        self._connected: docker.APIClient | None = None
        self._own_id: str | None = None
        self._strangers: set[str] = set()
        self._live: dict[str, str] = {}
        """Names of the containers that are in use, or being made, with their servers."""

    def __repr__(self) -> str:
        return f"<McpContainerManager {self.instance.id} {'connected' if self._connected else 'not connected'}>"

    # --- the engine

    @cached_property
    def engine(self) -> EngineAddress:
        """Where the engine is.

        Raises:
            ConfigurationError: that cannot be told.
        """
        return find_engine(self._host)

    @cached_property
    def tls_context(self) -> ssl.SSLContext | None:
        return self.engine.tls.context() if self.engine.tls else None

    async def api_version(self, server: str) -> str:
        """The version of Docker's API that we speak with this engine."""
        return await self._call(server, lambda api: str(api.api_version), _QUICK)

    def _api(self) -> docker.APIClient:
        with self._connecting:
            if self._connected is None:
                self._connected = self._connect()
                self._own_id = _own_id(self._connected)
            return self._connected

    def _connect(self) -> docker.APIClient:
        tls: Any = False
        if given := self.engine.tls:
            pair = (given.certificate, given.key) if given.certificate else None
            tls = docker.tls.TLSConfig(client_cert=pair, ca_cert=given.ca, verify=given.is_verified)
        host = self.engine.host
        api = docker.APIClient(host, version="auto", timeout=_SDK_SECONDS, tls=tls, max_pool_size=_THREADS)
        api.trust_env = False  # else REQUESTS_CA_BUNDLE beats the engine's own authority, and a proxy gets its calls
        return api

    def close(self) -> None:
        if self._connected is not None:
            self._connected.close()

    async def _call(self, server: str, work: Callable[[docker.APIClient], Result], deadline: float) -> Result:
        """Run one piece of work in a thread. A thread that the engine keeps waiting is left behind; the SDK's own
        deadline ends it."""

        def run() -> Result:
            with _translated(server, lambda: self.engine):
                return work(self._api())

        try:
            with anyio.fail_after(deadline):
                return await anyio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=self._threads)
        except TimeoutError:
            raise EngineUnavailable(server, f"Docker did not answer within {deadline:g} s ({self.engine}).") from None

    # --- images

    async def image(self, resource: McpServerResource) -> ImageFacts:
        """What the engine has under a server's image.

        Raises:
            ImageMissing: nothing.
        """
        return await self._call(resource.name, partial(_image, resource), _QUICK)

    async def pull_image(
        self, resource: McpServerResource, progress: Callable[[str], None] = lambda _: None
    ) -> ImageFacts:
        """Fetch a server's image, within its `pull` timeout.

        Args:
            progress: told now and then how far it is, in words.

        Raises:
            ImageMissing: it could not be fetched.
        """

        def events() -> Iterator[Mapping[str, Any]]:
            with _translated(resource.name, lambda: self.engine):
                yield from self._api().pull(resource.docker_image, stream=True, decode=True)

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
        wanted = await self._call(resource.name, lambda api: self._plan(resource, api).fingerprint, _QUICK)
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

    async def create_server(self, resource: McpServerResource, scope: str) -> Container:
        """Make a container and do not start it yet.

        Raises:
            ImageMissing, EngineUnavailable, BackendUnavailable: it cannot be made; the message says why.
        """
        return await self._call(resource.name, partial(self._create, resource, scope), _SLOW)

    async def start_created(self, container: Container) -> None:
        """Start what was created."""
        await self._call(container.server, lambda api: api.start(container.id), _SLOW)

    def _plan(self, resource: McpServerResource, api: docker.APIClient) -> Plan:
        return Plan(resource, _image(resource, api), self.instance, is_inside=self._own_id is not None)

    def _create(self, resource: McpServerResource, scope: str, api: docker.APIClient) -> Container:
        check_mounts(resource, self._allowed_paths, [self.engine.socket_path] if self.engine.socket_path else [])
        _check_volumes(resource, api)
        plan = self._plan(resource, api)
        for name in plan.names():
            if name not in self.instance.containers() and (made := self._create_named(name, plan, scope, api)):
                return made
        raise BackendUnavailable(resource.name, "Docker has no name left for its container.", not_sent=True)

    def _create_named(self, name: str, plan: Plan, scope: str, api: docker.APIClient) -> Container | None:
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
            taken = "server '%s': the name '%s' is taken by a container that is not ours. It is left alone; ours gets another"
            logger.warning(taken, server, name)
            return None
        self.instance.remember(name, made["Id"])
        return Container(made["Id"], name, server, scope, plan.fingerprint)

    def _write_secrets(self, resource: McpServerResource, name: str) -> str:
        if not self.engine.is_local:
            problem = "its docker_secrets are files of this machine, which the engine does not see. Use env instead."
            raise BackendUnavailable(resource.name, problem, not_sent=True)
        return self.instance.write_secrets(name, resource.docker_secrets)

    def _ensure_network(self, wanted: Mapping[str, Any], api: docker.APIClient) -> None:
        name = wanted["name"]
        if not any(network["Name"] == name for network in api.networks(names=[name])):
            with _tolerating(409):  # somebody who came at the same moment
                api.create_network(**wanted, check_duplicate=True)
        if self._own_id is not None and self._own_id not in _members(name, api):
            api.connect_container_to_network(self._own_id, name)

    async def address(self, resource: McpServerResource, container: Container) -> Address:
        """Where a running container's port is to be had.

        Raises:
            BackendUnavailable: it has none, because it ended.
        """
        return await self._call(container.server, partial(self._address, resource, container), _QUICK)

    def _address(self, resource: McpServerResource, container: Container, api: docker.APIClient) -> Address:
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

        def stop(api: docker.APIClient) -> None:
            with _tolerating(404, 409):  # 409: its removal is under way
                if grace > 0:
                    api.stop(container.id, timeout=max(1, round(grace)))
                api.remove_container(container.id, v=True, force=True)
            self._let_go(container.name)

        await self._call(container.server, stop, grace + _SLOW)

    async def signal(self, container: Container, signal: str) -> None:
        """Send a signal to a container's process; one that has ended is no error."""

        def kill(api: docker.APIClient) -> None:
            with _tolerating(404, 409):
                api.kill(container.id, signal)

        await self._call(container.server, kill, _QUICK)

    def _let_go(self, name: str) -> None:
        self._live.pop(name, None)
        self.instance.drop_secrets(name)
        self.instance.forget(name)

    # --- looking

    async def get_status(self, container: Container) -> ContainerStatus:
        """Everything that Docker knows of a container of ours."""

        def inspect(api: docker.APIClient) -> ContainerStatus:
            try:
                return status_of(api.inspect_container(container.id))
            except NotFound:
                return missing(container)

        return await self._call(container.server, inspect, _QUICK)

    async def list_servers(self) -> list[ContainerStatus]:
        """Our containers, running or not. One that carries our labels without being ours is reported and left out."""
        return await self._call("", self._list, _QUICK)

    def _list(self, api: docker.APIClient) -> list[ContainerStatus]:
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
        raw = await self._call(container.server, lambda api: api.logs(container.id, **options), _QUICK)
        return [line for line in raw.decode(errors="replace").splitlines() if line]

    async def memory(self, container: Container) -> int | None:
        """The bytes of memory that a container uses now."""
        ask = partial(docker.APIClient.stats, container=container.id, stream=False, one_shot=True)
        usage = (await self._call(container.server, ask, _QUICK)).get("memory_stats", {}).get("usage")
        return int(usage) if usage is not None else None

    # --- putting in order

    async def reconcile(self, adopt: Callable[[Container], bool], *, everything: bool = False) -> set[str]:
        """Make the engine and what we know equal: of our containers, those that nobody uses are removed, unless
        `adopt` takes them. What was written down of a container that is gone is forgotten.

        Args:
            everything: also those in use: the gateway ends, or it is another one that was killed.
        """
        in_use = {} if everything else self._live
        kept = set()
        for status in await self.list_servers():
            container = status.container
            if container.name in in_use or (status.is_running and adopt(container)):
                kept.add(container.name)
            else:
                logger.info("server '%s': removing a container that nobody uses", container.server)
                await self.stop_server(container, grace=0)
        await self._call("", partial(self._tidy, kept, everything), _SLOW)
        return kept

    def _tidy(self, kept: Collection[str], everything: bool, api: docker.APIClient) -> None:
        for name in self.instance.containers():
            if name not in kept and (everything or name not in self._live):
                self._let_go(name)
        for network in api.networks(filters={"label": f"{INSTANCE}={self.instance.id}"}):
            if network["Labels"].get(SERVER) in self._live.values():
                continue
            with _tolerating(403, 404):  # somebody is on it
                if self._own_id is not None and _members(network["Id"], api) == {self._own_id}:
                    api.disconnect_container_from_network(self._own_id, network["Id"])
                api.remove_network(network["Id"])


@contextmanager
def _translated(server: str, engine: Callable[[], EngineAddress]) -> Iterator[None]:
    """The SDK's errors as ours."""
    try:
        yield
    except requests.exceptions.Timeout:
        raise EngineUnavailable(server, f"Docker did not answer within {_SDK_SECONDS} s ({engine()}).") from None
    except ConfigurationError as error:
        raise BackendUnavailable(server, str(error), not_sent=True) from None
    except ImageNotFound as error:
        raise ImageMissing(server, f"Docker: {_said(error)}.", not_sent=True) from None
    except APIError as error:
        raise BackendUnavailable(server, f"Docker refused: {_said(error)}.", not_sent=True) from None
    except (DockerException, requests.exceptions.RequestException, OSError):
        problem = f"no Docker engine answers at {engine()}. Start it, or correct DOCKER_HOST or docker_host."
        raise EngineUnavailable(server, problem, not_sent=True) from None


@contextmanager
def _tolerating(*statuses: int) -> Iterator[None]:
    try:
        yield
    except APIError as error:
        if error.status_code not in statuses:
            raise


def _own_id(api: docker.APIClient) -> str | None:
    """The container that the gateway runs in, if this engine knows it: we may be in one of another engine."""
    container_id = own_container_id()
    try:
        return container_id if container_id and api.inspect_container(container_id) else None
    except NotFound:
        return None


def _image(resource: McpServerResource, api: docker.APIClient) -> ImageFacts:
    try:
        facts = api.inspect_image(resource.docker_image)
    except ImageNotFound:
        problem = f"its image '{resource.docker_image}' is not at the engine. {_how(resource)}"
        raise ImageMissing(resource.name, problem, not_sent=True) from None
    config, digests = facts.get("Config") or {}, facts.get("RepoDigests") or [""]
    digest = digests[0].partition("@")[2] or None
    return ImageFacts(facts["Id"], digest, config.get("User") or "", tuple(config.get("Volumes") or ()))


def _how(resource: McpServerResource) -> str:
    return f"Run: docker pull {resource.docker_image}"


def _check_volumes(resource: McpServerResource, api: docker.APIClient) -> None:
    for volume in volumes_of(resource):
        if volume.is_bind:
            continue
        try:
            problem = volume_problem(api.inspect_volume(volume.source).get("Options"))
        except NotFound:
            continue
        if problem:
            raise BackendUnavailable(resource.name, f"volume '{volume.source}' {problem}.", not_sent=True)


def _members(network: str, api: docker.APIClient) -> set[str]:
    return set(api.inspect_network(network).get("Containers") or {})


def _said(error: APIError) -> str:
    return " ".join(str(error.explanation or error).split())[:300].rstrip(".")
