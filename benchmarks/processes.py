"""Child processes of the benchmark: each on its own cores, always ended, and what each cost in CPU time and
memory.

Called by `fronts` and `measurements`. CPU time and memory come from /proc, so they are only known on Linux;
elsewhere they are None, and processes run on whatever core they get.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

ROOT = Path(__file__).resolve().parent.parent
EVENT_LOOP = {"use_uvloop": sys.platform != "win32"}

_STOP_SECONDS = 3.0
_START_SECONDS = 20.0
_MAX_LINE = 1 << 20
_HAS_PROC = Path("/proc/self/stat").exists()


@dataclass(frozen=True)
class Cores:
    """Which cores the measured process has for itself, and which the driver and the backends share."""

    front: frozenset[int] = frozenset()
    load: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return f"front on {sorted(self.front)}, load on {sorted(self.load)}" if self.front else "not pinned"


def share_cores() -> Cores:
    """One core for the front, the others for the load; no pinning with one core only, or no way to do it."""
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return Cores(frozenset(mine[:1]), frozenset(mine[1:])) if len(mine) > 1 else Cores()


@contextmanager
def _running_on(cores: frozenset[int]) -> Iterator[None]:
    """Children started in the body inherit these cores, from their first instruction on."""
    if not cores:
        yield
        return
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


@asynccontextmanager
async def running(
    argv: list[str],
    cores: frozenset[int],
    *,
    env: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    pass_fds: Iterable[int] = (),
    log: Path | None = None,
) -> AsyncIterator[Process]:
    """A child process for the length of the body; `log` gets its standard error (none: it is ours).

    Settings of a gateway that the user happens to have in the environment are not passed on.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("APOLLOS_")}
    with log.open("ab") if log else open(os.dup(2), "wb") as errors:  # noqa: ASYNC230, PTH123
        with _running_on(cores):
            process = await anyio.open_process(
                argv,
                stdin=stdin,
                stdout=stdout,
                stderr=errors,
                cwd=ROOT,
                env={**inherited, **(env or {})},
                pass_fds=tuple(pass_fds),
            )
        try:
            yield process
        finally:
            with anyio.CancelScope(shield=True):
                await _stop(process)


async def _stop(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
        with anyio.move_on_after(_STOP_SECONDS):
            await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()
    await process.aclose()


class Helper:
    """A child that answers lines of JSON with lines of JSON."""

    def __init__(self, process: Process) -> None:
        assert process.stdout is not None
        self._process = process
        self._lines = BufferedByteReceiveStream(process.stdout)

    async def read(self, seconds: float = _START_SECONDS) -> Any:
        """Its next line.

        Raises:
            TimeoutError: there was none in time.
        """
        with anyio.fail_after(seconds):
            return json.loads(await self._lines.receive_until(b"\n", _MAX_LINE))

    async def ask(self, question: Any, seconds: float) -> Any:
        """Send it a line and wait for the answer, at most so many seconds."""
        assert self._process.stdin is not None
        await self._process.stdin.send(json.dumps(question).encode() + b"\n")
        return await self.read(seconds)


@asynccontextmanager
async def helper(module: str, cores: frozenset[int], pass_fds: Iterable[int] = ()) -> AsyncIterator[Helper]:
    """`python -m benchmarks.{module}` as a helper for the length of the body."""
    argv = [sys.executable, "-m", f"benchmarks.{module}"]
    pipe = subprocess.PIPE
    async with running(argv, cores, stdin=pipe, stdout=pipe, pass_fds=pass_fds) as process:
        yield Helper(process)


def cpu_seconds(pid: int) -> float | None:
    """User and system time that a process tree has used, ended children included; None if not known."""
    if not _HAS_PROC:
        return None
    stats = [_stat(member) for member in _tree(pid)]
    ticks = sum(int(field) for stat in stats for field in stat[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes(pid: int) -> int | None:
    """Resident memory of a process tree; None where it is not known."""
    if not _HAS_PROC:
        return None
    pages = 0
    for member in _tree(pid):
        try:
            pages += int(Path(f"/proc/{member}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")


def other_seconds() -> float | None:
    """CPU time that everything but this process and its ended children has used on this machine since it started;
    None where it is not known. How much it grows during a run is how much the machine was disturbed."""
    if not _HAS_PROC:
        return None
    user, nice, system, _idle, _iowait, *interrupts = map(int, Path("/proc/stat").read_text().split()[1:8])
    own = (resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    busy = (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
    return busy - sum(usage.ru_utime + usage.ru_stime for usage in own)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/pid/stat behind the name, which may hold blanks; none if the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _tree(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    members = [pid]
    for member in members:
        members.extend(children.get(member, ()))
    return members
