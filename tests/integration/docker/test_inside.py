"""A gateway that runs in a container on a real engine: it joins networks to reach its servers, and leaves them."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio.to_thread
import pytest

from providers import ownership
from providers.container import Container
from providers.docker import McpContainerManager
from providers.engine import find_engine
from tests.helpers.containers import EVERYTHING, left_in, over_http, over_stdio, record, until
from tests.helpers.gateway import ROOT, servers_toml

pytestmark = pytest.mark.timeout(180)
PYTHON_OF_THE_IMAGE = (3, 11)


@pytest.fixture
def network(engine: Any) -> Iterator[Any]:
    """A network that an operator has made."""
    made = engine.networks.create(f"apollos-test-{uuid4().hex[:8]}", driver="bridge", check_duplicate=True)
    yield made
    made.remove()


@pytest.mark.skipif(sys.version_info[:2] != PYTHON_OF_THE_IMAGE, reason="its packages are for the image's Python")
@pytest.mark.skipif(find_engine().socket_path is None, reason="it is given the engine's socket")
async def test_a_gateway_in_a_container_reaches_its_servers(
    state: str, engine: Any, network: Any, tmp_path: Path
) -> None:
    servers = {
        "own": over_http(),
        "older": over_http(transport_type="sse"),
        "named": over_http(docker_network=network.name),
        "piped": over_stdio(docker_network="internet"),
    }
    path = tmp_path / "servers.toml"
    path.write_text(servers_toml(servers, state_dir=state))

    def check() -> tuple[int, str]:
        socket = find_engine().socket_path or ""
        gateway = engine.containers.run(
            EVERYTHING,
            ["/gateway/server.py", "check"],
            entrypoint="python3",
            user=f"{os.getuid()}:{Path(socket).stat().st_gid}",
            environment={"APOLLOS_SERVERS": str(path), "PYTHONPATH": "/gateway:/packages"},
            volumes=[
                f"{socket}:/var/run/docker.sock",
                f"{ROOT}:/gateway:ro",
                f"{sysconfig.get_path('purelib')}:/packages:ro",
                f"{tmp_path}:{tmp_path}",
            ],
            detach=True,
        )
        try:
            return gateway.wait(timeout=120)["StatusCode"], gateway.logs().decode()
        finally:
            gateway.remove(force=True, v=True)

    code, told = await anyio.to_thread.run_sync(check)
    assert code == 0, told
    assert not left_in(Path(state), engine)


@pytest.fixture
async def gateway(engine: Any, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """A container that stands for the gateway's own."""
    mode = getattr(request, "param", "bridge")
    made = engine.containers.run(EVERYTHING, ["deaf"], network_mode=mode, detach=True)
    yield made
    made.remove(force=True, v=True)


@pytest.fixture
async def manager(state: str, tmp_path: Path, gateway: Any) -> AsyncIterator[McpContainerManager]:
    """The manager of a gateway that runs in `gateway`."""
    instance = ownership.claim(Path(state), tmp_path / "servers.toml")
    manager = McpContainerManager(instance)
    await manager.api_version("")
    manager._engine.own_id = gateway.id
    yield manager
    await manager.reconcile(adopt=lambda _: False, everything=True)
    manager.close()
    instance.release()


async def reached(manager: McpContainerManager, gateway: Any, container: Container, **keys: Any) -> None:
    """The port of a server opens for who asks from the gateway's container."""
    address = await manager.address(record(container.server, over_http(**keys)), container)
    ask = f"import socket; socket.create_connection(('{address.host}', {address.port}), 2)"
    await until(lambda: gateway.exec_run(["python3", "-c", ask]).exit_code == 0)


def networks_of(container: Any) -> set[str]:
    container.reload()
    return set(container.attrs["NetworkSettings"]["Networks"])


async def test_each_container_has_a_network_with_the_gateway_that_goes_with_it(
    manager: McpContainerManager, gateway: Any, engine: Any
) -> None:
    web = record("web", over_http())
    one, other = [await manager.start_server(web, scope) for scope in ("alice", "bob")]
    for container in (one, other):
        await reached(manager, gateway, container)
    theirs = [networks_of(engine.containers.get(container.id)) for container in (one, other)]
    assert [len(names) for names in theirs] == [1, 1] and theirs[0] != theirs[1]
    assert networks_of(gateway) == {"bridge", *theirs[0], *theirs[1]}
    for name in (*theirs[0], *theirs[1]):  # else the gateway's own way out could lead through it
        assert engine.networks.get(name).attrs["Internal"]
    await manager.stop_server(one, grace=0)
    assert networks_of(gateway) == {"bridge", *theirs[1]}
    assert not engine.networks.list(names=list(theirs[0]))
    await manager.stop_server(other, grace=0)
    assert networks_of(gateway) == {"bridge"}


async def test_a_named_network_is_joined_and_left_at_the_end(
    manager: McpContainerManager, gateway: Any, network: Any
) -> None:
    container = await manager.start_server(record("web", over_http(docker_network=network.name)))
    for _ in range(2):
        await reached(manager, gateway, container, docker_network=network.name)
    assert networks_of(gateway) == {"bridge", network.name}
    await manager.reconcile(adopt=lambda _: False, everything=True)
    assert networks_of(gateway) == {"bridge"}


async def test_a_network_that_the_operator_has_joined_is_not_left(
    manager: McpContainerManager, gateway: Any, network: Any
) -> None:
    network.connect(gateway)
    container = await manager.start_server(record("web", over_http(docker_network=network.name)))
    await reached(manager, gateway, container, docker_network=network.name)
    await manager.reconcile(adopt=lambda _: False, everything=True)
    assert networks_of(gateway) == {"bridge", network.name}
    network.disconnect(gateway)


async def test_a_way_out_of_a_server_is_not_the_gateways(
    manager: McpContainerManager, gateway: Any, engine: Any
) -> None:
    """What the gateway has open would break if its way out became another one."""
    container = await manager.start_server(record("web", over_http(docker_network="internet")))
    await reached(manager, gateway, container, docker_network="internet")
    theirs = networks_of(engine.containers.get(container.id))
    [with_gateway] = theirs & networks_of(gateway)
    [way_out] = theirs - {with_gateway}
    facts = {name: engine.networks.get(name).attrs for name in theirs}
    assert [facts[with_gateway]["Internal"], facts[way_out]["Internal"]] == [True, False]
    assert facts[way_out]["Options"]["com.docker.network.bridge.enable_icc"] == "false"


@pytest.mark.parametrize("gateway", ["host"], indirect=True)
async def test_who_has_the_network_of_the_host_need_not_join(manager: McpContainerManager, gateway: Any) -> None:
    container = await manager.start_server(record("web", over_http()))
    await reached(manager, gateway, container)
    assert networks_of(gateway) == {"host"}
