"""Who may not use a server any more: calls under way end too, and are answered as if there had never been one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from tests.composition.test_registry_users import Person, record, team, user
from tests.helpers.fakes import never, no_waiting, settled
from tests.helpers.house import House

pytestmark = pytest.mark.core

USES: dict[str, dict[str, Any]] = {
    "tools/call": {"name": "files_run", "arguments": {}},
    "prompts/get": {"name": "files_say"},
    "resources/read": {"uri": "data://files/a"},
}


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


async def without_access(house: House, how: str) -> None:
    match how:
        case "deleted":
            await house.store.delete("files")
        case "disabled":
            await house.store.upsert(record("files", "dev", is_enabled=False))
        case "revoked":
            await house.store.upsert(record("files", "boss"))


@pytest.mark.parametrize("method", USES)
@pytest.mark.parametrize("how", ["deleted", "disabled", "revoked"])
async def test_a_call_under_way_ends_and_its_server_looks_absent(method: str, how: str) -> None:
    async with team(record("files", "dev")) as house, user(house, "ann", "dev") as ann:
        files = house.backends["files"]
        files.answers[method] = never
        said: list[str] = []

        async def calling() -> None:
            said.append(await ann.answer_to(method, USES[method]))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(calling)
            await files.heard(method)
            began = anyio.current_time()
            await without_access(house, how)
        assert anyio.current_time() - began < 1
        unknown = {key: value.replace("files", "absent") for key, value in USES[method].items() if key != "arguments"}
        absent = await ann.answer_to(method, USES[method] | unknown)
        assert said == [absent.replace("absent", "files")]
        assert house.root.calls == 0


async def test_only_the_calls_of_who_lost_the_role_end() -> None:
    async with (
        team(record("files", "dev", "ops"), record("time", "dev")) as house,
        user(house, "ann", "dev") as ann,
        user(house, "bob", "ops") as bob,
    ):
        for backend in house.backends.values():
            backend.answers["tools/call"] = never
        said: dict[str, str] = {}

        async def calling(person: Person, name: str, tool: str) -> None:
            said[name] = await person.call(tool)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(calling, ann, "ann files", "files_run")
            tasks.start_soon(calling, ann, "ann time", "time_run")
            tasks.start_soon(calling, bob, "bob files", "files_run")
            await house.backends["files"].heard("tools/call", 2)
            await house.backends["time"].heard("tools/call")
            await house.store.upsert(record("files", "ops"))
            await settled(200)
            assert list(said) == ["ann files"] and "Unknown tool" in json.dumps(said)
            assert house.root.calls == 2
            tasks.cancel_scope.cancel()
