"""How each variant is started in front of a set of backends, and where its load goes. Called by
`measurements`.

Every variant gets the same backends: the gateway as a servers.toml, FastMCP's proxies as a JSON file, and
`direct` is the backend itself.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from anyio.abc import Process

from benchmarks.answers import Era
from benchmarks.http_backend import HANG
from benchmarks.processes import ROOT, Cores, cpu_seconds, memory_bytes, running
from benchmarks.sessions import Target

LOG = "stderr.log"
_LAST_WORDS = 2_000


class Variant(StrEnum):
    DIRECT = "direct"
    GATEWAY = "gateway"
    CREATE_PROXY = "create_proxy"
    SHARED = "shared"
    ALONE = "alone"
    """FastMCP with nothing behind it; only measured at start-up."""

    @property
    def slug(self) -> str:
        """As a part of a server's name."""
        return self.replace("_", "-")


class Via(StrEnum):
    HTTP = "http"
    STDIO = "stdio"


@dataclass(frozen=True)
class Backend:
    """One server at the far end."""

    name: str
    era: Era
    tools: int = 1
    hangs: bool = False

    def entry(self, via: Via, http_port: int, cores: Cores) -> dict[str, Any]:
        """How it is reached: the keys of a [servers.NAME] table."""
        if via is Via.HTTP:
            return {"url": f"http://127.0.0.1:{http_port}{self.path}"}
        cpus = ["--cpus", ",".join(map(str, sorted(cores.load)))] if cores.load else []
        args = ["-S", "-m", "benchmarks.stdio_backend", "--era", self.era, "--tools", str(self.tools), *cpus]
        return {"command": sys.executable, "args": [*args, *["--hang"] * self.hangs], "cwd": str(ROOT)}

    @property
    def path(self) -> str:
        return f"/{self.era}/{HANG if self.hangs else self.tools}/{self.name}"


@dataclass(frozen=True)
class Front:
    """One variant, running."""

    variant: Variant
    target: Target
    tool: str
    """What `echo` of the first backend is called there."""
    process: Process | None = None
    """The process to measure; None for direct calls."""
    log: Path | None = None

    def cpu_seconds(self) -> float | None:
        return None if self.process is None else cpu_seconds(self.process.pid)

    def memory_mb(self) -> float | None:
        used = None if self.process is None or self.has_ended else memory_bytes(self.process.pid)
        return None if used is None else used / 2**20

    @property
    def has_ended(self) -> bool:
        return self.process is not None and self.process.returncode is not None

    def last_words(self) -> str:
        """The end of what it logged."""
        return self.log.read_text(errors="replace")[-_LAST_WORDS:] if self.log and self.log.exists() else ""


@dataclass(frozen=True)
class Site:
    """Where fronts are built: the backends' port, the cores, and a directory for configurations and logs."""

    http_port: int
    cores: Cores
    directory: Path


@asynccontextmanager
async def started(
    site: Site, variant: Variant, era: Era, backends: list[Backend], *, front: Via, back: Via
) -> AsyncIterator[Front]:
    """A variant in front of its backends for the length of the body. It may not answer yet."""
    entries = {backend.name: backend.entry(back, site.http_port, site.cores) for backend in backends}
    first = backends[0].name
    if variant is Variant.DIRECT and back is Via.HTTP:
        yield Front(variant, Target(era, url=entries[first]["url"]), "echo")
        return
    mounted = variant is Variant.GATEWAY or len(backends) > 1
    tool = f"{first}_echo" if mounted else "echo"
    directory = Path(tempfile.mkdtemp(prefix=variant, dir=site.directory))
    if variant is Variant.DIRECT:
        argv = [entries[first]["command"], *entries[first]["args"]]
        async with _over_pipes(argv, site.cores.load, {}, directory) as (pipes, _):
            yield Front(variant, Target(era, pipes=pipes), "echo")
    elif front is Via.STDIO:
        argv, env = _command(variant, entries, directory, None)
        async with _over_pipes(argv, site.cores.front, env, directory) as (pipes, process):
            yield Front(variant, Target(era, pipes=pipes), tool, process, directory / LOG)
    else:
        port = _free_port()
        argv, env = _command(variant, entries, directory, port)
        async with running(argv, site.cores.front, env=env, log=directory / LOG) as process:
            target = Target(era, url=f"http://127.0.0.1:{port}/mcp")
            yield Front(variant, target, tool, process, directory / LOG)


@asynccontextmanager
async def _over_pipes(
    argv: list[str], cores: frozenset[int], env: Mapping[str, str], directory: Path
) -> AsyncIterator[tuple[tuple[int, int], Process]]:
    """A process, and our ends of its pipes: where it writes, where it reads."""
    its_input, to_it = os.pipe()
    from_it, its_output = os.pipe()
    log = directory / LOG
    try:
        async with running(argv, cores, env=env, log=log, stdin=its_input, stdout=its_output) as process:
            os.close(its_input)
            os.close(its_output)
            yield (from_it, to_it), process
    finally:
        os.close(from_it)
        os.close(to_it)


def _command(
    variant: Variant, entries: Mapping[str, dict[str, Any]], directory: Path, port: int | None
) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment that start a gateway or one of FastMCP's proxies."""
    if variant is Variant.GATEWAY:
        servers = directory / "servers.toml"
        servers.write_text(_servers_toml(entries))
        serve = [] if port is None else ["serve", "--port", str(port)]
        return [sys.executable, str(ROOT / "server.py"), *serve], {"APOLLOS_SERVERS": str(servers)}
    backends = directory / "backends.json"
    backends.write_text(json.dumps(entries))
    serve = [] if port is None else ["--port", str(port)]
    return [sys.executable, "-m", "benchmarks.fastmcp_front", variant, str(backends), *serve], {}


def _servers_toml(entries: Mapping[str, dict[str, Any]]) -> str:
    """JSON's strings and lists of strings are TOML's, too."""
    tables = []
    for name, entry in entries.items():
        keys = "\n".join(f"{key} = {json.dumps(value)}" for key, value in entry.items())
        tables.append(f"[servers.{name}]\n{keys}\n")
    return "\n".join(tables)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
