"""Starts the reference server, the everything-server of the Python SDK, which is no code of ours.

    python reference.py FOLDER stdio         over stdio
    python reference.py FOLDER http PORT     over streamable HTTP at /mcp

FOLDER is where its package lies. PORT 0 takes a free one, which is printed as the first line of stdout.
"""

from __future__ import annotations

import logging
import socket
import sys
from importlib import import_module

import uvicorn


def main(folder: str, transport: str, port: str = "0") -> None:
    sys.path.insert(0, folder)
    server = import_module("mcp_everything_server.server")
    logging.disable(logging.CRITICAL)  # it logs each request
    if transport == "stdio":
        server.mcp.run(transport="stdio")
        return
    app = server.mcp.streamable_http_app(event_store=server.event_store, retry_interval=100)  # as its own main does
    with socket.create_server(("127.0.0.1", int(port))) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        print(listener.getsockname()[1], flush=True)
        # h11: httptools leaves the spaces behind a header's value, which the suite counts against the server
        uvicorn.Server(uvicorn.Config(app, http="h11", log_config=None)).run([listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
