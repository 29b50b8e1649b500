"""The guardian: a tiny process that ends the backends when the gateway can no longer do it, even after SIGKILL.

`stdio` comes in, by `watching`; nothing of ours is called. The file has two halves. The gateway's half starts
the guardian with the first process to watch and dismisses it with the last. The guardian's half is this same
file run as a script: it reads "+pgid start" and "-pgid" lines from a pipe whose only write end is in the
gateway. When that end closes, however the gateway died, it ends every process group that is still listed, and
then itself. It costs 12 MB, and at its start some 25 ms that nobody waits for.

What it cannot see: a process that moved to a group of its own (a daemon), and one that was forked in the last
milliseconds before the gateway died. On Windows there is no guardian.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

_GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL."""

_POLL = 0.02

_PASSED_ON = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""All that a Python may need to start; the gateway's secrets have no business in the guardian."""

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def watching(pid: int) -> Iterator[None]:
    """Have the process group of `pid` ended should the gateway die within this block; `pid` leads the group.

    Never raises: where no guardian can be started, a warning says so and the block runs without one.
    """
    if sys.platform == "win32":
        yield
        return
    _guardian.watch(pid)
    try:
        yield
    finally:
        _guardian.forget(pid)


class _Guardian:
    """The gateway's half: the list of what is watched, and the process that holds a copy of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[int, str] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        state = "off duty" if self._process is None else f"pid={self._process.pid}"
        return f"<Guardian {state} watching={sorted(self._watched)}>"

    def watch(self, pid: int) -> None:
        with self._lock:
            self._watched[pid] = _start_time(pid)
            self._tell(f"+{pid} {self._watched[pid]}\n")

    def forget(self, pid: int) -> None:
        with self._lock:
            self._watched.pop(pid, None)
            if self._watched:
                self._tell(f"-{pid}\n")
            else:
                self._dismiss()

    def disown(self) -> None:
        """In a forked child: close the copy of the pipe, or the guardian would not notice the gateway's
        end."""
        process, self._process = self._process, None
        self._lock, self._watched = threading.Lock(), {}
        if process is not None and process.stdin is not None:
            process.stdin.close()
            process.returncode = 0  # it is the parent's child: nothing to wait for here

    def _tell(self, line: str) -> None:
        try:
            if self._process is not None:
                _write(self._process, line)
                return
        except OSError:  # somebody killed it, or stopped it until its pipe was full
            self._dismiss()
        self._appoint()

    def _appoint(self) -> None:
        """Start a guardian and give it the whole list."""
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                cwd="/",
                env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                start_new_session=True,
            )
            for pid, start in self._watched.items():
                _write(self._process, f"+{pid} {start}\n")
        except OSError as error:
            self._dismiss()
            logger.warning(
                "the guardian could not be started (%s); if the gateway is killed, its backends may stay",
                error.strerror,
            )

    def _dismiss(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.kill()  # before its pipe closes: it would take that for the gateway's end
            process.wait()
            process.stdin.close()


def _write(guardian: subprocess.Popen[bytes], line: str) -> None:
    """One line, whole or not at all (it is shorter than PIPE_BUF), and without waiting for a reader."""
    assert guardian.stdin is not None
    os.set_blocking(guardian.stdin.fileno(), False)
    os.write(guardian.stdin.fileno(), line.encode())


def _start_time(pid: int) -> str:
    """When a process started, in the kernel's ticks; empty where the system does not tell, or nobody has the
    number."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123  # pathlib doubles the guardian's start-up time
            return stat.read().rpartition(b")")[2].split()[19].decode()
    except OSError:
        return ""


def _stand_guard() -> None:
    """The guardian's half: its whole life."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    watched: dict[int, str] = {}
    for line in sys.stdin:  # ends when the gateway does
        pgid, _, start = line[1:-1].partition(" ")
        if line.startswith("+"):
            watched[int(pgid)] = start
        else:
            watched.pop(int(pgid), None)
    _end_groups([pgid for pgid, start in watched.items() if not _is_recycled(pgid, start)])


def _is_recycled(pgid: int, start: str) -> bool:
    """Whether the number belongs to a process younger than the one that was watched. Where the leader is gone
    but its group is not, the kernel gives the number to nobody else."""
    now = _start_time(pgid)
    return bool(start and now and start != now)


def _end_groups(groups: list[int]) -> None:
    groups = [pgid for pgid in groups if _signal_group(pgid, signal.SIGTERM)]
    deadline = time.monotonic() + _GRACE
    while groups and time.monotonic() < deadline:
        time.sleep(_POLL)
        groups = [pgid for pgid in groups if _signal_group(pgid, 0)]
    for pgid in groups:
        _signal_group(pgid, signal.SIGKILL)


def _signal_group(pgid: int, signum: int) -> bool:
    """Whether there was somebody to signal."""
    try:
        os.killpg(pgid, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


_guardian = _Guardian()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_guardian.disown)

if __name__ == "__main__":
    _stand_guard()
