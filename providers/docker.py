"""`McpContainerManager`: makes, starts, looks at, stops and removes the containers of servers.

The launchers, the supervisor and the command line come in. Called are `docker_engine`, `container_plan` for what is to
be made, `placement` for what it needs there, `ownership` for which containers are ours, and `container_roster` for what
we do with them. When a container should run is not decided here; and nothing here touches a container that is not
proven to be ours.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from providers.container import Address, Container, ContainerStatus, listed_status_of, missing, name_in, status_of
from providers.container_plan import Plan
from providers.container_roster import Roster, Use
from providers.docker_engine import (
    QUICK,
    SLOW,
    DockerEngine,
    EngineUnavailable,
    ImageMissing,
    create_named,
    found,
    is_refusal,
    tolerating,
)
from providers.engine import EngineAddress
from providers.errors import BackendError, BackendUnavailable, ConfigurationError
from providers.hardening import ImageFacts, container_port, image_facts
from providers.image_pull import ImagePull
from providers.mounts import MountRefused
from providers.networks import Networks
from providers.ownership import INSTANCE, Instance
from providers.placement import apart, check_network, volumes_for
from providers.resource import McpServerResource

if TYPE_CHECKING:
    from providers.docker_engine import Api

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Attempt:
    """One container on its way, in a thread that goes on when its caller gives up. `settled` is taken once, by
    whichever of the two is first: the thread that has made it, or the caller who does not want it any more."""

    resource: McpServerResource
    scope: str
    has_stdin: bool
    made: Container | None = None
    settled: threading.Lock = field(default_factory=threading.Lock)


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
        self._roster, self._networks = Roster(instance), Networks(instance, self._engine)

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
        """A running container for a server: one of ours that was made alike, runs, and that nobody uses or ends, as a
        gateway before us left it; or else a new one.

        Raises:
            BackendUnavailable: there is none to be had.
        """
        wanted = await self.fingerprint(resource)
        for status in await self.list_servers():
            made = status.container
            is_alike = (made.server, made.scope, made.fingerprint) == (resource.name, scope, wanted)
            if is_alike and status.is_running and self._roster.take(made):
                return made
        container = await self.create_server(resource, scope)
        try:
            await self.start_created(container)
        except BaseException as error:
            self._roster.forsake(container)  # reconciliation removes it, if we cannot
            if isinstance(error, BackendError):
                with suppress(BackendError):
                    await self.stop_server(container, grace=0)
            raise
        return container

    async def fingerprint(self, resource: McpServerResource) -> str:
        """What a container that would be made now has as its fingerprint; nothing where none can be made."""
        try:
            return await self._engine.call(resource.name, lambda api: self._plan(resource, api).fingerprint, QUICK)
        except (ImageMissing, MountRefused):
            return ""

    async def create_server(self, resource: McpServerResource, scope: str, *, has_stdin: bool = True) -> Container:
        """Make a container and do not start it yet. Without `has_stdin` it finds its stdin ended.

        Raises:
            ImageMissing, EngineUnavailable, BackendUnavailable: it cannot be made; the message says why.
        """
        await self._engine.call(resource.name, lambda api: api.ping(), QUICK)  # a hung engine is not worth a long wait
        attempt = _Attempt(resource, scope, has_stdin)
        try:
            return await self._engine.call(resource.name, partial(self._create, attempt), SLOW)
        except BaseException:
            if not attempt.settled.acquire(blocking=False) and attempt.made is not None:
                self._roster.forsake(attempt.made)
            raise

    async def start_created(self, container: Container) -> None:
        """Start what was created."""
        await self._engine.call(container.server, lambda api: api.start(container.id), SLOW)

    def _plan(self, resource: McpServerResource, api: Api) -> Plan:
        volumes = volumes_for(resource, self._engine, api, self._allowed_paths, self.instance.hidden)
        return Plan(resource, _image(resource, api), self.instance, self._engine.own_id is not None, volumes)

    def _create(self, attempt: _Attempt, api: Api) -> Container:
        made = attempt.made = self._make(attempt, api)
        if not attempt.settled.acquire(blocking=False):
            self._roster.forsake(made)
            self._remove(made, 0, api)
        return made

    def _make(self, attempt: _Attempt, api: Api) -> Container:
        resource, scope = attempt.resource, attempt.scope
        plan = replace(self._plan(resource, api), has_stdin=attempt.has_stdin)
        check_network(resource, api)
        for name in plan.names():
            if self._roster.reserve(name, resource.name) and (made := self._create_named(name, plan, scope, api)):
                return made
        raise BackendUnavailable(resource.name, "Docker has no name left for its container.", not_sent=True)

    def _create_named(self, name: str, plan: Plan, scope: str, api: Api) -> Container | None:
        """Make a container of this name; None if a stranger has the name."""
        server = plan.resource.name
        try:
            for network in plan.networks_to_make(name):
                self._networks.ensure(server, network, api)
            folder = self._write_secrets(plan.resource, name) if plan.resource.docker_secrets else None
            answer = create_named(name, plan.body(name, scope, folder), api)
        except BaseException as error:
            if isinstance(error, BackendError) or is_refusal(error):
                self._roster.not_made(name)
            else:
                self._roster.perhaps_made(name)
            raise
        if answer is None:
            self._roster.not_made(name)
            logger.warning(
                "server '%s': a container that is not ours has the name '%s'; it is left alone", server, name
            )
            return None
        made = Container(answer["Id"], name, server, scope, plan.fingerprint)
        self._roster.made(made)
        if plan.way_out:
            try:
                api.connect_container_to_network(made.id, plan.way_out)
            except BaseException:
                self._roster.forsake(made)
                raise
        return made

    def _write_secrets(self, resource: McpServerResource, name: str) -> str:
        if reason := apart(self._engine):
            problem = f"its docker_secrets are files of this machine, and {reason}. Use env instead."
            raise BackendUnavailable(resource.name, problem, not_sent=True)
        try:
            return self.instance.write_secrets(name, resource.docker_secrets)
        except ConfigurationError as error:
            raise BackendUnavailable(resource.name, str(error), not_sent=True) from None

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
        name = facts["HostConfig"]["NetworkMode"]
        network = (facts["NetworkSettings"].get("Networks") or {}).get(name) or {}
        if facts["State"]["Running"] and network.get("IPAddress"):
            self._networks.join(name, api)
            return Address(network["IPAddress"], port)
        raise BackendUnavailable(container.server, f"its container {status_of(facts).obituary()}.", not_sent=True)

    async def stop_server(self, container: Container, grace: float = 5.0) -> bool:
        """Stop a container, kill it after `grace` seconds, and remove it with what was made for it. One that is gone
        already is no error. Whether it is gone: Docker may still be at it, and then reconciliation looks again."""
        self._roster.ending(container)
        try:
            return await self._engine.call(container.server, partial(self._remove, container, grace), grace + SLOW)
        except BaseException:
            self._roster.forsake(container)
            raise

    def _remove(self, container: Container, grace: float, api: Api) -> bool:
        is_gone = False
        with tolerating(409):  # its removal is under way
            with tolerating(404):
                if grace > 0:
                    api.stop(container.id, timeout=max(1, round(grace)))
                api.remove_container(container.id, v=True, force=True)
            is_gone = True
        if not is_gone:
            self._roster.forsake(container)
            return False
        if self._roster.use_of(container) in (Use.ENDING, Use.FORSAKEN):  # else another one has its name by now
            self._networks.end_with(container.name, api)
        self._roster.gone(container)
        return True

    async def signal(self, container: Container, signal: str) -> None:
        """Send a signal to a container's process; one that has ended is no error."""

        def kill(api: Api) -> None:
            with tolerating(404, 409):
                api.kill(container.id, signal)

        await self._engine.call(container.server, kill, QUICK)

    # --- looking

    async def get_status(self, container: Container) -> ContainerStatus:
        """Everything that Docker knows of a container of ours."""

        def inspect(api: Api) -> ContainerStatus:
            facts = found(lambda: api.inspect_container(container.id))
            return status_of(facts) if facts else missing(container)

        return await self._engine.call(container.server, inspect, QUICK)

    async def list_servers(self) -> list[ContainerStatus]:
        """Our containers, running or not. One that carries our labels without being ours is reported and left out."""
        return await self._engine.call("", self._list, QUICK)

    def _list(self, api: Api) -> list[ContainerStatus]:
        labelled = api.containers(all=True, filters={"label": f"{INSTANCE}={self.instance.id}"})
        for facts in labelled:
            if not self._owns(facts) and facts["Id"] not in self._strangers:
                self._strangers.add(facts["Id"])
                logger.warning("container '%s' carries our labels and is not ours; it is left alone", name_in(facts))
        return [listed_status_of(facts) for facts in labelled if self._owns(facts)]

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
        lines = raw.decode(errors="replace").split("\n")  # and at nothing else: the rest of a line has no time in front
        return [line.rstrip("\r") for line in lines if line]

    async def memory(self, container: Container) -> int | None:
        """The bytes of memory that a container uses now."""
        stats = await self._engine.call(
            container.server, lambda api: api.stats(container.id, stream=False, one_shot=True), QUICK
        )
        usage = stats.get("memory_stats", {}).get("usage")
        return int(usage) if usage is not None else None

    # --- putting in order

    @property
    def is_untidy(self) -> bool:
        return self._roster.has_forsaken

    async def reconcile(self, adopt: Callable[[Container], bool], *, everything: bool = False) -> set[str]:
        """Make the engine and what we know equal: of our containers, those that nobody uses are removed, unless
        `adopt` takes them. What was written down of a container that is gone is forgotten.

        Args:
            everything: also those in use: the gateway ends, or it is another one that was killed.
        """
        if everything:
            await self._engine.rest()  # what was being made is there now, and what was being removed is gone
        known, ours = await self._engine.call("", lambda api: (self.instance.containers(), self._list(api)), QUICK)
        kept = set()
        for status in ours:
            # What is not to stay is marked as ending in the step that finds so: nobody takes it in between.
            if self._is_to_stay(status, adopt, everything) or not await self._removed(status.container):
                kept.add(status.container.name)
        await self._engine.call("", partial(self._tidy, known, kept, everything), SLOW)
        return kept

    def _is_to_stay(self, status: ContainerStatus, adopt: Callable[[Container], bool], everything: bool) -> bool:
        use = self._roster.use_of(status.container)
        if use in (Use.ENDING, Use.FORSAKEN):
            return use is Use.ENDING and not everything  # whoever ends it gives it time to end well
        return (use is not None and not everything) or (status.is_running and adopt(status.container))

    async def _removed(self, container: Container) -> bool:
        logger.info("server '%s': removing a container that nobody uses", container.server)
        try:
            return await self.stop_server(container, grace=0)
        except EngineUnavailable:
            raise
        except BackendError as error:  # the others can be removed all the same
            logger.warning("%s Its container '%s' is still there.", error, container.name)
            return False

    def _tidy(self, known: Mapping[str, str], there: Collection[str], everything: bool, api: Api) -> None:
        self._roster.tidy(known, there, everything=everything)
        self._networks.tidy(
            lambda server, own: (own in there or self._roster.has(own)) if own else server in self._roster.servers, api
        )
        if everything:
            self._networks.leave(api)


def _image(resource: McpServerResource, api: Api) -> ImageFacts:
    inspected = found(lambda: api.inspect_image(resource.docker_image))
    if inspected is None:
        problem = f"its image '{resource.docker_image}' is not at the engine. {_how(resource)}"
        raise ImageMissing(resource.name, problem, not_sent=True)
    return image_facts(inspected)


def _how(resource: McpServerResource) -> str:
    return f"Run: docker pull {resource.docker_image}"
