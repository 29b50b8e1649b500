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
from pathlib import Path
from typing import Any

from composition.gateway import STDIO_MAX_CONNECTIONS, Gateway
from composition.servers_file import load_configuration
from composition.stores import MEMORY, default_store

ROOT = Path(__file__).resolve().parent.parent

OK, FAILED, MISCONFIGURED = 0, 1, 2
"""Exit codes."""

_GC_THRESHOLD = 5_000


def servers_path(environ: Mapping[str, str] = os.environ) -> Path:
    """The servers.toml in use: `APOLLOS_SERVERS`, else the one beside server.py."""
    named = environ.get("APOLLOS_SERVERS")
    return Path(named).expanduser() if named else ROOT / "servers.toml"


def gateway_from_environment(max_connections: int = STDIO_MAX_CONNECTIONS, *, is_served: bool = False) -> Gateway:
    """The gateway that the environment and servers.toml describe.

    Args:
        is_served: it is for several users, and keeps what they add, if not told where then in its state folder.

    Raises:
        ConfigurationError: with everything that is wrong.
    """
    configuration = load_configuration(servers_path())
    uses_default = is_served and configuration.settings.store is None
    store = default_store(configuration) if uses_default else MEMORY
    return Gateway(configuration, max_connections=max_connections, store=store)


def run(command: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run a command; a signal cancels it, so that it closes what it opened. Its exit code."""
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
