"""Two processes on one store: one winner for each version, and what was acknowledged is there, also after a kill."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from providers.store import McpResourceStoreBase
from tests.helpers.redis_server import redis_server
from tests.helpers.store_openers import SCRIPT as OPENERS
from tests.helpers.store_writers import SCRIPT, patient_store
from tests.providers.store_contract import record, watching

pytestmark = pytest.mark.core

SECONDS = 90
WRITERS = 5
NEW_FILES = 40
"""Of so many, some were refused in nearly every run when SQLite was left to wait by itself."""


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite://{tmp_path / 'servers.db'}"
    else:
        with redis_server() as server:
            yield server.url


@pytest.fixture
async def store(url: str) -> AsyncIterator[McpResourceStoreBase]:
    async with patient_store(url) as store:
        yield store


@contextmanager
def writers(url: str, count: int, rounds: int | str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(SCRIPT), url, str(count), str(rounds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def versions(process: subprocess.Popen[str]) -> list[int]:
    """What a process was told that it had written, once it has ended."""
    said, _ = await anyio.to_thread.run_sync(process.communicate)
    return [int(line) for line in said.splitlines()]


async def test_of_fifty_writers_in_two_processes_one_wins_each_version(url: str, store: McpResourceStoreBase) -> None:
    with writers(url, 25, 2) as one, writers(url, 25, 2) as other, anyio.fail_after(SECONDS):
        won = await versions(one) + await versions(other)
        assert (one.returncode, other.returncode) == (0, 0)
    assert sorted(won) == list(range(1, 101))
    final = await store.get("files")
    assert final is not None and (final.version, final.args) == (100, ("100",)), "no change was lost"
    assert dict(await store.list_all()) == {"files": final}


async def test_processes_that_open_a_new_store_at_once_share_it(url: str) -> None:
    with writers(url, 1, 1) as one, writers(url, 1, 1) as two, writers(url, 1, 1) as three, anyio.fail_after(SECONDS):
        assert sorted(await versions(one) + await versions(two) + await versions(three)) == [1, 2, 3]


async def test_processes_that_open_a_new_file_in_the_same_moment_all_get_it(tmp_path: Path) -> None:
    with anyio.fail_after(SECONDS):
        done = await anyio.run_process([sys.executable, str(OPENERS), str(tmp_path), str(NEW_FILES)], check=False)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    assert len(await anyio.to_thread.run_sync(lambda: list(tmp_path.glob("*.db")))) == NEW_FILES


async def test_what_another_process_writes_is_seen_at_once(url: str, store: McpResourceStoreBase) -> None:
    async with watching(store) as following:
        assert dict(await following()) == {}
        with writers(url, 1, 1) as process:
            said = await versions(process)
            told = anyio.current_time()
            assert (await following())["files"].version == said[0] == 1
            assert anyio.current_time() - told < 1


@pytest.mark.parametrize("number", range(3))
async def test_every_write_that_was_acknowledged_survives_a_kill(
    url: str, store: McpResourceStoreBase, number: int
) -> None:
    with writers(url, WRITERS, "-") as process, anyio.fail_after(SECONDS):
        assert process.stdout is not None
        said = [await anyio.to_thread.run_sync(process.stdout.readline) for _ in range(20 + 7 * number)]
        process.send_signal(signal.SIGKILL)
        last = max(*await versions(process), *map(int, said))
    final = await store.get("files")
    assert final is not None and last <= final.version <= last + WRITERS, "each may have had one on its way"
    assert final.args == (str(final.version),)
    assert (await store.upsert(record(), expected_version=final.version)).version == final.version + 1


async def test_a_file_whose_writer_was_killed_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "servers.db"
    with writers(f"sqlite://{file}", 5, "-") as process:
        assert process.stdout is not None
        await anyio.to_thread.run_sync(process.stdout.readline)
        process.send_signal(signal.SIGKILL)
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
