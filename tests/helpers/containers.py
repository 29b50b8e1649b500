"""Container servers for tests: their tables in servers.toml, and what the engine has of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import anyio.to_thread
from fastmcp import Client

from providers.ownership import INSTANCE, Instance
from providers.resource import McpServerResource

EVERYTHING, TIME, REFERENCE = "apollos-test/everything", "apollos-test/time", "apollos-test/reference"
PATIENT = {"first_start": 60, "initialize": 40}
"""CI starts several containers at once on two cores."""


def over_stdio(image: str = EVERYTHING, *args: str, **more: Any) -> dict[str, Any]:
    """The table of a server in a container over stdio."""
    return {"docker_image": image, "args": list(args), "pull": "never", "timeouts": PATIENT, **more}


def over_http(image: str = EVERYTHING, *args: str, **more: Any) -> dict[str, Any]:
    """The table of one over Streamable HTTP, or whichever `transport_type` is given."""
    kind = "sse" if more.get("transport_type") == "sse" else "http"
    return over_stdio(image, *(args or (kind, "8000")), docker_ports=["8000/tcp"], **more)


def record(name: str, table: dict[str, Any]) -> McpServerResource:
    return McpServerResource.model_validate({"name": name, **table})


async def data(caller: Client[Any], tool: str, **arguments: Any) -> Any:
    """What a tool of the everything server answers."""
    return (await caller.call_tool(tool, arguments)).data


# ------------------------------------------------------------------------------------------- what the engine has

_states: list[Path] = []
"""The folders in which the gateways of this run keep what they know of their containers, the present test's last. The
engine may have containers of other people's gateways, and of other test runs, too."""


@contextmanager
def accounted(folder: Path, engine: Any) -> Iterator[str]:
    """A state folder for the gateways of one test. Afterwards nothing of theirs is left at the engine."""
    _states.append(folder)
    yield str(folder)
    assert not (left := left_in(folder, engine)), f"left at the engine: {left}"


def ours(engine: Any, server: str | None = None) -> list[Any]:
    """The containers of the present test's gateways, running or not."""
    label = INSTANCE if server is None else f"apollos.mcp.server={server}"
    found = engine.containers.list(all=True, filters={"label": [INSTANCE, label]}, ignore_removed=True)
    ids = {instance.id for instance in _instances(_states[-1])}
    return [container for container in found if container.labels[INSTANCE] in ids]


def one_of_ours(engine: Any, server: str) -> Any:
    """The container that the present test's gateways have of this server, which has just one."""
    [container] = ours(engine, server)
    return container


def nobodys_name(kind: str) -> str:
    """A name of a server that no other gateway's container at this engine has: one that a user has there, or that a
    killed test run has left."""
    return f"{kind}-{uuid4().hex[:8]}"


def times_made(engine: Any, server: str) -> int:
    """How often a container of this server was made for the present test's gateways, as the engine tells it."""
    marks = [f"{INSTANCE}={instance.id}" for instance in _instances(_states[-1])]
    labels = [[mark, f"apollos.mcp.server={server}"] for mark in marks]
    now = f"{time.time():.6f}"
    told = [engine.events(since="1", until=now, filters={"event": "create", "label": both}) for both in labels]
    return sum(1 for events in told for _ in events)


def left_of_this_run(engine: Any) -> list[str]:
    return [thing for folder in _states for thing in left_in(folder, engine)]


def left_in(folder: Path, engine: Any) -> list[str]:
    """What there is at the engine of the gateways with this state folder, and of their secrets in memory."""
    return [thing for instance in _instances(folder) for thing in _left_of(instance, engine)]


def _left_of(instance: Instance, engine: Any) -> list[str]:
    marks = {"label": f"{INSTANCE}={instance.id}"}
    secrets = instance.secrets_folder("x").parent
    return [*_held(engine, marks), *([f"secrets in {secrets}"] if secrets.exists() else [])]


def everything_at(engine: Any) -> set[str]:
    """All that an engine holds, whoever's it is, and the secrets of all gateways."""
    return {*_held(engine, {}), *(f"secrets in {folder}" for folder in Path("/dev/shm").glob("apollos-mcp-*"))}


def _held(engine: Any, filters: dict[str, str]) -> list[str]:
    containers = engine.api.containers(all=True, filters=filters)
    networks = engine.api.networks(filters=filters)
    volumes = engine.api.volumes(filters=filters)["Volumes"] or []
    return [
        *(f"container {each['Names']} {each['Id'][:12]}" for each in containers),
        *(f"network {each['Name']} {each['Id'][:12]}" for each in networks),
        *(f"volume {each['Name']}" for each in volumes),
    ]


def _instances(folder: Path) -> list[Instance]:
    return [Instance(key.parent, bytes.fromhex(key.read_text())) for key in folder.glob("*/*/key")]


async def until(condition: Callable[[], bool], *, within: float = 20.0) -> None:
    """Wait until something holds at the engine, which is asked in a thread.

    Raises:
        TimeoutError: it does not hold within that many seconds.
    """
    with anyio.fail_after(within):
        while not await anyio.to_thread.run_sync(condition):  # noqa: ASYNC110  # nobody can tell us
            await anyio.sleep(0.05)
