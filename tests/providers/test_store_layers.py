"""servers.toml over a durable store: who wins, who may change what, and what holds while the store is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from providers.errors import ReadOnlyServer, StoreUnavailable
from providers.resource import SERVERS_FILE, McpServerResource, can_access
from providers.store import InMemoryMcpResourceStore, McpResourceStoreBase
from providers.store_layers import LayeredStore, StoreState
from tests.helpers.fakes import no_waiting, settled, time_passes
from tests.helpers.stores import FragileStore
from tests.providers.store_contract import StoreContract, record, watching

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


def added(name: str, **more: object) -> McpServerResource:
    """A record that somebody added through the API."""
    return record(name, created_by="ann", required_roles=["dev"], **more)


@asynccontextmanager
async def layered(
    *files: McpServerResource, records: McpResourceStoreBase | None = None
) -> AsyncIterator[LayeredStore]:
    """A store that runs."""
    async with (
        LayeredStore(InMemoryMcpResourceStore(files), records or FragileStore()) as store,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(store.run)
        await settled()
        yield store
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("records", [InMemoryMcpResourceStore, FragileStore])
class TestLayered(StoreContract):
    """Above an empty file it is a store as any other."""

    @pytest.fixture
    async def store(self, records: type[McpResourceStoreBase]) -> AsyncIterator[McpResourceStoreBase]:
        async with LayeredStore(InMemoryMcpResourceStore(), records()) as store:
            running = asyncio.create_task(store.run())  # a fixture is set up and ended in different tasks
            yield store
            running.cancel()
            await asyncio.wait([running])


# ----------------------------------------------------------------------------------------- the layers


async def test_both_layers_are_one_list_and_the_file_wins(caplog: pytest.LogCaptureFixture) -> None:
    fragile = FragileStore(added("files", args=["stored"]), added("time"))
    async with layered(record("files", args=["file"]), record("docs"), records=fragile) as store:
        assert sorted(await store.list_all()) == sorted(store.snapshot) == ["docs", "files", "time"]
        files = await store.get("files")
        assert files is not None and files.args == ("file",) and files.created_by == "servers.toml"
        await fragile.upsert(added("other"))
        await settled()
        assert caplog.text.count("server 'files' is in servers.toml and in the store too") == 1
        await store.files.delete("files")
        await settled()
        assert store.snapshot["files"].args == ("stored",), "who is gone from the file hides nothing"


async def test_what_stands_in_the_file_is_changed_there() -> None:
    fragile = FragileStore()
    async with layered(record("files"), records=fragile) as store:
        for work in (
            store.upsert(added("files")),
            store.delete("files"),
            store.upsert(added("files"), expected_version=0),
        ):
            with pytest.raises(ReadOnlyServer, match=r"server 'files' stands in servers\.toml"):
                await work
        assert dict(fragile.inner.snapshot) == {}


async def test_who_changed_something_finds_it_in_effect() -> None:
    async with layered(records=FragileStore(added("time"))) as store:
        await store.upsert(added("new"))
        assert store.snapshot["new"].version == 1
        await store.upsert(added("new"))
        assert store.snapshot["new"].version == 2
        assert await store.delete("new") is True and await store.delete("new") is False
        assert list(store.snapshot) == ["time"]


async def test_what_stands_in_the_file_is_never_stored() -> None:
    fragile = FragileStore()
    async with layered(record("files", env={"TOKEN": "secret"}), records=fragile) as store:
        await store.upsert(added("time"))
        await store.files.upsert(record("docs", env={"TOKEN": "secret"}))
        assert list(fragile.inner.snapshot) == ["time"]


async def test_changes_of_either_layer_are_seen() -> None:
    fragile = FragileStore()
    async with layered(records=fragile) as store, watching(store) as following:
        assert dict(await following()) == {}
        await store.files.upsert(record("files"))
        assert sorted(await following()) == ["files"]
        await fragile.upsert(added("time"))
        assert sorted(await following()) == ["files", "time"]
        await store.files.delete("files")
        assert sorted(await following()) == ["time"]


def test_what_is_known_already_is_there_before_it_is_opened() -> None:
    store = LayeredStore(InMemoryMcpResourceStore([record("files")]), FragileStore(), known={"time": added("time")})
    assert sorted(store.snapshot) == ["files", "time"]
    assert repr(store) == "<LayeredStore ready 1 of the file, 1 stored>"


# ---------------------------------------------------------------------------------- the store is away


async def test_while_the_store_is_away_the_last_snapshot_stands_and_changes_fail() -> None:
    fragile = FragileStore(added("time"))
    async with layered(record("files"), records=fragile) as store:
        assert store.state is StoreState.READY and store.as_of is not None
        before = dict(store.snapshot)
        fragile.go()
        await settled()
        assert store.state is StoreState.DEGRADED and store.as_of <= store.since
        assert dict(await store.list_all()) == dict(store.snapshot) == before
        assert await store.get("time") == before["time"] and await store.get("absent") is None
        for work in (store.upsert(added("new")), store.delete("time")):
            with pytest.raises(StoreUnavailable, match="is away"):
                await work
        await store.files.upsert(record("docs"))
        await settled()
        assert "docs" in store.snapshot, "the file is followed all the same"


async def test_it_recovers_by_itself_with_what_changed_meanwhile() -> None:
    fragile = FragileStore(added("time"), added("gone"))
    async with layered(records=fragile) as store, watching(store) as following:
        await following()
        fragile.go()
        await time_passes(30)
        assert store.state is StoreState.DEGRADED
        await fragile.inner.upsert(added("new"))  # by another gateway, which reached it
        await fragile.inner.delete("gone")
        fragile.come_back()
        began = anyio.current_time()
        assert sorted(await following()) == ["new", "time"]
        assert anyio.current_time() - began <= 1 and store.state is StoreState.READY
        assert (await store.upsert(added("more"))).version == 1


async def test_it_is_asked_again_with_pauses_that_grow_to_a_second() -> None:
    fragile = FragileStore()
    async with layered(records=fragile) as store:
        await time_passes(1)
        fragile.go()
        await time_passes(10)
        pauses = [after - before for before, after in zip(fragile.attempts, fragile.attempts[1:], strict=False)][1:]
        assert pauses[:4] == pytest.approx([0.2, 0.4, 0.8, 1.0]) and max(pauses) == pytest.approx(1.0)
        assert len(pauses) > 8 and store.state is StoreState.DEGRADED


async def test_a_gateway_starts_without_its_store() -> None:
    fragile = FragileStore(added("time"))
    fragile.go()
    async with layered(record("files"), records=fragile) as store:
        assert store.state is StoreState.DEGRADED and store.as_of is None and list(store.snapshot) == ["files"]
        fragile.come_back()
        await time_passes(1)
        assert store.state is StoreState.READY and sorted(store.snapshot) == ["files", "time"]


# ------------------------------------------------------------------------------------- grants grow old


READERS = {"creator": ("ann", ()), "reader": ("rob", ("dev",)), "stranger": ("eve", ()), "file": ("servers.toml", ())}


def who_may_read(resource: McpServerResource) -> set[str]:
    may = {name for name, (user, roles) in READERS.items() if can_access(resource, user, roles)}
    assert can_access(resource, "root", ("mcp.admin",)), "whom a token says to be an administrator"
    return may


async def test_grants_that_nobody_confirms_for_a_minute_count_no_more() -> None:
    fragile = FragileStore(added("time"), record("open", required_roles=["*"], created_by="ann"))
    async with layered(record("files", required_roles=["dev"]), records=fragile) as store:
        await time_passes(300)
        assert who_may_read(store.snapshot["time"]) == {"creator", "reader"}, "each look at the store confirms them"
        fragile.go()
        await time_passes(57)
        assert who_may_read(store.snapshot["time"]) == {"creator", "reader"}
        await time_passes(3.1)
        assert who_may_read(store.snapshot["time"]) == who_may_read(store.snapshot["open"]) == set()
        found = await store.get("time")
        assert found is not None and who_may_read(found) == set()
        assert who_may_read(store.snapshot["files"]) == {"reader"}, "the file is here, and needs nobody's word"
        fragile.come_back()
        await time_passes(1.1)
        assert who_may_read(store.snapshot["time"]) == {"creator", "reader"}


async def test_watchers_see_that_grants_ended_and_came_back() -> None:
    fragile = FragileStore(added("time"))
    async with layered(records=fragile) as store, watching(store) as following:
        first = (await following())["time"]
        fragile.go()
        await time_passes(61)
        sealed = (await following())["time"]
        assert who_may_read(sealed) == set() and sealed.same_backend(first)
        assert sealed.created_by != SERVERS_FILE, "who is of the file may reach more, and is changed there alone"
        fragile.come_back()
        assert (await following())["time"] is first


async def test_a_store_in_memory_is_never_away() -> None:
    records = InMemoryMcpResourceStore([added("time")])
    async with layered(records=records) as store:
        await time_passes(300)
        assert who_may_read(store.snapshot["time"]) == {"creator", "reader"} and store.state is StoreState.READY
