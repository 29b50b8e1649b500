"""A real gateway for tests: over HTTP in the test's own process, over HTTP as a process, or over stdio.

Tests say which servers it has as TOML text; `servers_toml`, `local` and `remote` write that text. Each block owns a
folder of its own with the servers.toml in it, and leaves nothing running.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import uvicorn
from fastmcp import Client
from fastmcp.client.transports import StdioTransport, StreamableHttpTransport
from fastmcp.server.auth import AuthProvider

from composition.auth import build_auth
from composition.gateway import SERVE_MAX_CONNECTIONS, Gateway
from composition.http import PATH, ClientConnection, address_of, bind, build_app
from composition.servers_file import load_configuration
from providers.lines import MODERN
from tests.helpers.processes import SERVERS, START_TIMEOUT, end, eventually, stdio_server

ROOT = Path(__file__).parent.parent.parent
LEGACY, LATEST = "legacy", "2026-07-28"
ERAS = (LEGACY, LATEST) if MODERN else (LEGACY,)
"""The protocol eras that the installed FastMCP speaks as a client."""

PATIENCE = 20.0
"""Seconds until a client of a test gives up; no promise of the gateway is anywhere near it."""

_SERVES = re.compile(r"serves (http://\S+)")


# ------------------------------------------------------------------------------------------------- servers.toml


def servers_toml(servers: Mapping[str, Mapping[str, Any]], **gateway: Any) -> str:
    """The text of a servers.toml: the tables of its servers by name, and the keys of `[gateway]`."""
    tables = [("gateway", gateway), *((f"servers.{name}", table) for name, table in servers.items())]
    return "\n".join(f"[{name}]\n{_lines(table)}" for name, table in tables)


def patient_toml(servers: Mapping[str, Mapping[str, Any]], **gateway: Any) -> str:
    """The same, but a list waits until all servers have started: on a busy machine that takes longer than a list waits
    by default."""
    return servers_toml(servers, **{"timeouts": {"first_start": 60.0, "list": 60.0}, **gateway})


def _lines(table: Mapping[str, Any]) -> str:
    return "".join(f"{key} = {_value(value)}\n" for key, value in table.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_value(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value)  # text, numbers, booleans and lists are written alike in both


def local(script: str, *args: str, **more: Any) -> dict[str, Any]:
    """The table of a server from tests/servers as a local process; `more` are further keys."""
    server = stdio_server(script, *args)
    return {"command": server.command, "args": server.args, **more}


def in_process(script: str, **more: Any) -> dict[str, Any]:
    """The table of a server from tests/servers inside the gateway's own process, which starts it fastest."""
    return {"python": f"{SERVERS / script}:mcp", **more}


def remote(url: str, **more: Any) -> dict[str, Any]:
    """The table of a server at a URL."""
    return {"url": url, **more}


@contextmanager
def _servers_file(toml: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gateway-test-") as folder:
        path = Path(folder) / "servers.toml"
        path.write_text(toml)
        yield path


# ---------------------------------------------------------------------------------- over HTTP, in this process


def alone(url: str, server: str) -> str:
    """Where a gateway at `url` serves one of its servers alone."""
    return f"{url.removesuffix('/mcp')}/adapters/{server}/mcp"


@dataclass(frozen=True)
class ServedGateway:
    """A gateway of this process behind a real HTTP server. `path` is its servers.toml, which it follows."""

    gateway: Gateway
    url: str
    path: Path


@asynccontextmanager
async def gateway_over_http(
    toml: str, *, auth: AuthProvider | None = None, port: int = 0, **more: Any
) -> AsyncIterator[ServedGateway]:
    """A gateway with these servers at a free port.

    Args:
        auth: FastMCP's auth provider; without one, and without `[gateway.auth]`, every caller is the local user.
        more: of what a `Gateway` takes.
        port: another one than a free one.
    """
    with _servers_file(toml) as path, bind("127.0.0.1", port, has_auth=auth is not None) as listener:
        configuration = await anyio.to_thread.run_sync(load_configuration, path)
        auth = auth or build_auth(configuration.settings, address_of(listener).removesuffix(PATH))
        gateway = Gateway(configuration, max_connections=SERVE_MAX_CONNECTIONS, auth=auth, **more)
        config = uvicorn.Config(
            build_app(gateway),
            http=ClientConnection,
            access_log=False,
            log_config=None,
            lifespan="on",
            ws="none",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([listener]), name="http-server")
        try:
            await eventually(lambda: server.started or serving.done())
            yield ServedGateway(gateway, address_of(listener), path)
        finally:
            server.should_exit = True
            await serving
            _end_stream_watcher()


def _end_stream_watcher() -> None:
    """The library that writes event streams keeps one task for each event loop, and ends it with the loop only."""
    for task in asyncio.all_tasks():
        if getattr(task.get_coro(), "__name__", "") == "_shutdown_watcher":
            task.cancel()


# -------------------------------------------------------------------------------------------------- as a process


@dataclass(frozen=True)
class GatewayProcess:
    """`server.py serve` as a process of its own."""

    process: anyio.abc.Process
    url: str
    path: Path
    log: Path
    """What it writes to stderr."""

    @property
    def pid(self) -> int:
        return self.process.pid


@asynccontextmanager
async def gateway_process(
    toml: str, *options: str, env: Mapping[str, str] | None = None, port: int = 0
) -> AsyncIterator[GatewayProcess]:
    """`server.py serve` with these servers, at a free port.

    Args:
        options: more of its command line, before `serve`, for example `"--log-level", "debug"`.
        env: variables on top of the test's own.
        port: another one than a free one.

    Raises:
        RuntimeError: it ended before it served.
    """
    with _servers_file(toml) as path:
        log = path.with_name("log")
        command = [sys.executable, str(ROOT / "server.py"), *options, "serve", "--port", str(port)]
        with log.open("w") as stderr:
            process = await anyio.open_process(
                command, env=_environment(path, env), stdin=None, stdout=None, stderr=stderr
            )
        try:
            await eventually(lambda: _url_in(log) is not None or _has_ended(process), within=START_TIMEOUT)
            url = _url_in(log)
            if url is None:
                raise RuntimeError(f"the gateway ended before it served:\n{log.read_text()}")
            yield GatewayProcess(process, url, path, log)
        finally:
            with anyio.CancelScope(shield=True):
                await end(process, signal.SIGTERM)


def _environment(path: Path, env: Mapping[str, str] | None) -> dict[str, str]:
    """Under `serve` the store is a file in the state folder, which is the test's own too."""
    own = {"APOLLOS_SERVERS": str(path), "XDG_STATE_HOME": str(path.with_name("state"))}
    return {**os.environ, **own, **(env or {})}


def _url_in(log: Path) -> str | None:
    found = _SERVES.search(log.read_text(errors="replace"))
    return found[1] if found else None


def _has_ended(process: anyio.abc.Process) -> bool:
    return process.returncode is not None


@dataclass(frozen=True)
class StdioGateway:
    """How a gateway over stdio is started; each client of it starts its own."""

    command: list[str]
    env: dict[str, str]
    path: Path
    log: Path
    """What it writes to stderr."""

    def transport(self) -> StdioTransport:
        """For a FastMCP client. The process ends with the client."""
        return StdioTransport(self.command[0], self.command[1:], env=self.env, keep_alive=False, log_file=self.log)


@asynccontextmanager
async def gateway_over_stdio(
    toml: str, *options: str, env: Mapping[str, str] | None = None
) -> AsyncIterator[StdioGateway]:
    """`server.py` with these servers, for clients that start it themselves."""
    with _servers_file(toml) as path:
        command = [sys.executable, str(ROOT / "server.py"), *options]
        yield StdioGateway(command, _environment(path, env), path, path.with_name("log"))


# ------------------------------------------------------------------------------------------------------- clients


def client(target: str | StdioTransport | StreamableHttpTransport, era: str, **options: Any) -> Client[Any]:
    """A FastMCP client, to be used as `async with client(gateway.url, era) as caller`.

    Args:
        target: a gateway's URL, or the transport of one over stdio.
        era: one of `ERAS`.
        options: more of FastMCP's client, for example `auth="token"` or `elicitation_handler=…`.
    """
    speaks = {"mode": era} if MODERN else {}
    return Client(target, timeout=PATIENCE, init_timeout=PATIENCE, **{**speaks, **options})
