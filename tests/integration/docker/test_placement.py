"""Where containers are put, on a real engine: networks, folders and volumes are those that were looked at, or none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest
from docker.errors import APIError

from providers.docker import McpContainerManager
from providers.errors import BackendUnavailable
from providers.ownership import INSTANCE
from tests.helpers.containers import EVERYTHING, over_http, over_stdio, record

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def network(engine: Any) -> Iterator[Any]:
    """A network that an operator has made."""
    made = engine.networks.create(f"apollos-test-{uuid4().hex[:8]}", driver="bridge", check_duplicate=True)
    yield made
    made.remove()


async def refusal(manager: McpContainerManager, table: dict[str, Any]) -> str:
    with pytest.raises(BackendUnavailable) as caught:
        await manager.create_server(record("files", table), "shared")
    assert manager.instance.containers() == {}
    return caught.value.problem


# ----------------------------------------------------------------------------------------------------------- networks


async def test_a_network_is_joined_by_its_name_alone(manager: McpContainerManager, engine: Any, network: Any) -> None:
    container = await manager.create_server(record("files", over_stdio(docker_network=network.name)), "shared")
    assert engine.api.inspect_container(container.id)["HostConfig"]["NetworkMode"] == network.name
    for given in (network.id, network.short_id):
        told = await refusal_of_another(manager, over_stdio(docker_network=given))
        assert told == (
            f"docker_network '{given}' is the id of the network '{network.name}'. "
            "Write the name of a network that you made."
        )


async def refusal_of_another(manager: McpContainerManager, table: dict[str, Any]) -> str:
    with pytest.raises(BackendUnavailable) as caught:
        await manager.create_server(record("other", table), "shared")
    return caught.value.problem


@pytest.mark.parametrize("name", ["bridge", "host"])
async def test_the_engines_own_networks_have_no_other_name(
    manager: McpContainerManager, engine: Any, name: str
) -> None:
    """By its name each is refused in servers.toml already."""
    [own] = [each for each in engine.networks.list(names=[name]) if each.name == name]
    for given in (own.id, own.id[:12], own.id[:6]):
        assert f"is the id of the network '{name}'" in await refusal(manager, over_stdio(docker_network=given))


async def test_a_network_that_is_not_there_is_told_with_what_makes_it(manager: McpContainerManager) -> None:
    told = await refusal(manager, over_stdio(docker_network="apollos-nowhere"))
    assert told == (
        "docker_network 'apollos-nowhere' is not at the engine. Make it: docker network create apollos-nowhere."
    )


async def test_no_server_joins_the_network_of_another(manager: McpContainerManager, engine: Any) -> None:
    web = await manager.create_server(record("web", over_http()), "shared")
    [own] = engine.networks.list(filters={"label": f"{INSTANCE}={manager.instance.id}"})
    told = await refusal_of_another(manager, over_stdio(docker_network=own.name))
    assert "was made by a gateway for one server alone" in told
    await manager.stop_server(web)


async def test_a_network_of_a_stranger_does_not_stand_in_for_our_own(manager: McpContainerManager, engine: Any) -> None:
    """One with our name and a way out would open what is closed."""
    name = f"apollos-mcp-files_{manager.instance.id[:8]}"
    theirs = engine.networks.create(name, driver="bridge")
    try:
        assert f"Remove it: docker network rm {name}" in await refusal(manager, over_http())
    finally:
        theirs.remove()


async def test_a_network_with_copied_labels_is_reported_once_and_left_alone(
    manager: McpContainerManager, engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    web = await manager.create_server(record("web", over_http()), "shared")
    [own] = engine.networks.list(filters={"label": f"{INSTANCE}={manager.instance.id}"})
    name = f"apollos-mcp-files_{manager.instance.id[:8]}"
    theirs = engine.networks.create(name, driver="bridge", labels=own.attrs["Labels"], options=own.attrs["Options"])
    try:
        await manager.stop_server(web, grace=0)
        for _ in range(2):
            await manager.reconcile(adopt=lambda _: False)
        assert [each.id for each in engine.networks.list(names=[name])] == [theirs.id]
        assert not engine.networks.list(names=[own.name])
        told = [message for message in caplog.messages if name in message]
        assert told == [f"network '{name}' carries our labels and is not ours; it is left alone"]
        assert f"Remove it: docker network rm {name}" in await refusal(manager, over_http())
    finally:
        theirs.remove()


async def test_containers_that_are_made_at_once_are_on_one_network(manager: McpContainerManager, engine: Any) -> None:
    """Docker would make two of one name, and then take neither."""
    web = record("web", over_http())
    async with anyio.create_task_group() as tasks:
        for number in range(6):
            tasks.start_soon(manager.create_server, web, f"session:{number}")
    [network] = engine.networks.list(filters={"label": f"{INSTANCE}={manager.instance.id}"})
    modes = [engine.api.inspect_container(each.container.id)["HostConfig"] for each in await manager.list_servers()]
    assert [mode["NetworkMode"] for mode in modes] == [network.name] * 6


async def test_no_name_is_resolved_on_a_network_without_a_way_out(manager: McpContainerManager, engine: Any) -> None:
    for choice, resolvers in (("own", ["127.0.0.1"]), ("internet", [])):
        container = await manager.create_server(record(choice, over_http(docker_network=choice)), "shared")
        assert (engine.api.inspect_container(container.id)["HostConfig"]["Dns"] or []) == resolvers


# ------------------------------------------------------------------------------------------------ folders and volumes


async def test_docker_is_given_the_path_that_was_looked_at(
    manager: McpContainerManager, engine: Any, tmp_path: Path
) -> None:
    """A link that is turned round between our look and Docker's is not followed any more."""
    (tmp_path / "good").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "good")
    table = over_http(EVERYTHING, "60", docker_volumes=[f"{tmp_path}/./link:/data"], docker_command=["sleep"])
    container = await manager.create_server(record("files", table), "shared")
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("/etc")
    await manager.start_created(container)
    (tmp_path / "good" / "mark").touch()
    facts = engine.api.inspect_container(container.id)
    assert [mount["Source"] for mount in facts["HostConfig"]["Mounts"]] == [str(tmp_path / "good")]
    assert engine.containers.get(container.id).exec_run(["ls", "/data"]).output == b"mark\n"


async def test_a_gateways_own_state_is_never_mounted(manager: McpContainerManager) -> None:
    state = manager.instance.folder
    for folder in (state, state.parent):
        assert "no container may see that" in await refusal(manager, over_stdio(docker_volumes=[f"{folder}:/data"]))


@pytest.fixture
def image_with(engine: Any) -> Iterator[Any]:
    """Makes an image that declares these volumes and this user. Name it before the manager, whose containers use it."""
    made = []

    def make(volumes: list[str], user: str = "") -> str:
        source = engine.containers.create(EVERYTHING, ["deaf"], network_mode="none")
        try:
            config = {"Volumes": {path: {} for path in volumes}, "User": user, "Entrypoint": ["sleep"]}
            name = f"apollos-test/declares-{uuid4().hex[:8]}"
            made.append(source.commit(name, "1", conf=config))
        finally:
            source.remove(v=True)
        return f"{name}:1"

    yield make
    for image in made:
        engine.images.remove(image.id, force=True)


async def test_what_an_image_declares_leaves_nothing_on_disk_however_it_is_written(
    image_with: Any, manager: McpContainerManager, engine: Any
) -> None:
    volumes = {volume.name for volume in engine.volumes.list()}
    image = image_with(["/data/", "//cache", "/x/../y", "/tmp", "/tmp/deep", "/usr/share", "/etc"])
    container = await manager.create_server(record("files", over_http(image, "60")), "shared")
    await manager.start_created(container)
    facts = engine.api.inspect_container(container.id)
    assert set(facts["HostConfig"]["Tmpfs"]) == {"/data", "/cache", "/y", "/tmp", "/tmp/deep"}
    assert {mount["Destination"] for mount in facts["Mounts"]} == {
        "/usr/share",
        "/etc",
    }  # with what the image has there
    running = engine.containers.get(container.id)
    assert running.exec_run(["ls", "/usr/share/base-files", "/etc/passwd"]).exit_code == 0
    await manager.stop_server(container, grace=0)
    assert {volume.name for volume in engine.volumes.list()} <= volumes


@pytest.mark.parametrize(
    ("user", "runs_as"), [("00", "65534:65534"), ("0:1", "65534:65534"), ("1234", "1234:1234"), ("www-data", "33:33")]
)
async def test_who_a_server_runs_as_is_what_the_kernel_says(
    image_with: Any, manager: McpContainerManager, engine: Any, user: str, runs_as: str
) -> None:
    container = await manager.create_server(record("files", over_http(image_with([], user), "60")), "shared")
    await manager.start_created(container)
    status = engine.containers.get(container.id).exec_run(["cat", "/proc/1/status"]).output.decode()
    found = {line.split()[0]: line.split()[1] for line in status.splitlines() if line.startswith(("Uid", "Gid"))}
    assert f"{found['Uid:']}:{found['Gid:']}" == runs_as


async def test_a_kept_container_whose_secrets_are_gone_is_made_anew(manager: McpContainerManager, engine: Any) -> None:
    """As after a reboot: what lay in memory is gone, and Docker cannot start it again."""
    kept = {"isolation": "shared", "keep": True, "docker_secrets": {"token": "canary"}, "docker_command": ["sleep"]}
    web = record("web", over_http(EVERYTHING, "60", **kept))
    before = await manager.start_server(web)
    running = engine.containers.get(before.id)
    assert running.exec_run(["cat", "/run/secrets/token"]).output == b"canary"  # as the server's own user
    assert "canary" not in str(running.attrs)
    running.kill()
    manager.instance.drop_secrets(before.name)
    with pytest.raises(APIError, match=r"bind source path does not exist|no such file or directory"):
        engine.api.start(before.id)
    await manager.reconcile(adopt=lambda _: True, everything=True)
    after = await manager.start_server(web)
    assert after.id != before.id
    assert engine.containers.get(after.id).exec_run(["cat", "/run/secrets/token"]).output == b"canary"
