"""Container servers for tests: their tables in servers.toml, and what the engine has of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread

from providers.resource import McpServerResource

EVERYTHING, TIME = "apollos-test/everything", "apollos-test/time"
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


def ours(engine: Any, server: str | None = None) -> list[Any]:
    """The containers that carry our labels, running or not."""
    label = "apollos.mcp.instance" if server is None else f"apollos.mcp.server={server}"
    found = engine.containers.list(all=True, filters={"label": ["apollos.mcp.instance", label]}, ignore_removed=True)
    return list(found)


async def until(condition: Callable[[], bool], *, within: float = 20.0) -> None:
    """Wait until something holds at the engine, which is asked in a thread.

    Raises:
        TimeoutError: it does not hold within that many seconds.
    """
    with anyio.fail_after(within):
        while not await anyio.to_thread.run_sync(condition):  # noqa: ASYNC110  # nobody can tell us
            await anyio.sleep(0.05)
