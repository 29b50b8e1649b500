"""A gateway on a real store: what is changed there elsewhere takes effect within a second, in running sessions too."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from fastmcp.exceptions import ToolError

from composition.stores import store_at
from providers.lines import MCPError
from providers.resource import McpServerResource
from providers.store import McpResourceStoreBase
from tests.helpers.gateway import ROOT, ServedGateway, gateway_over_http, gateway_process, local, patient_toml
from tests.helpers.people import Window, tokens, window
from tests.helpers.processes import eventually
from tests.helpers.redis_server import redis_server

pytestmark = pytest.mark.core

A_SECOND = 3.0
"""With time for a busy machine."""
REFUSALS = (ToolError, MCPError)


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite://{tmp_path / 'servers.db'}"
    else:
        with redis_server() as server:
            yield server.url


@pytest.fixture
async def elsewhere(url: str) -> AsyncIterator[McpResourceStoreBase]:
    """The store as another gateway uses it."""
    async with store_at(url) as store:
        yield store


@pytest.fixture
async def served(url: str) -> AsyncIterator[ServedGateway]:
    toml = patient_toml({"own": local("everything.py")}, store=url)
    async with gateway_over_http(toml, auth=tokens()) as served:
        yield served


def record(name: str, *roles: str, **more: object) -> McpServerResource:
    patient = {"first_start": 60.0, "list": 60.0}  # on a busy machine a process takes its time to start
    table = {**local("everything.py"), "required_roles": roles, "created_by": "ada", "timeouts": patient, **more}
    return McpServerResource.model_validate({"name": name, **table})


async def names(person: Window) -> set[str]:
    return {each.name.partition("_")[0] for each in await person.connection.list_tools()}


async def test_a_server_that_is_added_changed_or_removed_elsewhere(
    served: ServedGateway, elsewhere: McpResourceStoreBase
) -> None:
    async with window(served.url, "bob", "bob") as bob:
        assert await names(bob) == set()
        await elsewhere.upsert(record("every", "guest"))
        await eventually(lambda: ("changed", "tools") in bob.heard, within=A_SECOND)
        assert await names(bob) == {"every"} and await bob.call("every_echo", text="hi") == "hi"
        bob.heard.clear()
        await elsewhere.upsert(record("every", "guest", tools={"exclude": ["echo"]}))
        await eventually(lambda: ("changed", "tools") in bob.heard, within=A_SECOND)
        with pytest.raises(REFUSALS, match="Unknown tool"):
            await bob.call("every_echo", text="hi")
        bob.heard.clear()
        await elsewhere.delete("every")
        await eventually(lambda: ("changed", "tools") in bob.heard, within=A_SECOND)
        assert await names(bob) == set()


@pytest.mark.parametrize("how", ["deleted", "revoked"])
async def test_access_that_is_taken_away_elsewhere_ends_running_calls(
    served: ServedGateway, elsewhere: McpResourceStoreBase, how: str
) -> None:
    await elsewhere.upsert(record("every", "guest"))
    async with window(served.url, "bob", "bob") as bob:
        await eventually(lambda: "every" in served.gateway.registry.mounts, within=A_SECOND)
        await bob.call("every_pid")
        said: list[str] = []

        async def calling() -> None:
            with pytest.raises(REFUSALS) as refusal:
                await bob.call("every_slow", seconds=60)
            said.append(str(refusal.value))

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(calling)
                await eventually(lambda: served.gateway.root.calls == 1)
                await (elsewhere.delete("every") if how == "deleted" else elsewhere.upsert(record("every", "boss")))
                await eventually(lambda: bool(said), within=A_SECOND)
        with pytest.raises(REFUSALS) as absent:
            await bob.call("absent_slow", seconds=60)
        assert said == [str(absent.value).replace("absent", "every")]


async def test_servers_of_the_file_are_followed_and_never_stored(
    served: ServedGateway, elsewhere: McpResourceStoreBase
) -> None:
    async with window(served.url) as ada:
        assert await names(ada) == {"own"}
        text = served.path.read_text()
        served.path.write_text(text.replace("[servers.own]", "[servers.edited]"))
        await eventually(lambda: "edited" in served.gateway.registry.mounts)
        assert await names(ada) == {"edited"} and dict(await elsewhere.list_all()) == {}


async def test_what_is_stored_is_there_after_a_restart(url: str, elsewhere: McpResourceStoreBase) -> None:
    await elsewhere.upsert(record("every", "guest"))
    for _ in range(2):
        async with (
            gateway_over_http(patient_toml({}, store=url), auth=tokens()) as served,
            window(served.url, "bob", "bob") as bob,
        ):
            assert await bob.call("every_echo", text="hi") == "hi"


# ----------------------------------------------------------------------------------- the default of `serve`


async def test_serve_keeps_its_servers_in_a_file_of_this_user_alone(tmp_path: Path) -> None:
    async with gateway_process("", env={"APOLLOS_STATE_DIR": str(tmp_path / "state")}) as served:
        [file] = await anyio.to_thread.run_sync(lambda: list((tmp_path / "state").rglob("servers.db")))
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        async with store_at(f"sqlite://{file}") as elsewhere, window(served.url) as ada:
            await elsewhere.upsert(record("every"))
            await eventually(lambda: ("changed", "tools") in ada.heard, within=A_SECOND)


def inspected(path: Path) -> str:
    """What a gateway offers that nobody runs, as `fastmcp inspect` sees it."""
    code = "import server, json; print(json.dumps(sorted(server.mcp.providers[-1].mounts)))"
    env = {"APOLLOS_SERVERS": str(path), "PATH": "/usr/bin:/bin", "HOME": str(path.parent)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_a_gateway_that_does_not_run_shows_what_is_stored_in_its_file(tmp_path: Path) -> None:
    path, file = tmp_path / "servers.toml", tmp_path / "servers.db"
    toml = patient_toml({"own": local("everything.py")}, store=f"sqlite://{file}")
    await anyio.to_thread.run_sync(path.write_text, toml)
    async with store_at(f"sqlite://{file}") as elsewhere:
        await elsewhere.upsert(record("every"))
    assert json.loads(await anyio.to_thread.run_sync(inspected, path)) == ["every", "own"]
