"""The ways in which a server is reached, and which keys of a record belong to each. Pure values.

`resource` and the reading of servers.toml come in; nobody is called.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import StrEnum


class TransportType(StrEnum):
    STDIO = "stdio"
    STREAMABLE_HTTP = "streamable_http"
    SSE = "sse"
    PYTHON = "python"


CONTAINER_KEYS = (
    "docker_command",
    "docker_tools",
    "docker_ports",
    "docker_path",
    "docker_network",
    "docker_volumes",
    "docker_memory",
    "docker_cpus",
    "docker_pids",
    "docker_user",
    "docker_capabilities",
    "docker_read_only",
    "docker_secrets",
    "start",
    "idle_stop",
    "keep",
    "pull",
)

_KEYS_OF_WAY = {
    "command": ("args", "env", "cwd"),
    "url": ("headers",),
    "python": (),
    "docker_image": ("args", "env", "headers", *CONTAINER_KEYS),
}
"""The key by which a server is reached, and what else such a server uses."""

REACH_KEYS = tuple(dict.fromkeys(key for way, others in _KEYS_OF_WAY.items() for key in (way, *others)))

_TRANSPORTS_OF_WAY = {
    "command": (TransportType.STDIO,),
    "url": (TransportType.STREAMABLE_HTTP, TransportType.SSE),
    "python": (TransportType.PYTHON,),
    "docker_image": (TransportType.STDIO, TransportType.STREAMABLE_HTTP, TransportType.SSE),
}
"""The transports of each way; the first follows from it where none is written."""

_OVER_HTTP = (TransportType.STREAMABLE_HTTP, TransportType.SSE)


def transport_of(given: Collection[str]) -> TransportType | None:
    """The transport that follows from the keys that have a value, if they name one way."""
    ways = [way for way in _KEYS_OF_WAY if way in given]
    if len(ways) != 1:
        return None
    if ways == ["docker_image"] and "docker_ports" in given:
        return TransportType.STREAMABLE_HTTP
    return _TRANSPORTS_OF_WAY[ways[0]][0]


def reach_problem(transport_type: TransportType | None, given: Collection[str]) -> str | None:
    """What is wrong with the way a server is reached, or None.

    Args:
        transport_type: as written, or None where it follows from the keys.
        given: the keys that have a value.
    """
    ways = [way for way in _KEYS_OF_WAY if way in given]
    if not ways:
        return (
            "needs 'command' (a local process), 'url' (a remote server), 'docker_image' (a container) "
            "or 'python' (a server in a file)"
        )
    if len(ways) > 1:
        return f"has {_quoted(ways)}. Keep one of them: a server is reached in one way"
    (way,) = ways
    if transport_type is not None and transport_type not in _TRANSPORTS_OF_WAY[way]:
        needed = next(key for key, transports in _TRANSPORTS_OF_WAY.items() if transport_type in transports)
        return (
            f"has transport_type '{transport_type}', which needs '{needed}' and not '{way}'. "
            f"Leave transport_type out: it follows from '{way}'"
        )
    useless = [key for key in given if key in REACH_KEYS and key not in (way, *_KEYS_OF_WAY[way])]
    if useless:
        return f"has {_quoted(useless)}, of no use to a server that is reached by '{way}'. Remove it"
    return _container_problem(transport_type or transport_of(given), given) if way == "docker_image" else None


def _container_problem(transport_type: TransportType | None, given: Collection[str]) -> str | None:
    if transport_type in _OVER_HTTP:
        if "docker_ports" not in given:
            return f"has transport_type '{transport_type}' and needs the port to reach: docker_ports = [\"8000/tcp\"]"
        if "docker_tools" in given:
            return "has 'docker_tools', whose programs listen on no port. Remove docker_ports"
        return None
    useless = [key for key in ("docker_ports", "docker_path", "headers", "keep") if key in given]
    if useless:
        return f"has {_quoted(useless)}, of no use to a container over stdio. Remove it"
    useless = [key for key in ("args", "start", "idle_stop") if key in given]
    if useless and "docker_tools" in given:
        return f"has {_quoted(useless)}, of no use beside docker_tools: a call runs its tool's args, and ends"
    return None


def _quoted(keys: Iterable[str]) -> str:
    return " and ".join(f"'{key}'" for key in keys)
