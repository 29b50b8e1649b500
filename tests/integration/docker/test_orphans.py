"""Gateways are killed: the next one with the same servers.toml leaves no orphans, and nothing of anybody else's is
touched."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from tests.helpers.containers import EVERYTHING, data, nobodys_name, one_of_ours, ours, over_http, over_stdio, until
from tests.helpers.gateway import LEGACY, client, gateway_process, servers_toml
from tests.helpers.processes import eventually, is_running

pytestmark = [pytest.mark.timeout(240), pytest.mark.usefixtures("engine")]


async def test_a_gateway_that_was_killed_leaves_no_orphans(state: str, engine: Any, tmp_path: Path) -> None:
    """The next one with the same servers.toml removes what it finds, takes over what is to be kept, and touches
    nothing of anybody else's."""
    name = nobodys_name("apollos-mcp-other")
    stranger = await anyio.to_thread.run_sync(
        lambda: engine.containers.run(EVERYTHING, ["deaf"], name=name, network_mode="none", detach=True)
    )
    kept = over_http(isolation="shared", keep=True)
    toml = servers_toml({"one": over_stdio(), "web": over_http(isolation="shared"), "kept": kept}, state_dir=state)
    try:
        with served_file(tmp_path, toml) as env:
            async with gateway_process(toml, env=env) as first, client(first.url, LEGACY) as caller:
                for server in ("one", "web", "kept"):
                    assert await data(caller, f"{server}_total") == 1
                orphans = {each.id for each in ours(engine, "one")}
                kept_one = one_of_ours(engine, "kept").id
                assert orphans and ours(engine, "web")
                os.kill(first.pid, signal.SIGKILL)
                await eventually(lambda: not is_running(first.pid))
            async with gateway_process(toml, env=env) as second, client(second.url, LEGACY) as caller:
                assert await data(caller, "kept_total") == 2
                await until(lambda: not orphans & {each.id for each in ours(engine)})
                assert len(ours(engine, "web")) == 1  # the one that was there serves on, or another
                assert kept_one in [each.id for each in ours(engine)]
            assert [each.id for each in ours(engine)] == [kept_one]  # it outlives a good end, too
            gone = servers_toml({}, state_dir=state)
            (tmp_path / "servers.toml").write_text(gone)
            async with gateway_process(gone, env=env):
                await until(lambda: ours(engine) == [])
        stranger.reload()
        assert stranger.status == "running"
    finally:
        stranger.remove(force=True, v=True)


@contextmanager
def served_file(folder: Path, toml: str) -> Iterator[dict[str, str]]:
    """A servers.toml that more than one gateway is started with."""
    path = folder / "servers.toml"
    path.write_text(toml)
    yield {"APOLLOS_SERVERS": str(path)}
