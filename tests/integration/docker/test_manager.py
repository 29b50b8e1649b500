"""The container manager on a real engine: making, reusing, looking at and removing; and what it never touches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio.from_thread
import pytest

from providers import ownership
from providers.container import ContainerState
from providers.docker import McpContainerManager
from providers.docker_engine import EngineUnavailable, ImageMissing
from providers.errors import BackendUnavailable
from providers.hardening import image_facts
from providers.ownership import INSTANCE, PROOF
from tests.helpers.containers import EVERYTHING, nobodys_name, over_http, over_stdio, record, until

pytestmark = pytest.mark.timeout(120)


async def test_a_server_is_started_looked_at_and_stopped(manager: McpContainerManager, engine: Any) -> None:
    web = record(nobodys_name("web"), over_http(docker_memory="256m"))
    container = await manager.start_server(web)
    assert container.name == f"apollos-mcp-{web.name}"

    status = await manager.get_status(container)
    assert (status.state, status.is_running, status.exit_code) == (ContainerState.RUNNING, True, 0)
    assert status.started_at is not None
    assert status.image_id == engine.images.get(EVERYTHING).id
    assert (await manager.memory(container) or 0) > 1_000_000
    assert [each.container for each in await manager.list_servers()] == [container]

    address = await manager.address(web, container)
    assert address.host == "127.0.0.1"
    labels = engine.containers.get(container.id).labels
    assert labels["apollos.mcp.server"] == web.name
    assert labels["apollos.mcp.transport"] == "streamable_http"
    assert labels["apollos.mcp.created_by"] == "apollos-mcp-gateway"

    await manager.stop_server(container)
    assert (await manager.get_status(container)).state is ContainerState.MISSING
    assert await manager.list_servers() == []
    assert manager.instance.containers() == {}


async def test_what_a_server_wrote_can_be_read(manager: McpContainerManager) -> None:
    web = record("web", over_http(EVERYTHING, "crash", "no", "such", "table"))
    container = await manager.start_server(web)
    await until(lambda: bool(anyio.from_thread.run(manager.get_logs, container)))
    [line] = await manager.get_logs(container)
    assert line.endswith(" no such table")
    await until(lambda: not anyio.from_thread.run(manager.get_status, container).is_running)
    status = await manager.get_status(container)
    assert (status.state, status.exit_code) == (ContainerState.EXITED, 3)
    assert status.obituary() == "ended with exit code 3"


async def test_the_configuration_is_the_documented_one(manager: McpContainerManager, engine: Any) -> None:
    """Read back from the engine, field by field; docs/docker.md shows the same."""
    container = await manager.create_server(record("files", over_stdio()), "shared")
    facts = engine.api.inspect_container(container.id)
    host = facts["HostConfig"]
    assert {key: host[key] for key in HARDENED} == HARDENED
    assert facts["Config"]["User"] == "65534:65534"
    assert (facts["Config"]["OpenStdin"], facts["Config"]["StdinOnce"], facts["Config"]["Tty"]) == (True, True, False)
    assert facts["Mounts"] == []
    assert facts["AppArmorProfile"] in ("", "docker-default")
    assert not host["Binds"] and not host["VolumesFrom"] and not host["GroupAdd"] and not host["DeviceCgroupRules"]


HARDENED = {
    "Privileged": False,
    "CapDrop": ["ALL"],
    "CapAdd": [],
    "SecurityOpt": ["no-new-privileges:true"],
    "ReadonlyRootfs": True,
    "Tmpfs": {
        "/tmp": "rw,noexec,nosuid,nodev,size=64m,mode=1777",
        "/data": "rw,noexec,nosuid,nodev,size=64m,mode=1777",
    },
    "Devices": [],
    "PidsLimit": 128,
    "Memory": 512 * 2**20,
    "MemorySwap": 512 * 2**20,
    "NanoCpus": 1_000_000_000,
    "Ulimits": [{"Name": "nofile", "Soft": 1024, "Hard": 1024}],
    "NetworkMode": "none",
    "PortBindings": {},
    "PublishAllPorts": False,
    "IpcMode": "private",
    "PidMode": "",
    "UTSMode": "",
    "UsernsMode": "",
    "Init": True,
    "AutoRemove": False,
    "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
    "LogConfig": {"Type": "none", "Config": {}},
}


async def test_each_relaxation_reaches_the_container(manager: McpContainerManager, engine: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    relaxed = over_http(
        docker_memory="1g",
        docker_cpus=0.5,
        docker_pids=64,
        docker_user="1000:1000",
        docker_read_only=False,
        docker_capabilities=["CHOWN"],
        docker_volumes=[f"{tmp_path}/data:/data:rw"],
        docker_network="internet",
        isolation="shared",
        keep=True,
        docker_command=["python3", "/opt/everything_container.py"],
    )
    container = await manager.create_server(record("web", relaxed), "shared")
    facts = engine.api.inspect_container(container.id)
    host = facts["HostConfig"]
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (2**30, 500_000_000, 64)
    assert (facts["Config"]["User"], host["ReadonlyRootfs"], host["CapAdd"]) == ("1000:1000", False, ["CHOWN"])
    assert facts["Config"]["Entrypoint"] == ["python3", "/opt/everything_container.py"]
    [mount] = host["Mounts"]
    assert (mount["Source"], mount["Target"], mount.get("ReadOnly", False)) == (f"{tmp_path}/data", "/data", False)
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}
    assert host["PortBindings"] == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}
    network = engine.networks.get(host["NetworkMode"]).attrs
    assert network["Options"]["com.docker.network.bridge.enable_ip_masquerade"] == "true"
    assert network["Options"]["com.docker.network.bridge.enable_icc"] == "false"


async def test_a_mount_that_leads_elsewhere_by_now_is_refused(manager: McpContainerManager, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(BackendUnavailable, match="no container may see that"):
        await manager.create_server(record("files", over_stdio(docker_volumes=[f"{tmp_path}/link:/data"])), "shared")
    with pytest.raises(BackendUnavailable, match="is not there"):
        await manager.create_server(record("files", over_stdio(docker_volumes=[f"{tmp_path}/gone:/data"])), "shared")


async def test_a_volume_that_stands_for_a_folder_of_the_host_is_refused(
    manager: McpContainerManager, engine: Any
) -> None:
    options = {"type": "none", "o": "bind", "device": "/etc"}
    volume = engine.volumes.create("apollos-test-sneaky", driver="local", driver_opts=options)
    try:
        table = over_stdio(docker_volumes=["apollos-test-sneaky:/data"])
        with pytest.raises(BackendUnavailable, match="driver options"):
            await manager.create_server(record("files", table), "shared")
    finally:
        volume.remove()


async def test_a_missing_image_names_the_command_that_brings_it(manager: McpContainerManager) -> None:
    with pytest.raises(ImageMissing, match=r"Run: docker pull apollos-test/nowhere:1\.0"):
        await manager.create_server(record("gone", over_stdio("apollos-test/nowhere:1.0")), "shared")
    assert manager.instance.containers() == {}


async def test_an_image_that_cannot_be_pulled_says_so(manager: McpContainerManager) -> None:
    """The registry is a port of this machine where nobody listens."""
    gone = record("gone", over_stdio("127.0.0.1:9/apollos/nowhere:1.0"))
    with pytest.raises(ImageMissing, match=r"could not be pulled: .*refused.* Run: docker pull 127.0.0.1:9"):
        await manager.pull_image(gone)


async def test_a_stranger_with_our_name_is_left_alone(manager: McpContainerManager, engine: Any) -> None:
    server = nobodys_name("web")
    name = f"apollos-mcp-{server}"
    stranger = engine.containers.create(EVERYTHING, ["deaf"], name=name, network_mode="none")
    try:
        container = await manager.start_server(record(server, over_http()))
        assert container.name.startswith(f"{name}_")
        assert [each.container for each in await manager.list_servers()] == [container]
        await manager.reconcile(adopt=lambda _: False, everything=True)
        stranger.reload()
        assert stranger.status == "created"
    finally:
        stranger.remove(force=True, v=True)


async def test_copied_labels_make_no_container_ours(manager: McpContainerManager, engine: Any) -> None:
    container = await manager.start_server(record("web", over_http()))
    labels = engine.containers.get(container.id).labels
    assert labels[INSTANCE] == manager.instance.id and labels[PROOF]
    spoofed = engine.containers.run(
        EVERYTHING, ["deaf"], name=nobodys_name("apollos-mcp-web"), labels=labels, network_mode="none", detach=True
    )
    try:
        await manager.reconcile(adopt=lambda _: True, everything=True)
        assert [each.container for each in await manager.list_servers()] == [container]
        spoofed.reload()
        assert spoofed.status == "running"
    finally:
        spoofed.remove(force=True, v=True)


async def test_two_gateways_on_one_engine_leave_each_other_alone(
    manager: McpContainerManager, engine: Any, tmp_path: Path
) -> None:
    other = McpContainerManager(ownership.claim(tmp_path / "state", tmp_path / "servers.toml"))
    try:
        mine = await manager.start_server(record("web", over_http()))
        theirs = await other.start_server(record("web", over_http()))
        assert mine.id != theirs.id
        await other.reconcile(adopt=lambda _: False, everything=True)
        assert (await manager.get_status(mine)).is_running
        assert (await manager.get_status(theirs)).state is ContainerState.MISSING
    finally:
        await other.reconcile(adopt=lambda _: False, everything=True)
        other.close()
        other.instance.release()


async def test_labels_of_an_image_change_nothing(manager: McpContainerManager, engine: Any) -> None:
    assert engine.images.get(EVERYTHING).labels["apollos.mcp.server"] == "somebody-else"
    assert image_facts(engine.api.inspect_image(EVERYTHING)).user == ""
    container = await manager.create_server(record("files", over_stdio()), "shared")
    assert engine.containers.get(container.id).labels["apollos.mcp.server"] == "files"


async def test_an_engine_that_is_not_there_is_named(tmp_path: Path) -> None:
    instance = ownership.claim(tmp_path / "state", tmp_path / "servers.toml")
    manager = McpContainerManager(instance, host=f"unix://{tmp_path}/no.sock")
    with pytest.raises(EngineUnavailable, match=r"no Docker engine answers at unix://.*/no\.sock \(docker_host\)"):
        await manager.list_servers()
    instance.release()
