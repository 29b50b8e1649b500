"""How a command comes to its gateway, to an event loop, and to an end.

The modules of the commands come in. It finds servers.toml, makes the gateway that it describes, and runs what a command
does until that is done or a signal ends it.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from composition.auth import build_auth
from composition.gateway import SERVE_MAX_CONNECTIONS, STDIO_MAX_CONNECTIONS, Gateway
from composition.servers_file import Configuration, load_configuration
from composition.stores import MEMORY, default_store, existing_store

ROOT = Path(__file__).resolve().parent.parent

OK, FAILED, MISCONFIGURED, UNREAD = 0, 1, 2, 141
"""Exit codes. The last is a shell's for a program that SIGPIPE ended."""

_LAST_MOMENT = 0.1
"""Seconds in which the guardian hears of a process that was started just now."""
_GC_THRESHOLD = 5_000


def servers_path(environ: Mapping[str, str] = os.environ) -> Path:
    """The servers.toml in use: `APOLLOS_SERVERS`, else the one beside server.py."""
    named = environ.get("APOLLOS_SERVERS")
    return Path(named).expanduser() if named else ROOT / "servers.toml"


def gateway_from_environment(
    max_connections: int = STDIO_MAX_CONNECTIONS, *, only: str | None = None, **settings: Any
) -> Gateway:
    """The gateway that the environment and servers.toml describe.

    Args:
        only: the one server that it is to have; None: all.
        settings: what a command sets whatever the operator has chosen.

    Raises:
        ConfigurationError: with everything that is wrong.
    """
    configuration = load_configuration(servers_path())
    chosen = configuration.settings.model_copy(update=settings)
    store = existing_store(configuration) or MEMORY
    configuration = replace(configuration, settings=chosen)
    return _checked(Gateway(configuration, max_connections=max_connections, store=store, only=only))


def served_gateway(configuration: Configuration, served_at: str) -> Gateway:
    """The gateway that serves HTTP: it lets in whom `[gateway.auth]` says, and keeps what they add, if not told where,
    in its state folder.

    Args:
        served_at: the address that is listened on, without a path.

    Raises:
        ConfigurationError: the file of tokens cannot be used.
    """
    auth = build_auth(configuration.settings, served_at)
    store = MEMORY if configuration.settings.store else default_store(configuration)
    return _checked(Gateway(configuration, max_connections=SERVE_MAX_CONNECTIONS, auth=auth, store=store))


def _checked(gateway: Gateway) -> Gateway:
    if gateway.audit.log is not None:
        gateway.audit.log.check()
    return gateway


def run(command: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run a command; a signal cancels it, so that it closes what it opened, and a second Ctrl-C ends it at once. Its
    exit code."""
    return run_in_loop(_until_terminated(command))


def run_in_loop(work: Coroutine[Any, Any, int]) -> int:
    """Run to the end what sees to signals itself."""
    with asyncio.Runner(loop_factory=_fast_loop()) as runner:
        return runner.run(work)


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not on Windows
        return None
    return uvloop.new_event_loop


async def _until_terminated(command: Callable[[], Coroutine[Any, Any, int]]) -> int:
    task, received = asyncio.create_task(command()), list[int]()

    def end(number: int) -> None:
        if received and number == signal.SIGINT:  # a person waits no longer; the guardian ends the servers
            asyncio.get_running_loop().call_later(_LAST_MOMENT, os._exit, 128 + number)
            return
        received.append(number)
        task.cancel()

    on_signals(end)
    try:
        return await task
    except asyncio.CancelledError:
        return 128 + received[0] if received else 1


def on_signals(handle: Callable[[int], None]) -> None:
    """Have a function called with the number of each signal that asks the process to end."""
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        if hasattr(signal, name) and sys.platform != "win32":
            asyncio.get_running_loop().add_signal_handler(getattr(signal, name), handle, getattr(signal, name))


def settle_memory() -> None:
    """What is alive now stays alive. Without this a full collection walks all of it again and again, which is what the
    slowest calls wait for."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, 50, 50)
