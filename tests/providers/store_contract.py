"""What every store promises, as tests. A store's own test file subclasses `StoreContract` with a fixture `store`.

Only the interface is used. Between processes the order of two events may be late, so waiting is for what comes, never
for a time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime

import anyio
import pytest

from providers.errors import VersionConflict
from providers.resource import McpServerResource
from providers.store import McpResourceStoreBase, Snapshot

PATIENCE = 20.0


def record(name: str = "files", **more: object) -> McpServerResource:
    return McpServerResource.model_validate({"name": name, "command": "run", **more})


@asynccontextmanager
async def watching(store: McpResourceStoreBase) -> AsyncIterator[Callable[[], Awaitable[Snapshot]]]:
    """Gives a function that waits for the next snapshot."""
    stream = store.watch()
    async with aclosing(stream):  # type: ignore[type-var]

        async def following() -> Snapshot:
            with anyio.fail_after(PATIENCE):
                return await anext(stream)

        yield following


class StoreContract:
    """The contract. `store` is empty at first."""

    @pytest.fixture
    def store(self) -> McpResourceStoreBase:
        raise NotImplementedError("a subclass gives the store")

    # --- records

    async def test_an_empty_store_has_nothing(self, store: McpResourceStoreBase) -> None:
        assert await store.get("files") is None
        assert dict(await store.list_all()) == {}
        assert await store.delete("files") is False

    async def test_what_was_put_in_is_there(self, store: McpResourceStoreBase) -> None:
        await store.upsert(record(args=("--all",), env={"TOKEN": "s"}, required_roles=("engineer",)))
        stored = await store.get("files")
        assert stored is not None
        assert (stored.args, stored.env, stored.required_roles) == (("--all",), {"TOKEN": "s"}, ("engineer",))
        assert dict(await store.list_all()) == {"files": stored}

    async def test_every_field_survives(self, store: McpResourceStoreBase) -> None:
        full = McpServerResource.model_validate(
            {
                "name": "docs-2",
                "url": "https://user:pass@docs.example:8443/mcp?a=1",
                "headers": {"X-Api-Key": "k,; Ü"},
                "description": "line one\nline two 李 \u2028",
                "isolation": "user",
                "tools": {"include": ["a"], "rename": {"a": "b"}, "description": {"a": "text"}},
                "timeouts": {"call": 1.5},
                "is_enabled": False,
                "created_by": "ann@example.com",
            }
        )
        stored = await store.upsert(full)
        assert stored == await store.get("docs-2") and stored.same_offer(full) and stored.created_by == full.created_by

    async def test_records_are_told_apart_by_name_alone(self, store: McpResourceStoreBase) -> None:
        for name in ("a", "a-b", "b", "0", "a" * 63):
            await store.upsert(record(name, args=(name,)))
        snapshot = await store.list_all()
        assert {name: each.args[0] for name, each in snapshot.items()} == {name: name for name in snapshot}
        assert len(snapshot) == 5

    async def test_a_record_that_was_deleted_is_gone(self, store: McpResourceStoreBase) -> None:
        await store.upsert(record("files"))
        await store.upsert(record("time"))
        assert await store.delete("files") is True
        assert await store.get("files") is None and list(await store.list_all()) == ["time"]
        assert await store.delete("files") is False

    async def test_a_snapshot_does_not_change_afterwards(self, store: McpResourceStoreBase) -> None:
        await store.upsert(record("files"))
        before = await store.list_all()
        await store.upsert(record("time"))
        assert list(before) == ["files"]

    # --- versions and times

    async def test_versions_count_from_one(self, store: McpResourceStoreBase) -> None:
        versions = [(await store.upsert(record(args=(str(number),)))).version for number in range(3)]
        assert versions == [1, 2, 3]
        await store.delete("files")
        assert (await store.upsert(record())).version == 1, "a record that is made again is a new one"

    async def test_the_version_in_the_given_record_does_not_count(self, store: McpResourceStoreBase) -> None:
        assert (await store.upsert(record(version=41))).version == 1
        assert (await store.upsert(record(version=41))).version == 2

    async def test_times_tell_when_a_record_was_made_and_changed(self, store: McpResourceStoreBase) -> None:
        began = datetime.now(UTC)
        made = await store.upsert(record(created_at=datetime(2001, 1, 1, tzinfo=UTC)))
        changed = await store.upsert(record(args=("x",)))
        assert began <= made.created_at <= made.updated_at <= changed.updated_at <= datetime.now(UTC)
        assert changed.created_at == made.created_at
        assert changed.updated_at.tzinfo is not None

    @pytest.mark.parametrize("expected", [None, 0])
    async def test_a_new_record_may_be_expected_not_to_exist(
        self, store: McpResourceStoreBase, expected: int | None
    ) -> None:
        assert (await store.upsert(record(), expected_version=expected)).version == 1

    async def test_the_expected_version_is_taken(self, store: McpResourceStoreBase) -> None:
        for version in (0, 1, 2):
            assert (await store.upsert(record(), expected_version=version)).version == version + 1
        assert await store.delete("files", expected_version=3) is True

    @pytest.mark.parametrize("expected", [0, 1, 3, -1])
    async def test_any_other_version_is_a_conflict_and_changes_nothing(
        self, store: McpResourceStoreBase, expected: int
    ) -> None:
        for number in range(2):
            stored = await store.upsert(record(args=(str(number),)))
        with pytest.raises(VersionConflict) as conflict:
            await store.upsert(record(args=("lost",)), expected_version=expected)
        assert (conflict.value.name, conflict.value.expected, conflict.value.actual) == ("files", expected, 2)
        with pytest.raises(VersionConflict):
            await store.delete("files", expected_version=expected)
        assert dict(await store.list_all()) == {"files": stored}

    async def test_a_version_of_what_does_not_exist_is_a_conflict(self, store: McpResourceStoreBase) -> None:
        with pytest.raises(VersionConflict) as conflict:
            await store.upsert(record(), expected_version=1)
        assert conflict.value.actual is None and await store.get("files") is None
        with pytest.raises(VersionConflict):
            await store.delete("files", expected_version=1)
        assert await store.delete("files", expected_version=0) is False

    # --- many at once

    async def test_of_fifty_writers_one_wins_each_version(self, store: McpResourceStoreBase) -> None:
        won: list[int] = []

        async def write(writer: int) -> None:
            while True:
                known = await store.get("files")
                version = known.version if known else 0
                count = int(known.args[0]) if known else 0
                try:
                    stored = await store.upsert(record(args=(str(count + 1),)), expected_version=version)
                except VersionConflict:
                    continue
                won.append(stored.version)
                return

        async with anyio.create_task_group() as tasks:
            for writer in range(50):
                tasks.start_soon(write, writer)
        final = await store.get("files")
        assert sorted(won) == list(range(1, 51))
        assert final is not None and (final.version, final.args) == (50, ("50",)), "no update was lost"

    async def test_fifty_writers_without_an_expectation_make_fifty_versions(self, store: McpResourceStoreBase) -> None:
        versions: list[int] = []

        async def write(writer: int) -> None:
            versions.append((await store.upsert(record(args=(str(writer),)))).version)

        async with anyio.create_task_group() as tasks:
            for writer in range(50):
                tasks.start_soon(write, writer)
        assert sorted(versions) == list(range(1, 51))

    async def test_only_one_of_many_can_make_a_record(self, store: McpResourceStoreBase) -> None:
        made: list[int] = []

        async def make(writer: int) -> None:
            try:
                await store.upsert(record(args=(str(writer),)), expected_version=0)
            except VersionConflict:
                return
            made.append(writer)

        async with anyio.create_task_group() as tasks:
            for writer in range(20):
                tasks.start_soon(make, writer)
        stored = await store.get("files")
        assert stored is not None and [stored.args[0]] == [str(writer) for writer in made]

    # --- watching

    async def test_watching_begins_with_what_is_there(self, store: McpResourceStoreBase) -> None:
        async with watching(store) as following:
            assert dict(await following()) == {}
        await store.upsert(record())
        async with watching(store) as following:
            assert list(await following()) == ["files"]

    async def test_each_kind_of_change_is_seen(self, store: McpResourceStoreBase) -> None:
        async with watching(store) as following:
            await following()
            await store.upsert(record())
            assert (await following())["files"].version == 1
            await store.upsert(record(args=("x",)))
            assert (await following())["files"].version == 2
            await store.delete("files")
            assert dict(await following()) == {}

    async def test_a_slow_watcher_gets_the_newest_and_misses_nothing_final(self, store: McpResourceStoreBase) -> None:
        async with watching(store) as following:
            await following()
            for number in range(30):
                await store.upsert(record(args=(str(number),)))
            snapshots = 0
            while (await following())["files"].version < 30:
                snapshots += 1
            assert snapshots < 29

    async def test_a_change_right_after_a_snapshot_is_not_lost(self, store: McpResourceStoreBase) -> None:
        async with watching(store) as following:
            for version in range(1, 20):
                await following()
                await store.upsert(record())
                with anyio.fail_after(PATIENCE):
                    while (await following()).get("files", record()).version < version:
                        pass
                await store.upsert(record("other", args=(str(version),)))

    async def test_every_watcher_sees_the_change(self, store: McpResourceStoreBase) -> None:
        async with watching(store) as one, watching(store) as other:
            await one()
            await other()
            await store.upsert(record())
            assert list(await one()) == list(await other()) == ["files"]

    async def test_what_changed_nothing_wakes_nobody(self, store: McpResourceStoreBase) -> None:
        await store.upsert(record())
        async with watching(store) as following:
            await following()
            assert await store.delete("absent") is False
            with pytest.raises(VersionConflict):
                await store.upsert(record(args=("lost",)), expected_version=9)
            await store.upsert(record("time"))
            assert sorted(await following()) == ["files", "time"]
