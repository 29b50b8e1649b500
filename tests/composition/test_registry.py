"""The registry: names are routed exactly, at the same cost however many servers there are; mounts follow the store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import anyio
import pytest
from fastmcp import Client
from fastmcp.exceptions import ToolError

from composition.mount import Mount
from providers import lines
from providers.lines import MCPError
from tests.helpers.fakes import Call, FakeBackend, Json, held, never, no_waiting, settled, text, time_passes, tool
from tests.helpers.house import House, house_of

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


async def names(client: Client[Any]) -> list[str]:
    return [each.name for each in await client.list_tools()]


class Ear:
    """A message handler that notes which lists a client is told to ask for again."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def __call__(self, message: Any) -> None:
        method = getattr(getattr(message, "root", message), "method", "")
        if method.endswith("/list_changed"):
            self.told.append(method.split("/")[1])

    async def after(self, seconds: float = 1) -> list[str]:
        """What was told since the last time."""
        await time_passes(seconds)
        told, self.told = self.told, []
        return sorted(told)


ALL = ["prompts", "resources", "tools"]


# ----------------------------------------------------------------------------------------- routing


async def test_each_call_reaches_its_own_server_and_no_other() -> None:
    def backend(name: str) -> FakeBackend:
        async def answer(call: Call) -> Json:
            return text(f"{name}: {call.params['name']}")

        return FakeBackend(name, tools=[tool("a"), tool("b_c"), tool("x_a")], answers={"tools/call": answer})

    backends = [backend(name) for name in ("x", "x-y", "b", "0")]
    async with house_of(*backends) as house, house.client() as client:
        listed = await names(client)
        assert listed == [f"{each}_{inner}" for each in ("0", "b", "x", "x-y") for inner in ("a", "b_c", "x_a")]
        for name in listed:
            server, _, inner = name.partition("_")
            said = (await client.call_tool(name)).content[0].text  # type: ignore[union-attr]
            assert said == f"{server}: {inner}"


@pytest.mark.parametrize("name", ["files", "_echo", "files_", "files__echo", "Files_echo", "echo", "file_echo", "_"])
async def test_a_name_that_is_nearly_right_is_unknown(name: str) -> None:
    async with house_of(FakeBackend("files")) as house, house.client() as client:
        await names(client)
        with pytest.raises((ToolError, MCPError), match="Unknown tool"):
            await client.call_tool(name)


class Watched(dict[str, Mount]):
    """A dictionary that counts how often its items are gone through."""

    walks = 0

    def __iter__(self) -> Iterator[str]:
        Watched.walks += 1
        return super().__iter__()

    def items(self) -> Any:
        Watched.walks += 1
        return super().items()

    def values(self) -> Any:
        Watched.walks += 1
        return super().values()


async def test_routing_goes_through_no_list_of_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: with five thousand servers a call walks over none of them."""
    backend = FakeBackend("s-77", capabilities={"tools": {}, "prompts": {}, "resources": {}})
    async with house_of(backend) as house, house.client() as client:
        mount = house.registry.mounts["s-77"]
        crowd = Watched({f"s-{number}": mount for number in range(5000)})
        monkeypatch.setattr(house.registry, "_mounts", crowd)
        Watched.walks = 0
        for method, params in (
            ("tools/call", {"name": "s-77_echo", "arguments": {"text": "hi"}}),
            ("tools/call", {"name": "s-9999_echo", "arguments": {}}),
            ("resources/read", {"uri": "x://s-77/a"}),
            ("resources/read", {"uri": "x://s-9999/a"}),
            ("prompts/get", {"name": "s-77_p"}),
        ):
            with suppress(MCPError):
                await lines.send_raw(client.session, method, params)
        assert house.registry.input_schema("s-77_echo") == {"type": "object"}
        walks = Watched.walks
    assert walks == 0 and backend.count("tools/call") == 1 and backend.count("resources/read") == 1


# ---------------------------------------------------------------------------------------- listing


async def test_one_server_that_hangs_costs_a_listing_its_own_patience_and_the_others_nothing() -> None:
    hung, quick = FakeBackend("hung", answers={"tools/list": never}), FakeBackend("quick")
    async with house_of(hung, quick) as house, house.client() as client:
        for _ in range(3):
            began = anyio.current_time()
            assert await names(client) == ["quick_echo"]
            assert anyio.current_time() - began <= 2.01
            began = anyio.current_time()
            await client.call_tool("quick_echo")
            assert anyio.current_time() == began


async def test_servers_are_asked_all_at_once() -> None:
    async def slowly(call: Call) -> Json:
        await time_passes(1.5)
        return {"tools": [tool("a")]}

    backends = [FakeBackend(f"s{number}", answers={"tools/list": slowly}) for number in range(10)]
    async with house_of(*backends) as house, house.client() as client:
        began = anyio.current_time()
        assert len(await names(client)) == 10
        assert anyio.current_time() - began == pytest.approx(1.5)


async def test_a_call_resolves_against_what_is_known_and_asks_for_no_list() -> None:
    backend = FakeBackend("files")
    async with house_of(backend) as house, house.client() as client:
        await names(client)
        backend.answers["tools/list"] = never
        for _ in range(5):
            await client.call_tool("files_echo")
        assert backend.count("tools/list") == 1


async def test_a_call_to_a_server_that_is_down_says_so_and_not_that_the_tool_is_unknown() -> None:
    async def dead() -> None:
        raise OSError("no such program")

    async with house_of(FakeBackend("files", before_open=dead)) as house, house.client() as client:
        for use in (client.call_tool("files_echo"), client.get_prompt("files_p"), client.read_resource("x://files/a")):
            with pytest.raises((ToolError, MCPError), match="server 'files'"):
                await use


async def test_a_server_that_comes_up_later_is_announced_and_listed() -> None:
    gate, ear = anyio.Event(), Ear()
    slow = FakeBackend("slow", before_open=held(gate))
    async with house_of(slow) as house, house.client(message_handler=ear) as client:
        assert await names(client) == [] and await ear.after() == []
        gate.set()
        assert await ear.after(5) == ALL and await names(client) == ["slow_echo"]


# ------------------------------------------------------------------------------- following the store


async def test_a_server_that_is_added_is_mounted_announced_and_usable() -> None:
    ear, late = Ear(), FakeBackend("late")
    async with house_of(FakeBackend("files")) as house, house.client(message_handler=ear) as client:
        await names(client)
        house.backends["late"] = late
        await house.store.upsert(late.resource())
        assert await ear.after() == ALL
        assert await names(client) == ["files_echo", "late_echo"]
        await client.call_tool("late_echo")


async def test_a_server_that_is_removed_is_unmounted_announced_and_closed() -> None:
    ear, files, late = Ear(), FakeBackend("files"), FakeBackend("late")
    async with house_of(files, late) as house, house.client(message_handler=ear) as client:
        await names(client)
        await house.store.delete("late")
        assert await ear.after() == ALL and await names(client) == ["files_echo"]
        assert late.open == 0 and files.open == 1
        with pytest.raises((ToolError, MCPError), match="Unknown tool"):
            await client.call_tool("late_echo")


async def test_switching_off_and_on_is_removing_and_adding() -> None:
    files = FakeBackend("files")
    async with house_of(files) as house, house.client() as client:
        assert await names(client) == ["files_echo"]
        await house.store.upsert(files.resource(is_enabled=False))
        await time_passes(1)
        assert await names(client) == [] and files.open == 0
        await house.store.upsert(files.resource())
        await time_passes(1)
        assert await names(client) == ["files_echo"]


async def test_what_did_not_change_keeps_its_mount_and_its_connections() -> None:
    ear, files, other = Ear(), FakeBackend("files"), FakeBackend("other")
    async with house_of(files, other) as house, house.client(message_handler=ear) as client:
        await names(client)
        kept = house.registry.mounts["files"]
        await house.store.upsert(other.resource(args=("--new",)))
        await time_passes(3)
        assert house.registry.mounts["files"] is kept and len(files.wires) == 1
        assert house.wires_made == ["files", "other", "other"]
        assert len(other.wires) == 2 and other.open == 1


@pytest.mark.parametrize("again", [{}, {"created_by": "somebody"}])
async def test_a_record_that_says_the_same_is_no_change(again: Json) -> None:
    ear, files = Ear(), FakeBackend("files")
    async with house_of(files) as house, house.client(message_handler=ear) as client:
        await names(client)
        mount, target = house.registry.mounts["files"], house.registry.mounts["files"].target
        await house.store.upsert(files.resource().model_copy(update=again))
        assert await ear.after() == []
        assert house.registry.mounts["files"] is mount and mount.target.generation == target.generation
        assert len(files.wires) == 1 and house.wires_made == ["files"]


@pytest.mark.parametrize(
    ("change", "listed"),
    [
        ({"tools": {"exclude": ["echo"]}}, []),
        ({"tools": {"rename": {"echo": "say"}}}, ["files_say"]),
        ({"description": "Files."}, ["files_echo"]),
    ],
)
async def test_a_change_of_how_it_is_shown_keeps_its_sessions(change: Json, listed: list[str]) -> None:
    ear, files = Ear(), FakeBackend("files")
    async with house_of(files) as house, house.client(message_handler=ear) as client:
        await names(client)
        await house.store.upsert(files.resource(**change))
        assert "tools" in await ear.after() and await names(client) == listed
        assert len(files.wires) == 1 and files.count("tools/list") == 1


async def test_a_change_of_how_it_is_reached_lets_calls_end_on_the_old_session() -> None:
    gate, ear, said = anyio.Event(), Ear(), []

    async def answer(call: Call) -> Json:
        if call.wire is files.wires[0]:
            await gate.wait()
        return text("old" if call.wire is files.wires[0] else "new")

    files = FakeBackend("files", answers={"tools/call": answer})

    async def calling() -> None:
        said.append((await client.call_tool("files_echo")).content[0].text)

    async with house_of(files) as house, house.client(message_handler=ear) as client:
        await names(client)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(calling)
            await files.heard("tools/call")
            await house.store.upsert(files.resource(args=("--new",)))
            await ear.after()
            await calling()
            assert said == ["new"] and files.open == 2
            gate.set()
        await settled()
        assert said == ["new", "old"] and files.open == 1


async def test_many_changes_at_once_are_one_announcement() -> None:
    ear, backends = Ear(), [FakeBackend(f"s{number}") for number in range(20)]
    async with house_of(FakeBackend("files")) as house, house.client(message_handler=ear) as client:
        await names(client)
        house.backends |= {backend.name: backend for backend in backends}
        for backend in backends:
            await house.store.upsert(backend.resource())
        assert await ear.after() == ALL


async def test_a_change_that_a_backend_announces_is_announced_as_that_kind_alone() -> None:
    ear, files = Ear(), FakeBackend("files")
    async with house_of(files) as house, house.client(message_handler=ear) as client:
        await names(client)
        await time_passes(10)
        files.tools = [tool("echo"), tool("new")]
        await files.wire.say("notifications/tools/list_changed")
        assert await ear.after(3) == ["tools"] and await names(client) == ["files_echo", "files_new"]


def test_mounts_are_there_before_any_event_loop_runs() -> None:
    house = House(FakeBackend("files"), FakeBackend("time"))
    assert sorted(house.registry.mounts) == ["files", "time"] and repr(house.registry) == "<Registry 2 mounts>"


async def test_the_first_call_of_a_tool_waits_for_no_other_server() -> None:
    """Both SDKs would list all tools of all servers first."""
    hung, quick = FakeBackend("hung", before_open=never), FakeBackend("quick")
    async with house_of(hung, quick) as house, house.client() as client:
        began = anyio.current_time()
        await lines.send_raw(client.session, "tools/call", {"name": "quick_echo", "arguments": {"text": "hi"}})
        assert anyio.current_time() == began and hung.attempts == 0
