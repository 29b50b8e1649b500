"""The store in a SQLite file keeps the contract, and says clearly which files it does not take."""

from __future__ import annotations

import sqlite3
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from providers import store_sqlite
from providers.errors import ConfigurationError, StoreUnavailable
from providers.store import McpResourceStoreBase
from providers.store_sqlite import SqliteMcpResourceStore
from tests.providers.store_contract import StoreContract, record, watching

pytestmark = pytest.mark.core


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "servers.db"


class TestSqlite(StoreContract):
    @pytest.fixture
    async def store(self, file: Path) -> AsyncIterator[McpResourceStoreBase]:
        async with SqliteMcpResourceStore(file) as store:
            yield store


async def test_what_was_stored_is_there_when_it_is_opened_again(file: Path) -> None:
    store = SqliteMcpResourceStore(file)
    async with store:
        await store.upsert(record(env={"TOKEN": "secret"}))
        first = await store.list_all()
    async with store:
        assert dict(await store.list_all()) == dict(first)
    assert dict(store.read_now()) == dict(first)


def test_a_file_that_is_not_there_is_read_as_empty_and_not_made(file: Path) -> None:
    assert dict(SqliteMcpResourceStore(file).read_now()) == {} and not file.exists()


async def test_what_another_connection_writes_is_noticed(file: Path) -> None:
    async with SqliteMcpResourceStore(file) as one, SqliteMcpResourceStore(file) as other, watching(one) as following:
        await following()
        await other.upsert(record())
        assert list(await following()) == ["files"]
        await other.delete("files")
        assert list(await following()) == []


async def test_its_files_are_for_this_user_alone(file: Path) -> None:
    await anyio.to_thread.run_sync(file.touch, 0o644)
    async with SqliteMcpResourceStore(file) as store:
        await store.upsert(record())
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}
    assert modes == {"servers.db": 0o600, "servers.db-wal": 0o600, "servers.db-shm": 0o600}


async def test_a_record_that_cannot_be_read_is_left_out_alone(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with SqliteMcpResourceStore(file) as store:
        for name in ("files", "newer", "odd", "time"):
            await store.upsert(record(name))
        with closing(sqlite3.connect(file)) as other, other:
            other.execute(
                "UPDATE servers SET document = ? WHERE name = 'newer'",
                ('{"command":"secret","created_by":"ann","quantum":"secret"}',),
            )
            other.execute("UPDATE servers SET document = 'secret' WHERE name = 'odd'")
            other.execute("INSERT INTO servers VALUES ('b', 1, '', '', CAST(x'ff' AS TEXT))")
        assert sorted(await store.list_all()) == ["files", "time"]
        assert await store.get("newer") is None
        assert "'newer' is left out" in caplog.text and "quantum" in caplog.text and "'odd' is left out" in caplog.text
        assert "secret" not in caplog.text
        assert (await store.upsert(record("newer"), expected_version=1)).version == 2, "it can be put right"
        assert await store.delete("odd") is True


def newer(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.executescript("PRAGMA application_id = 0x41706F6C; PRAGMA user_version = 2; CREATE TABLE servers (a)")


def anothers(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.executescript("PRAGMA user_version = 7; CREATE TABLE songs (a)")


def no_database(file: Path) -> None:
    file.write_text("What would be no database, however long one looks at it.\n" * 100)


def bytes_of(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (newer, "newer version of the gateway"),
        (anothers, "database of another program"),
        (no_database, "no database that can be used"),
        (Path.mkdir, "cannot be opened"),
    ],
)
async def test_other_files_are_refused_and_left_as_they_are(file: Path, make: object, told: str) -> None:
    make(file)  # type: ignore[operator]
    before = bytes_of(file)
    with pytest.raises(ConfigurationError, match=told) as refusal:
        async with SqliteMcpResourceStore(file):
            pass
    assert str(file) in str(refusal.value)
    with pytest.raises(ConfigurationError, match=told):
        SqliteMcpResourceStore(file).read_now()
    assert bytes_of(file) == before


HOLDER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


async def test_a_new_file_that_another_process_holds_is_not_said_to_be_broken(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_sqlite, "_LOCK_SECONDS", 0.1)
    command = [sys.executable, "-c", HOLDER, str(file)]
    async with await anyio.open_process(command) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert (await holder.stdout.receive()).startswith(b"held")
        with pytest.raises(ConfigurationError, match=r"is held by another process for 0\.1 s now"):
            async with SqliteMcpResourceStore(file):
                pass
        await holder.stdin.aclose()
    async with SqliteMcpResourceStore(file) as store:
        assert dict(await store.list_all()) == {}


async def test_a_folder_that_is_not_there_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"absent/x\.db' cannot be opened \(No such file"):
        async with SqliteMcpResourceStore(tmp_path / "absent" / "x.db"):
            pass


def take_away(file: Path, is_replaced: bool) -> None:
    file.rename(file.with_name("away"))
    if is_replaced:
        file.touch()


@pytest.mark.parametrize("is_replaced", [False, True])
async def test_a_file_that_was_taken_away_takes_no_more_changes(file: Path, is_replaced: bool) -> None:
    async with SqliteMcpResourceStore(file) as store, watching(store) as following:
        await store.upsert(record())
        await following()
        take_away(file, is_replaced)
        with pytest.raises(StoreUnavailable, match="cannot be used"):
            await store.upsert(record())
        with pytest.raises(StoreUnavailable, match="cannot be used"):
            await following()
