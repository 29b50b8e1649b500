"""Containers of real servers that must not be mixed up: with who has their port next, with other gateways', with others
that idle, and with what is written down of them."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from composition.gateway import Gateway
from composition.servers_file import load_configuration
from providers.container_launcher import ServerState
from tests.helpers.containers import EVERYTHING, data, ours, over_http, over_stdio, until
from tests.helpers.gateway import LEGACY, client, gateway_over_http, local, servers_toml
from tests.helpers.ports import stranger_at

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("engine")]


@pytest.mark.parametrize("transport", ["streamable_http", "sse"])
async def test_who_gets_the_port_of_a_container_gets_none_of_its_calls(state: str, engine: Any, transport: str) -> None:
    toml = servers_toml({"web": over_http(isolation="shared", transport_type=transport)}, state_dir=state)
    async with gateway_over_http(toml) as served, client(served.url, LEGACY) as caller:
        assert await data(caller, "web_total") == 1
        [container] = ours(engine, "web")
        container.reload()
        port = int(container.ports["8000/tcp"][0]["HostPort"])
        await anyio.to_thread.run_sync(container.kill)
        with stranger_at(port) as heard:
            assert await data(caller, "web_total") == 1  # a new container answers
            await until(lambda: len(ours(engine, "web")) == 1)
        assert not heard


async def test_the_last_words_of_a_container_hold_no_secret(state: str) -> None:
    broken = over_http(EVERYTHING, "crash", "bad", "canary-4711-secret", env={"TOKEN": "canary-4711-secret"})
    async with (
        gateway_over_http(servers_toml({"web": broken}, state_dir=state)) as served,
        client(served.url, LEGACY) as caller,
    ):
        answer = await caller.call_tool("web_echo", {"text": "x"}, raise_on_error=False)
        assert "bad [TOKEN]" in answer.content[0].text and "canary" not in answer.content[0].text


async def test_a_disk_that_takes_nothing_costs_other_servers_nothing(
    state: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The folder of the record is a file for a while."""
    folder, aside, full = Path(state), tmp_path / "aside", tmp_path / "full"
    full.write_text("")

    def swap() -> None:
        folder.rename(tmp_path / "moved")
        (aside if aside.exists() else full).rename(folder)
        (tmp_path / "moved").rename(aside)

    table = {"every": over_stdio(), "near": local("everything.py")}
    async with gateway_over_http(servers_toml(table, state_dir=state)) as served, client(served.url, LEGACY) as caller:
        assert await data(caller, "every_total") == 1
        await anyio.to_thread.run_sync(swap)
        await data(caller, "every_say", text="hello", times=3)
        await until(lambda: "cannot be written" in caplog.text)
        with pytest.raises(Exception, match="server 'every'"):
            async with client(served.url, LEGACY) as other:
                await data(other, "every_total")
        assert await data(caller, "near_total") == 1
        assert await data(caller, "every_total") == 2
        assert caplog.text.count("every.log' cannot be written") == 1
        await anyio.to_thread.run_sync(swap)
        async with client(served.url, LEGACY) as other:
            assert await data(other, "every_total") == 1


@pytest.mark.parametrize("table", [over_stdio, over_http], ids=["stdio", "http"])
async def test_room_for_one_is_made_by_stopping_one(state: str, engine: Any, table: Any) -> None:
    servers = {name: table(isolation="shared") for name in ("one", "two", "three", "new")}
    async with (
        gateway_over_http(servers_toml(servers, state_dir=state, max_containers=3)) as served,
        client(served.url, LEGACY) as caller,
    ):
        for name in ("one", "two", "three"):
            assert await data(caller, f"{name}_total") == 1
        assert await data(caller, "new_total") == 1
        await until(lambda: not ours(engine, "one"))
        assert {name for name in servers if ours(engine, name)} == {"two", "three", "new"}


async def test_what_a_gateway_leaves_to_be_kept_is_kept_by_the_others_and_taken_over_by_the_next(
    state: str, engine: Any, tmp_path: Path
) -> None:
    path = tmp_path / "servers.toml"
    toml = servers_toml({"kept": over_http(isolation="shared", keep=True), "one": over_stdio()}, state_dir=state)
    path.write_text(toml)
    configuration = await anyio.to_thread.run_sync(load_configuration, path)
    first, second, third = (Gateway(configuration) for _ in range(3))
    await first.start()
    await until(lambda: len(list(Path(state).glob("*/*/key"))) == 1)
    await second.start()
    await until(lambda: len(list(Path(state).glob("*/*/key"))) == 2)
    async with client(second.mcp, LEGACY) as caller:  # type: ignore[arg-type]
        assert await data(caller, "kept_total") == 1
    await second.stop()
    [container] = ours(engine)
    await first.containers.put_in_order()
    assert [each.id for each in ours(engine)] == [container.id]
    await first.stop()
    async with client(third.mcp, LEGACY) as caller:  # type: ignore[arg-type]
        assert await data(caller, "kept_total") == 2
        await third.containers.put_in_order()
        assert [each.id for each in ours(engine, "kept")] == [container.id]
    await third.stop()
    path.write_text(servers_toml({}, state_dir=state))
    last = Gateway(await anyio.to_thread.run_sync(load_configuration, path))
    await last.start()
    await until(lambda: not ours(engine))
    await last.stop()


async def test_an_eager_server_waits_for_no_other_servers_image(state: str, engine: Any) -> None:
    """The registry of the other one takes connections and says nothing."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        slow = over_stdio(f"127.0.0.1:{silent.getsockname()[1]}/slow:1") | {"pull": "missing", "timeouts": {"pull": 60}}
        eager = over_http(isolation="shared", start="eager")
        async with gateway_over_http(servers_toml({"slow": slow, "web": eager}, state_dir=state)) as served:
            await served.gateway.start()
            await until(lambda: [each.status for each in ours(engine, "web")] == ["running"])
            launchers = {each.resource.name: each for each in served.gateway.containers.launchers}
            assert launchers["slow"].state is ServerState.PULLING


async def test_an_eager_server_that_appears_later_is_started_too(state: str, engine: Any) -> None:
    async with gateway_over_http(servers_toml({"one": over_stdio()}, state_dir=state)) as served:
        await served.gateway.start()
        eager = over_http(isolation="shared", start="eager")
        served.path.write_text(servers_toml({"one": over_stdio(), "web": eager}, state_dir=state))
        await until(lambda: [each.status for each in ours(engine, "web")] == ["running"])
