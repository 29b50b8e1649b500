"""tests/servers/everything.py inside of a container, where it has to listen on more than loopback.

    everything_container.py                    over stdio
    everything_container.py http PORT          over Streamable HTTP at /mcp
    everything_container.py sse PORT           over HTTP+SSE at /sse

Further tools look at the container from within, or break it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import anyio
from everything import mcp


@mcp.tool
def inside() -> dict[str, Any]:
    """What the server can see of its own limits."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    return {
        "uid": os.getuid(),
        "gid": os.getgid(),
        "capabilities": status["CapEff"],
        "no_new_privileges": status["NoNewPrivs"],
        "interfaces": sorted(interface.name for interface in Path("/sys/class/net").iterdir()),
        "writable": sorted(folder for folder in ("/", "/tmp", "/opt", "/data", "/etc") if _can_write(folder)),
        "environment": dict(os.environ),
    }


def _can_write(folder: str) -> bool:
    try:
        probe = Path(folder) / ".probe"
        probe.write_text("")
        probe.unlink()
    except OSError:
        return False
    return True


@mcp.tool
def read(path: str) -> str:
    """The text of a file."""
    return Path(path).read_text()


@mcp.tool
def eat_memory(megabytes: int) -> int:
    """Take that much memory, and hold it."""
    return len(bytearray(os.urandom(1024)) * 1024 * megabytes)


@mcp.tool
def say(text: str, times: int = 1) -> str:
    """Write lines to stderr."""
    for _ in range(times):
        sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
    return text


def main(arguments: list[str]) -> None:
    match arguments:
        case []:
            mcp.run(transport="stdio", show_banner=False, log_level="ERROR")
        case ["crash", *words]:
            sys.stderr.write(" ".join(words) + "\n")
            sys.exit(3)
        case ["deaf"]:  # never reads its stdin, never ends by itself
            while True:
                time.sleep(60)
        case [("http" | "sse") as transport, port]:
            anyio.run(_serve, transport, int(port))
        case _:
            sys.exit(f"unknown arguments: {arguments}")


async def _serve(transport: Any, port: int) -> None:
    options = {} if transport == "sse" else {"host_origin_protection": False}
    await mcp.run_http_async(
        show_banner=False, transport=transport, host="0.0.0.0", port=port, log_level="error", **options
    )


if __name__ == "__main__":
    main(sys.argv[1:])
