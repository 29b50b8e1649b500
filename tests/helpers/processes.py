"""Real server processes for tests: started, waited for, and ended by the block that asked for them.

Over stdio a client starts the process itself, so here is only its command. Over HTTP the process prints its
port as the first line of stdout, and that line is what we wait for.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.abc
from anyio.streams.text import TextReceiveStream

SERVERS = Path(__file__).parent.parent / "servers"
START_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0


@dataclass(frozen=True)
class ServerCommand:
    """How a stdio server is started: what stands in servers.toml."""

    command: str
    args: list[str]
    env: dict[str, str] = field(default_factory=dict)


def stdio_server(script: str, *args: str) -> ServerCommand:
    """The command of a server from tests/servers, run by the Python that runs the tests."""
    return ServerCommand(sys.executable, [str(SERVERS / script), *args])


@dataclass(frozen=True)
class HttpServer:
    """A running server. `url` is its MCP endpoint."""

    process: anyio.abc.Process
    port: int
    path: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"

    @property
    def pid(self) -> int:
        return self.process.pid

    async def kill(self) -> None:
        """End it as a crash would, and wait until it is gone."""
        await end(self.process, signal.SIGKILL)


@asynccontextmanager
async def http_server(script: str, *args: str, port: int = 0, path: str = "/mcp") -> AsyncIterator[HttpServer]:
    """A server from tests/servers over HTTP.

    Args:
        script: the file's name, for example `everything.py`.
        args: its arguments before the port, for example `"http"`.
        port: the port to take; 0 takes a free one.
        path: where its MCP endpoint is.

    Raises:
        TimeoutError: it printed no port within 30 seconds.
    """
    command = [sys.executable, str(SERVERS / script), *args, str(port)]
    process = await anyio.open_process(command, stdin=None, stderr=None)
    try:
        yield HttpServer(process, await _printed_port(process), path)
    finally:
        with anyio.CancelScope(shield=True):
            await end(process, signal.SIGTERM)


async def _printed_port(process: anyio.abc.Process) -> int:
    assert process.stdout is not None
    text = ""
    with anyio.fail_after(START_TIMEOUT):
        async for chunk in TextReceiveStream(process.stdout):
            text += chunk
            if "\n" in text:
                return int(text.partition("\n")[0])
    raise RuntimeError(f"the server ended before it printed its port (exit code {await process.wait()})")


async def end(process: anyio.abc.Process, how: signal.Signals) -> None:
    """Signal a process and wait until it is gone; kill it if it does not go."""
    if process.returncode is None:
        process.send_signal(how)
        with anyio.move_on_after(STOP_TIMEOUT):
            await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()
    await process.aclose()  # closes its pipes; without this the transport warns when it is collected


def is_running(pid: int) -> bool:
    """Whether a process is there and not a zombie that merely waits to be reaped."""
    return _state(pid) not in ("Z", "X", None)


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has reached a process."""
    return _state(pid) == "T"


def _state(pid: int) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return stat.rpartition(")")[2].split()[0]


async def eventually(condition: Callable[[], bool], *, within: float = 10.0) -> None:
    """Wait until a condition holds that nobody signals, such as a process being gone.

    Raises:
        TimeoutError: it does not hold within that many seconds.
    """
    with anyio.fail_after(within):
        while not condition():  # noqa: ASYNC110  # nobody can tell us: that is what this is for
            await anyio.sleep(0.01)
