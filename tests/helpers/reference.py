"""The reference server of npm, over streamable HTTP."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from tests.helpers.ports import free_port
from tests.helpers.processes import START_TIMEOUT, end, eventually


@asynccontextmanager
async def everything_over_http(command: str) -> AsyncIterator[str]:
    """The server at a free port; it cannot be told to take port 0."""
    port = free_port()
    server = await anyio.open_process(
        [command, "streamableHttp"],
        env={**os.environ, "PORT": str(port)},
        stdin=None,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        await eventually(lambda: listens(port), within=START_TIMEOUT)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        with anyio.CancelScope(shield=True):
            await end(server, signal.SIGTERM)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
