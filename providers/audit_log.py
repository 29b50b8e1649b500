"""Where the audit is kept: a file that only grows, or stderr.

`audit` comes in with whole lines. They wait in a bounded queue for one task, which writes many at once, in a thread.
`strict`: whoever brings a line waits until it is on disk, and goes no further if it cannot be. Otherwise nobody waits;
what finds no room is counted, and the count is written as soon as something can be.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import time
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Self

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from providers.errors import ConfigurationError, GatewayError

logger = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Lines."""
_BATCH = 500
_GATHER_SECONDS = 0.05
"""In which lines come together, where nobody waits for them."""
_STRICT_SECONDS = 10.0
"""That a call waits for its line."""
_CLOSE_SECONDS = 5.0
_LOOK_SECONDS = 1.0
"""Between looks whether the file was moved away, as programs do that keep logs short."""
_STDERR = 2


class AuditFailed(GatewayError):
    """Raised when the audit is strict and a line cannot be written."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"this gateway answers only what it can write into its audit, and it cannot ({problem}). "
            "Nothing is wrong with your request: tell the operator."
        )


class LogState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    FAILING = "failing"


@dataclass(slots=True)
class _Line:
    data: bytes
    is_settled: anyio.Event = field(default_factory=anyio.Event)
    problem: str | None = None


class AuditFile:
    """The file, opened so that every write goes to its end. Everything here blocks.

    Args:
        path: None: stderr.
    """

    def __init__(self, path: str | None) -> None:
        self._path = os.path.expanduser(path) if path else None  # noqa: PTH111 - as the settings checked it
        self._descriptor: int | None = None
        self._looked_at = 0.0
        self._is_torn = False

    def __str__(self) -> str:
        return f"'{self._path}'" if self._path else "stderr"

    def open(self) -> None:
        """
        Raises:
            OSError: it cannot be opened for writing.
        """
        if self._path is None:
            self._descriptor = _STDERR
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK"):  # the last: a pipe that nobody reads is an error
            flags |= getattr(os, name, 0)
        self._descriptor = os.open(self._path, flags, 0o600)
        self._looked_at, self._is_torn = time.monotonic(), self._ends_torn()

    def _ends_torn(self) -> bool:
        """Whether whoever wrote last was killed within a line."""
        assert self._path is not None and self._descriptor is not None
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode) or not found.st_size:
            return False
        try:
            with open(self._path, "rb") as file:  # noqa: PTH123 - text, not a Path
                file.seek(-1, os.SEEK_END)
                return file.read(1) != b"\n"
        except OSError:  # we may write to it, and not read
            return True  # an empty line more does no harm

    def append(self, data: bytes, *, to_disk: bool) -> None:
        """Write whole lines at the end, in one piece as long as the disk takes it.

        Raises:
            OSError: they could not be written, or not all of them.
        """
        self._follow()
        assert self._descriptor is not None
        if self._is_torn:
            data = b"\n" + data
        while data:
            written = os.write(self._descriptor, data)
            self._is_torn = data[written - 1 : written] != b"\n"
            data = data[written:]
        if to_disk:
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):  # a pipe or a terminal has no disk
                    raise

    def _follow(self) -> None:
        """Go on in a new file when the old one was moved or removed."""
        now = time.monotonic()
        if self._path is None or (self._descriptor is not None and now - self._looked_at < _LOOK_SECONDS):
            return
        self._looked_at = now
        if self._descriptor is None or not self._is_in_place(self._descriptor):
            self.close()
            self.open()

    def _is_in_place(self, descriptor: int) -> bool:
        assert self._path is not None
        try:
            found = os.lstat(self._path)
        except FileNotFoundError:
            return False
        ours = os.fstat(descriptor)
        return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None and descriptor != _STDERR:
            os.close(descriptor)


class AuditLog:
    """The queue before the file. Used as `async with`: it writes as long as the block lasts, and all that waits at its
    end.

    Args:
        path: a whole path; None: stderr.
    """

    def __init__(self, path: str | None, *, is_strict: bool, max_waiting: int = MAX_WAITING) -> None:
        self._file, self._is_strict, self._max_waiting = AuditFile(path), is_strict, max_waiting
        self.state = LogState.CLOSED
        self._waiting: deque[_Line] = deque()
        self._lost = 0
        self._has_work, self._is_ending, self._has_ended = anyio.Event(), anyio.Event(), anyio.Event()
        self._tasks: TaskGroup | None = None

    def __repr__(self) -> str:
        mode = "strict" if self._is_strict else "on"
        return f"<AuditLog {self._file} {mode} {self.state} {len(self._waiting)} waiting, {self._lost} lost>"

    async def __aenter__(self) -> Self:
        """
        Raises:
            ConfigurationError: the file cannot be opened.
        """
        await anyio.to_thread.run_sync(self._open)
        self.state = LogState.OPEN
        self._has_work, self._is_ending, self._has_ended = anyio.Event(), anyio.Event(), anyio.Event()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._write_all)
        if self._waiting:
            self._has_work.set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._tasks is not None
        self._is_ending.set()
        self._has_work.set()
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await self._has_ended.wait()
        self.state = LogState.CLOSED
        self._settle(self._waiting, "the gateway ends")
        self._waiting.clear()
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)
        self._file.close()

    def _open(self) -> None:
        try:
            self._file.open()
        except OSError as error:
            raise ConfigurationError(
                f"audit_file {self._file} cannot be written to ({error.strerror}). Correct 'audit_file' of [gateway], "
                "or who may write there."
            ) from None

    def check(self) -> None:
        """Make sure, before anything runs, that the file can be written to. It blocks.

        Raises:
            ConfigurationError: it cannot.
        """
        self._open()
        self._file.close()

    async def write(self, data: bytes, *, waits: bool = True) -> None:
        """Have a line written; in strict mode wait until it is on disk.

        Raises:
            AuditFailed: strict, and it is not.
        """
        if not self._is_strict or not waits:
            if len(self._waiting) < self._max_waiting:
                self._add(_Line(data))
            else:
                self._lost += 1
            return
        if self.state is LogState.CLOSED or len(self._waiting) >= self._max_waiting:
            raise AuditFailed("it is closed" if self.state is LogState.CLOSED else "too much waits for it")
        line = _Line(data)
        self._add(line)
        with anyio.move_on_after(_STRICT_SECONDS):
            await line.is_settled.wait()
        if not line.is_settled.is_set():
            raise AuditFailed(f"the disk did not take it within {_STRICT_SECONDS:g} s")
        if line.problem is not None:
            raise AuditFailed(line.problem)

    def _add(self, line: _Line) -> None:
        self._waiting.append(line)
        self._has_work.set()

    async def _write_all(self) -> None:
        while not (self._is_ending.is_set() and not self._waiting):
            await self._has_work.wait()
            if not self._is_strict:
                with anyio.move_on_after(_GATHER_SECONDS):
                    await self._is_ending.wait()
            self._has_work = anyio.Event()
            while self._waiting:
                await self._write_some()
        self._has_ended.set()

    async def _write_some(self) -> None:
        lines = [self._waiting[index] for index in range(min(_BATCH, len(self._waiting)))]
        lost = self._lost
        data = b"".join([_told(lost), *(line.data for line in lines)])
        problem = None
        try:
            await anyio.to_thread.run_sync(
                lambda: self._file.append(data, to_disk=self._is_strict), abandon_on_cancel=True
            )
        except OSError as error:
            problem = error.strerror or type(error).__name__
        for _ in lines:
            self._waiting.popleft()
        self._settle(lines, problem)
        self._lost = self._lost - lost if problem is None else self._lost + len(lines)
        self._changed(problem, lost)

    def _settle(self, lines: deque[_Line] | list[_Line], problem: str | None) -> None:
        for line in lines:
            line.problem = problem
            line.is_settled.set()

    def _changed(self, problem: str | None, lost: int) -> None:
        if problem is not None and self.state is LogState.OPEN:
            self.state = LogState.FAILING
            logger.error("the audit cannot be written to %s (%s)", self._file, problem)
        elif problem is None and self.state is LogState.FAILING:
            self.state = LogState.OPEN
            logger.warning("the audit is written to %s again", self._file)
        if problem is None and lost:
            logger.warning("the audit lost %d lines", lost)


def _told(lost: int) -> bytes:
    return json.dumps({"event": "lost", "lines": lost}).encode() + b"\n" if lost else b""
