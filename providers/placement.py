"""Where a container is put: that what it names at the engine is there, is what it says, and may be used.

The container manager comes in, in a thread, just before it makes a container. Called are the engine, for networks and
volumes, and `mounts`, for the folders of the host.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING

from providers.container_keys import INTERNET, NONE, OWN, Volume
from providers.docker_engine import DockerEngine, found
from providers.engine import is_apart
from providers.errors import BackendUnavailable
from providers.hardening import network_of, network_problem
from providers.mounts import MountRefused, resolved_volumes, volume_problem
from providers.resource import McpServerResource

if TYPE_CHECKING:
    from providers.docker_engine import Api


def apart(engine: DockerEngine) -> str | None:
    """Why the engine does not see the files that the gateway sees, as a predicate; None where it does."""
    if not engine.address.is_local:
        return f"the engine ({engine.address}) is on another machine"
    if engine.own_id is not None or is_apart(engine.address.socket_path):
        return "the gateway runs in a container, where paths are others than at the engine"
    return None


def volumes_for(
    resource: McpServerResource, engine: DockerEngine, api: Api, allowed: Collection[str], forbidden: Collection[str]
) -> tuple[Volume, ...]:
    """What a container of this server mounts, each path as it was looked at.

    Args:
        allowed: the operator's `docker_allowed_paths`.
        forbidden: paths that no container may see, besides those of the host itself and the engine's socket.

    Raises:
        MountRefused: something of it may not be mounted, or is not there.
    """
    socket = [engine.address.socket_path] if engine.address.socket_path else []
    volumes = resolved_volumes(resource.name, resource.docker_volumes, allowed, [*socket, *forbidden], apart(engine))
    for volume in volumes:
        facts = None if volume.is_bind else found(partial(api.inspect_volume, volume.source))
        if facts and (problem := volume_problem(facts.get("Options"))):
            raise MountRefused(resource.name, f"volume '{volume.source}' {problem}.", not_sent=True)
    return volumes


def check_network(resource: McpServerResource, api: Api) -> None:
    """Look at a network that the operator has named. Docker takes ids and beginnings of ids for names, so that what
    stands in servers.toml can be another network than it seems.

    Raises:
        BackendUnavailable: it is not there, or no server may be on it.
    """
    name = network_of(resource)
    if name in (NONE, OWN, INTERNET):
        return
    facts = found(partial(api.inspect_network, name))
    missing = f"is not at the engine. Make it: docker network create {name}"
    if problem := network_problem(name, facts) if facts else missing:
        raise BackendUnavailable(resource.name, f"docker_network '{name}' {problem}.", not_sent=True)
