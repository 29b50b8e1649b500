"""Resources in one SQLite file: the store of a gateway on one machine. Several processes may share the file.

The gateway and the command line come in; called are the file system and sqlite3, in threads. Each acknowledged change
is on disk (`synchronous=FULL` over a write-ahead log), so it survives `kill -9` and a loss of power. One connection of
this process writes; each watcher has one of its own, which asks the file for its `data_version` four times a second.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import anyio
import anyio.to_thread

from providers.errors import ConfigurationError, StoreUnavailable, VersionConflict
from providers.resource import McpServerResource
from providers.store import DurableStore, Snapshot
from providers.store_records import Reader, Row, document_of, now, read, stored

SCHEMA = 1
"""What `user_version` says of a file that this version writes."""
_APPLICATION = 0x41706F6C
"""Marks the file as ours (`application_id`): "Apol"."""
_LOOK_SECONDS = 0.25
"""Between two looks whether another process changed something."""
_LOCK_SECONDS = 5.0
"""That a write waits for one of another process. SQLite does not queue them, so a busy file needs some patience."""
_TABLE = """CREATE TABLE servers (
    name TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    document TEXT NOT NULL
) WITHOUT ROWID"""
_SELECT = "SELECT version, created_at, updated_at, document FROM servers WHERE name = ?"

Result = TypeVar("Result")


class SqliteMcpResourceStore(DurableStore):
    """Records in a file.

    Args:
        path: the file; it is made, for this user alone, if there is none. Its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: tuple[int, int] | None = None
        self._writer: sqlite3.Connection | None = None
        self._reader = Reader()
        self._written: set[anyio.Event] = set()
        self._one_at_a_time = anyio.CapacityLimiter(1)

    def __repr__(self) -> str:
        return f"<SqliteMcpResourceStore '{self._path}' {'open' if self._writer else 'closed'}>"

    # --- lifetime

    async def __aenter__(self) -> Self:
        """
        Raises:
            ConfigurationError: the file cannot be had, is no database of ours, or one of a newer version.
        """
        self._writer = await anyio.to_thread.run_sync(self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            writer, self._writer = self._writer, None
            if writer is not None:
                await anyio.to_thread.run_sync(writer.close, limiter=self._one_at_a_time)

    def read_now(self) -> Snapshot:
        """What is stored, read while the caller waits: for who has no event loop yet. A file that there is not yet
        is not made.

        Raises:
            ConfigurationError: as when it is opened.
        """
        if not self._path.exists():
            return {}
        with closing(self._open()) as connection:
            return Reader().snapshot(_rows(connection))

    def _open(self) -> sqlite3.Connection:
        try:
            self._make_private()
            connection = self._connect()
        except OSError as error:
            raise ConfigurationError(f"the store '{self._path}' cannot be opened ({error.strerror}).") from None
        except sqlite3.Error as error:
            raise ConfigurationError(f"the store '{self._path}' cannot be opened ({error}).") from None
        try:
            _prepare(connection, self._path)
        except sqlite3.DatabaseError as error:
            connection.close()
            if _is_busy(error):
                raise ConfigurationError(
                    f"the store '{self._path}' is held by another process for {_LOCK_SECONDS:g} s now. Try again, or "
                    "end that process."
                ) from None
            raise ConfigurationError(
                f"the store '{self._path}' is no database that can be used ({error}). Name another file, or remove it."
            ) from None
        except BaseException:
            connection.close()
            raise
        return connection

    def _make_private(self) -> None:
        """The file holds secrets. SQLite gives the two files beside it the mode of this one."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            found = os.fstat(descriptor)
            self._file = (found.st_dev, found.st_ino)
            if found.st_mode & 0o077 and hasattr(os, "fchmod"):
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)

    def _connect(self) -> sqlite3.Connection:
        # Used by one thread at a time, not always by the same.
        connection = sqlite3.connect(self._path, timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False)
        connection.text_factory = _text
        return connection

    # --- records

    async def get(self, name: str) -> McpServerResource | None:
        row = await self._do(lambda connection: connection.execute(_SELECT, (name,)).fetchone())
        return read(name, Row(*row)) if row else None

    async def list_all(self) -> Snapshot:
        return await self._do(lambda connection: self._reader.snapshot(_rows(connection)))

    async def upsert(self, resource: McpServerResource, *, expected_version: int | None = None) -> McpServerResource:
        name, document, time = resource.name, document_of(resource), now()

        def write(connection: sqlite3.Connection) -> Row:
            with _transaction(connection):
                known = _checked(connection, name, expected_version)
                version, created = (known.version, known.created_at) if known else (0, time)
                row = Row(version + 1, created, time, document)
                connection.execute("INSERT OR REPLACE INTO servers VALUES (?, ?, ?, ?, ?)", (name, *row))
            return row

        row = await self._do(write)
        self._announce()
        return stored(name, row)

    async def delete(self, name: str, *, expected_version: int | None = None) -> bool:
        def remove(connection: sqlite3.Connection) -> bool:
            with _transaction(connection):
                known = _checked(connection, name, expected_version)
                connection.execute("DELETE FROM servers WHERE name = ?", (name,))
            return known is not None

        was_there = await self._do(remove)
        if was_there:
            self._announce()
        return was_there

    async def _do(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Have a thread do something with the connection that writes."""

        def in_thread() -> Result:
            assert self._writer is not None, "the store is not open"
            self._check_file()
            return work(self._writer)

        try:
            return await anyio.to_thread.run_sync(in_thread, limiter=self._one_at_a_time)
        except sqlite3.Error as error:
            raise self._unavailable(error) from None

    # --- changes

    async def confirmations(self) -> AsyncGenerator[Snapshot]:
        reader, seen, snapshot = Reader(), None, None
        one_at_a_time = anyio.CapacityLimiter(1)

        def look() -> tuple[int, Snapshot | None]:
            self._check_file()
            version = connection.execute("PRAGMA data_version").fetchone()[0]
            return version, (reader.snapshot(_rows(connection)) if version != seen else snapshot)

        connection = await anyio.to_thread.run_sync(self._connect, limiter=one_at_a_time)
        try:
            while True:
                written = anyio.Event()
                self._written.add(written)
                try:
                    seen, snapshot = await anyio.to_thread.run_sync(look, limiter=one_at_a_time)
                    assert snapshot is not None
                    yield snapshot
                    with anyio.move_on_after(_LOOK_SECONDS):
                        await written.wait()
                finally:
                    self._written.discard(written)
        except sqlite3.Error as error:
            raise self._unavailable(error) from None
        finally:
            connection.close()

    def _announce(self) -> None:
        for written in self._written:
            written.set()

    def _check_file(self) -> None:
        """A file that was removed or replaced takes writes that nobody will ever read."""
        try:
            found = self._path.stat()
        except OSError as error:
            raise self._unavailable(error.strerror) from None
        if (found.st_dev, found.st_ino) != self._file:
            raise self._unavailable("it was replaced by another file; restart the gateway")

    def _unavailable(self, problem: object) -> StoreUnavailable:
        return StoreUnavailable(f"sqlite at '{self._path}'", f"cannot be used: {problem}")


def _text(stored: bytes) -> str:
    """One record that is no text does not take the others down."""
    return stored.decode(errors="replace")


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the table if there is none.

    Raises:
        ConfigurationError: the file is another program's, or of a newer version.
    """
    with _transaction(connection, "DEFERRED"):
        is_ours = _check_owner(connection, path)
    connection.execute("PRAGMA synchronous = FULL")
    if (mode := _ask_for_wal(connection)) != "wal":
        raise ConfigurationError(
            f"the store '{path}' lies on a file system that cannot share it (its journal is '{mode}'). "
            "Name a file on a local disk."
        )
    if is_ours:
        return
    with _transaction(connection):
        if not _check_owner(connection, path):  # of two processes that start at once, one makes the table
            connection.execute(_TABLE)
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {SCHEMA}")


def _ask_for_wal(connection: sqlite3.Connection) -> str:
    """Turn the write-ahead log on; the answer is the journal that the file has now. This is the one statement that
    waits for no lock of another process, which may be opening the same new file; the beginning of a write does."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
        with _transaction(connection):
            pass


def _is_busy(error: sqlite3.Error) -> bool:
    """Whether another process has the lock; the extended codes of SQLITE_BUSY end in its own."""
    code = getattr(error, "sqlite_errorcode", None)  # Python's own errors have none
    return isinstance(code, int) and code & 0xFF == sqlite3.SQLITE_BUSY


def _check_owner(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the file has our table already; an empty one has not."""
    if connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise ConfigurationError(f"the store '{path}' is a database of another program. Name another file.")
        return False
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA:
        raise ConfigurationError(
            f"the store '{path}' was written by a newer version of the gateway (format {version}; this one knows "
            f"{SCHEMA}). Run that version, or name another file."
        )
    return True


def _rows(connection: sqlite3.Connection) -> dict[str, Row]:
    found = connection.execute("SELECT name, version, created_at, updated_at, document FROM servers")
    return {name: Row(*row) for name, *row in found}


def _checked(connection: sqlite3.Connection, name: str, expected: int | None) -> Row | None:
    row = connection.execute(_SELECT, (name,)).fetchone()
    known = Row(*row) if row else None
    actual = known.version if known else None
    if expected is not None and expected != (actual or 0):
        raise VersionConflict(name, expected, actual)
    return known


@contextmanager
def _transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """What is read in it stays true until what is written in it is on disk.

    Args:
        kind: `DEFERRED` for one that only reads, and waits for nobody.
    """
    connection.execute(f"BEGIN {kind}")
    try:
        yield
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
