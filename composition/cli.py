"""The command line: without a command the gateway speaks MCP over stdio; `serve`, `check` and `config` are for people.

Over stdio nothing but MCP goes to stdout; what is said to a person goes to stderr. A wrong configuration ends with exit
code 2 and everything that is wrong with it; `check` ends with 1 if a server fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from composition import containers
from composition.gateway import SERVE_MAX_CONNECTIONS, STDIO_MAX_CONNECTIONS, Gateway
from composition.http import address_of, bind, serve, settle_memory
from composition.logs import log_to_stderr
from composition.report import Report, Table, connect_all
from composition.servers_file import load_configuration
from providers.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8808

_OK, _FAILED, _MISCONFIGURED = 0, 1, 2


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="server.py",
        description="The Apollos MCP Gateway: many MCP servers behind one. "
        "Without a command it speaks MCP over stdio, which is what an MCP host starts.",
        epilog="APOLLOS_SERVERS names another servers.toml.",
    )
    parser.add_argument("--log-level", default="warning", choices=["debug", "info", "warning", "error"])
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    serving = commands.add_parser("serve", help="serve streamable HTTP")
    serving.add_argument("--host", default=DEFAULT_HOST, help="address to listen on (default: %(default)s)")
    serving.add_argument(
        "--port", default=DEFAULT_PORT, type=_port, help="port (default: %(default)s; 0: any free one)"
    )
    commands.add_parser("check", help="connect to every server and print a table")
    commands.add_parser("containers", help="print a table of the containers")
    logs = commands.add_parser("logs", help="print what a server in a container wrote to its log")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what it writes from now on")
    logs.add_argument("--tail", type=int, default=100, metavar="N", help="how many lines (default: %(default)s)")
    stop = commands.add_parser("stop", help="stop and remove a server's containers")
    for command in (logs, stop):
        command.add_argument("name", metavar="NAME", help="the server's name in servers.toml")
    commands.add_parser("prune", help="remove what gateways left behind at the Docker engine that were killed")
    config = commands.add_parser("config", help="print the entry that makes an MCP host start this gateway")
    config.add_argument("host_name", metavar="HOST", choices=["claude-desktop"], help="claude-desktop")
    return parser


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is not a port; use a number from 0 to 65535")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit code."""
    options = build_parser().parse_args(arguments)
    log_to_stderr("info" if options.command == "serve" and options.log_level == "warning" else options.log_level)
    try:
        match options.command:
            case "serve":
                return _serve(options.host, options.port)
            case "check":
                return _run(_check)
            case "containers" | "logs" | "stop" | "prune":
                return _run(partial(containers.run, load_configuration(servers_path()), options))
            case "config":
                return _print_entry()
            case _:
                return _run_stdio()
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return _MISCONFIGURED
    except KeyboardInterrupt:
        return 130


def servers_path(environ: Mapping[str, str] = os.environ) -> Path:
    """The servers.toml in use: `APOLLOS_SERVERS`, else the one beside server.py."""
    named = environ.get("APOLLOS_SERVERS")
    return Path(named).expanduser() if named else ROOT / "servers.toml"


def gateway_from_environment(max_connections: int = STDIO_MAX_CONNECTIONS) -> Gateway:
    """The gateway that the environment and servers.toml describe.

    Raises:
        ConfigurationError: with everything that is wrong.
    """
    return Gateway(load_configuration(servers_path()), max_connections=max_connections)


def _run(command: Callable[[], Coroutine[Any, Any, int]]) -> int:
    with asyncio.Runner(loop_factory=_fast_loop()) as runner:
        return runner.run(_until_terminated(command))


def _run_stdio() -> int:
    with asyncio.Runner(loop_factory=_fast_loop()) as runner:
        return runner.run(_speak_stdio())


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not on Windows
        return None
    return uvloop.new_event_loop


async def _until_terminated(command: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run a command; a signal cancels it, so that it closes what it opened."""
    task, received = asyncio.create_task(command()), list[int]()

    def end(number: int) -> None:
        received.append(number)
        task.cancel()

    _on_signals(end)
    try:
        return await task
    except asyncio.CancelledError:
        return 128 + received[0] if received else 1


def _on_signals(handle: Callable[[int], None]) -> None:
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        if hasattr(signal, name) and sys.platform != "win32":
            asyncio.get_running_loop().add_signal_handler(getattr(signal, name), handle, getattr(signal, name))


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

    _on_signals(end)
    settle_memory()
    await gateway.mcp.run_stdio_async(show_banner=False)
    return _OK


def _exit_now(number: int) -> None:
    """End the process for a signal. The SDK reads stdin in a thread that nothing can interrupt, so there is no other
    way while the client keeps it open; the backends are closed before, or ended by the guardian."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + number)


def _serve(host: str, port: int) -> int:
    gateway = gateway_from_environment(SERVE_MAX_CONNECTIONS)
    listener = bind(host, port, has_auth=gateway.mcp.auth is not None)

    async def show_progress() -> None:
        resources = list(gateway.configuration.resources.values())
        sys.stderr.write(f"{gateway.settings.name} serves {address_of(listener)}  (Ctrl-C ends it)\n")
        table = Table(sys.stderr, resources)
        table.header()
        await connect_all(gateway, table.add)

    with asyncio.Runner(loop_factory=_fast_loop()) as runner:
        runner.run(serve(gateway, listener, show_progress))
    return _OK


async def _check() -> int:
    gateway = gateway_from_environment(SERVE_MAX_CONNECTIONS)
    table = Table(sys.stdout, list(gateway.configuration.resources.values()))
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
    return _FAILED if "failed" in states else _OK


def _print_entry() -> int:
    """The Claude Desktop entry, with absolute paths: a desktop program has neither our folder nor our PATH."""
    uv = shutil.which("uv")
    command = [uv, "run", "--directory", str(ROOT), "server.py"] if uv else [sys.executable, str(ROOT / "server.py")]
    entry: dict[str, Any] = {"command": command[0], "args": command[1:]}
    if named := os.environ.get("APOLLOS_SERVERS"):
        entry["env"] = {"APOLLOS_SERVERS": str(Path(named).expanduser().absolute())}
    sys.stdout.write(json.dumps({"mcpServers": {"apollos": entry}}, indent=2) + "\n")
    sys.stderr.write(
        "Put this into claude_desktop_config.json (Settings > Developer > Edit Config), then restart it.\n"
    )
    return _OK
