"""FastMCP's own proxies as a process: what the gateway is compared with. Started by `fronts`.

`create_proxy` is used as its documentation shows it, or (`shared`) with a client that is connected once and
serves every request. One backend is proxied without a namespace, several are mounted under their names.
`alone` is a FastMCP server with nothing behind it: the floor of every start-up time.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
from fastmcp import Client, FastMCP
from fastmcp.client.transports import StdioTransport
from fastmcp.server import create_proxy

from benchmarks.processes import ROOT

_CONNECT_SECONDS = 5.0


def transport(backend: dict[str, Any]) -> Any:
    """What `create_proxy` takes: a URL or a stdio transport."""
    if "url" in backend:
        return backend["url"]
    return StdioTransport(backend["command"], backend["args"], cwd=str(ROOT), keep_alive=True)


async def connected(stack: AsyncExitStack, backend: dict[str, Any]) -> Any:
    """A client connected for good, or, if the backend does not answer in time, one for each request."""
    client: Client[Any] = Client(transport(backend), init_timeout=_CONNECT_SECONDS)
    with anyio.move_on_after(_CONNECT_SECONDS + 1):
        try:
            return await stack.enter_async_context(client)
        except (RuntimeError, TimeoutError, OSError):
            pass
    return transport(backend)


async def front(stack: AsyncExitStack, variant: str, backends: dict[str, dict[str, Any]]) -> FastMCP[Any]:
    """The server in front of the backends."""
    if variant == "shared":
        targets = {name: await connected(stack, backend) for name, backend in backends.items()}
    else:
        targets = {name: transport(backend) for name, backend in backends.items()}
    proxies = {name: create_proxy(target) for name, target in targets.items()}
    if len(proxies) == 1:
        return next(iter(proxies.values()))
    root: FastMCP[Any] = FastMCP("benchmark")
    for name, proxy in proxies.items():
        root.mount(proxy, namespace=name)
    return root


async def serve(variant: str, backends: dict[str, dict[str, Any]], port: int | None) -> None:
    async with AsyncExitStack() as stack:
        server = await front(stack, variant, {} if variant == "alone" else backends)
        if port is None:
            await server.run_stdio_async(show_banner=False, log_level="warning")
        else:
            await server.run_http_async(show_banner=False, log_level="warning", host="127.0.0.1", port=port)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant", choices=["create_proxy", "shared", "alone"])
    parser.add_argument("backends", type=Path, help="a JSON file: name to url, or to command and args")
    parser.add_argument("--port", type=int, help="serve HTTP there; without it, speak stdio")
    options = parser.parse_args()
    try:
        anyio.run(serve, options.variant, json.loads(options.backends.read_text()), options.port)
    except KeyboardInterrupt:
        sys.exit(130)
