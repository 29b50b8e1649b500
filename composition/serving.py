"""The commands that run the gateway: over stdio (no command), `serve` over HTTP, and `check`; and `config`, which
prints how an MCP host starts it.

Over stdio nothing but MCP goes to stdout; what is said to a person goes to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from typing import Any

from composition.clients.gateway_entry import NAME, gateway_entry
from composition.gateway import SERVE_MAX_CONNECTIONS
from composition.http import PATH, address_of, bind, serve
from composition.report import Report, Table, connect_all
from composition.servers_file import load_configuration
from composition.starting import (
    FAILED,
    OK,
    gateway_from_environment,
    on_signals,
    run,
    run_in_loop,
    served_gateway,
    servers_path,
    settle_memory,
)

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8808


def register(commands: Any) -> None:
    """Add these commands to the command line."""
    serving = commands.add_parser("serve", help="serve streamable HTTP")
    serving.add_argument("--host", default=DEFAULT_HOST, help="address to listen on (default: %(default)s)")
    serving.add_argument(
        "--port", default=DEFAULT_PORT, type=_port, help="port (default: %(default)s; 0: any free one)"
    )
    serving.set_defaults(run=lambda options: run_in_loop(_serve(options.host, options.port)), says=True)
    check = commands.add_parser("check", help="connect to every server and print a table")
    check.set_defaults(run=lambda options: run(_check))
    config = commands.add_parser("config", help="print the entry that makes an MCP host start this gateway")
    config.add_argument("host_name", metavar="HOST", choices=["claude-desktop"], help="claude-desktop")
    config.set_defaults(run=lambda options: _print_entry())


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is not a port; use a number from 0 to 65535")
    return int(text)


def speak_stdio() -> int:
    """Speak MCP over stdin and stdout until the client ends it."""
    return run_in_loop(_speak_stdio())


async def _speak_stdio() -> int:
    gateway = gateway_from_environment()
    leaving = list[asyncio.Task[None]]()

    async def leave(number: int) -> None:
        await gateway.stop()
        _exit_now(number)

    def end(number: int) -> None:
        if leaving:
            _exit_now(number)
        leaving.append(asyncio.create_task(leave(number)))

    on_signals(end)
    settle_memory()
    await gateway.mcp.run_stdio_async(show_banner=False)
    return OK


def _exit_now(number: int) -> None:
    """End the process for a signal. The SDK reads stdin in a thread that nothing can interrupt, so there is no other
    way while the client keeps it open; the backends are closed before, or ended by the guardian."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + number)


async def _serve(host: str, port: int) -> int:
    configuration = load_configuration(servers_path())
    settings = configuration.settings
    listener = bind(host, port, has_auth=settings.auth.is_on, public_url=settings.public_url)
    gateway = served_gateway(configuration, address_of(listener).removesuffix(PATH))

    async def show_progress() -> None:
        resources = list(gateway.store.snapshot.values())
        sys.stderr.write(f"{gateway.settings.name} serves {address_of(listener)}  (Ctrl-C ends it)\n")
        table = Table(sys.stderr, resources)
        table.header()
        await connect_all(gateway, table.add)

    await serve(gateway, listener, show_progress)
    return OK


async def _check() -> int:
    gateway = gateway_from_environment(SERVE_MAX_CONNECTIONS)
    table = Table(sys.stdout, list(gateway.store.snapshot.values()))
    table.header()
    await gateway.start()
    states: list[str] = []

    def tell(report: Report) -> None:
        table.add(report)
        states.append(report.state)

    try:
        await gateway.containers.pulled()
        await connect_all(gateway, tell)
    finally:
        await gateway.stop()
    return FAILED if "failed" in states else OK


def _print_entry() -> int:
    sys.stdout.write(json.dumps({"mcpServers": {NAME: gateway_entry()}}, indent=2) + "\n")
    sys.stderr.write(
        "Put this into claude_desktop_config.json (Settings > Developer > Edit Config), then restart it. "
        "'server.py connect claude-desktop' does it for you.\n"
    )
    return OK
