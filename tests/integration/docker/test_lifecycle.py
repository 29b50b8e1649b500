"""Containers at the moments in between: adopted, ending, named alike, given up half-made, or not answered for.

A proxy in front of the real engine says when each moment is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from providers import ownership
from providers.container import Container
from providers.container_stdio import container_stdio_wire, remove
from providers.docker import McpContainerManager
from providers.errors import BackendError
from providers.ownership import Instance
from providers.resource import McpServerResource
from tests.helpers.containers import nobodys_name, ours, over_http, over_stdio, record, until
from tests.helpers.engine_proxy import ANSWERED, ASKED, engine_proxy, hung_up

pytestmark = pytest.mark.timeout(120)
FILES, WEB = nobodys_name("files"), nobodys_name("web")
"""So that their containers have names that no other test run at this engine has."""


@pytest.fixture
def instance(state: str, tmp_path: Path) -> Iterator[Instance]:
    instance = ownership.claim(Path(state), tmp_path / "servers.toml")
    yield instance
    instance.release()


@asynccontextmanager
async def managing(instance: Instance, host: str | None = None) -> AsyncIterator[McpContainerManager]:
    """A gateway's container manager, until the gateway is killed; what it has is left."""
    manager = McpContainerManager(instance, host=host)
    try:
        yield manager
    finally:
        manager.close()


@pytest.fixture
async def manager(instance: Instance) -> AsyncIterator[McpContainerManager]:
    async with managing(instance) as manager:
        yield manager
        await manager.reconcile(adopt=lambda _: False, everything=True)


# -------------------------------------------------------------------------------------------------------- adopted


async def test_a_container_in_use_is_nobody_elses(manager: McpContainerManager) -> None:
    web = record(WEB, over_http())
    assert (await manager.start_server(web)).id != (await manager.start_server(web)).id


async def test_a_container_that_a_gateway_left_serves_the_next_one_once(
    manager: McpContainerManager, instance: Instance
) -> None:
    web = record(WEB, over_http(docker_secrets={"token": "one"}, env={"MODE": "a"}))
    async with managing(instance) as killed:
        left = await killed.start_server(web)
    for other in ({"docker_secrets": {"token": "two"}}, {"env": {"MODE": "b"}}):
        assert await manager.start_server(web.model_copy(update=other)) != left
    assert await manager.start_server(web, "user:alice") != left
    assert await manager.start_server(web) == left
    assert await manager.start_server(web) != left


async def test_a_container_that_is_being_stopped_is_not_adopted(
    manager: McpContainerManager, instance: Instance, tmp_path: Path
) -> None:
    stopping, go_on = anyio.Event(), anyio.Event()

    async def passes(moment: str, path: str) -> None:
        if (moment, path) == (ASKED, "/containers/stop"):
            stopping.set()
            await go_on.wait()

    web = record(WEB, over_http())
    async with engine_proxy(tmp_path, passes) as host, managing(instance, host) as slow:
        old = await slow.start_server(web)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(slow.stop_server, old)
            await stopping.wait()
            new = await slow.start_server(web)
            assert await slow.reconcile(adopt=lambda _: False) == {old.name, new.name}  # it is given time to end
            go_on.set()
        assert new.id != old.id
        assert [status.container for status in await slow.list_servers()] == [new]


async def test_while_one_container_is_removed_others_are_started(
    manager: McpContainerManager, instance: Instance, tmp_path: Path
) -> None:
    removing, go_on = anyio.Event(), anyio.Event()

    async def passes(moment: str, path: str) -> None:
        if (moment, path) == (ASKED, "/containers"):
            removing.set()
            await go_on.wait()

    web = record(WEB, over_http())
    async with managing(instance) as killed:
        orphan = await killed.start_server(web)
    async with engine_proxy(tmp_path, passes) as host, managing(instance, host) as slow:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(slow.reconcile, lambda _: False)
            await removing.wait()
            with anyio.fail_after(8):
                new = await slow.start_server(web)
            go_on.set()
        assert new.id != orphan.id
        assert [status.container for status in await manager.list_servers()] == [new]


async def test_a_container_that_was_removed_since_it_was_listed_is_not_adopted(
    manager: McpContainerManager, instance: Instance, tmp_path: Path
) -> None:
    listed, go_on = anyio.Event(), anyio.Event()

    async def passes(moment: str, path: str) -> None:
        if (moment, path) == (ANSWERED, "/containers/json") and not listed.is_set():
            listed.set()
            await go_on.wait()

    web, made = record(WEB, over_http()), list[Container]()
    async with managing(instance) as killed:
        orphan = await killed.start_server(web)
    async with engine_proxy(tmp_path, passes) as host, managing(instance, host) as slow:

        async def start() -> None:
            made.append(await slow.start_server(web))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start)
            await listed.wait()
            await slow.reconcile(lambda _: False)
            go_on.set()
        assert [status.container for status in await manager.list_servers()] == made != [orphan]
        assert slow.instance.containers() == {each.name: each.id for each in made}


# ---------------------------------------------------------------------------------------------------- named alike


async def test_a_late_word_about_a_container_does_nothing_to_the_next_of_its_name(
    manager: McpContainerManager, engine: Any
) -> None:
    secretive = record(FILES, over_stdio(docker_secrets={"token": "secret"}))
    old = await manager.create_server(secretive, "shared")
    await manager.stop_server(old)
    new = await manager.create_server(secretive, "shared")
    assert new.name == old.name
    await manager.stop_server(old)
    assert manager.instance.containers() == {new.name: new.id}
    assert (manager.instance.secrets_folder(new.name) / "token").read_text() == "secret"
    await manager.reconcile(adopt=lambda _: False)
    assert [each.id for each in ours(engine)] == [new.id]


async def test_containers_of_one_server_that_are_made_at_once_have_their_own_names(
    manager: McpContainerManager,
) -> None:
    made: list[Container] = []

    async def make() -> None:
        made.append(await manager.create_server(record(FILES, over_stdio()), "session"))

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(make)
    assert manager.instance.containers() == {each.name: each.id for each in made}
    assert len(await manager.list_servers()) == 4


# ----------------------------------------------------------------------------------------------- not answered for


@pytest.mark.parametrize("silently", [True, False], ids=["silence", "hangs up"])
@pytest.mark.usefixtures("manager")
async def test_a_container_whose_making_was_not_answered_for_is_removed(
    instance: Instance, tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch, silently: bool
) -> None:
    monkeypatch.setattr("providers.docker_engine._SDK_SECONDS", 2)

    async def passes(moment: str, path: str) -> None:
        if (moment, path) == (ANSWERED, "/containers/create"):
            if silently:
                await anyio.sleep_forever()
            raise hung_up

    async with engine_proxy(tmp_path, passes) as host, managing(instance, host) as manager:
        with pytest.raises(BackendError, match="Docker"):
            await manager.create_server(record(FILES, over_stdio()), "shared")
        await until(lambda: len(ours(engine)) == 1)  # it was made all the same
        await manager.reconcile(adopt=lambda _: True)
        assert not ours(engine) and instance.containers() == {}


@pytest.mark.usefixtures("manager")
async def test_a_container_that_is_made_after_we_stopped_waiting_is_removed_too(
    instance: Instance, tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine was hung, and gets to it late: after we have looked whether it is there."""
    monkeypatch.setattr("providers.docker_engine._SDK_SECONDS", 2)
    go_on = anyio.Event()

    async def passes(moment: str, path: str) -> None:
        if (moment, path) == (ASKED, "/containers/create"):
            with anyio.CancelScope(shield=True):
                await go_on.wait()

    async with engine_proxy(tmp_path, passes) as host, managing(instance, host) as manager:
        with pytest.raises(BackendError, match="Docker did not answer"):
            await manager.create_server(record(FILES, over_stdio()), "shared")
        await manager.reconcile(adopt=lambda _: False)
        assert not ours(engine)
        go_on.set()
        await until(lambda: len(ours(engine)) == 1)
        await manager.reconcile(adopt=lambda _: False)
        assert not ours(engine)


# --------------------------------------------------------------------------------------------------------- given up


async def one_wire(
    manager: McpContainerManager, resource: McpServerResource, given_up: anyio.CancelScope | None = None
) -> None:
    """A wire to a container, opened and closed as a launcher does it."""
    made: list[Container] = []
    try:
        with given_up or anyio.CancelScope():
            async with container_stdio_wire(resource, _nobody, manager, "session:1", discard=made.append):
                pass
    finally:
        for container in made:
            await remove(manager, container)


async def _nobody(_: Any) -> None:
    return None


REQUESTS = ("/_ping", "/containers/create", "/containers/attach", "/containers/start", "/containers/kill")


@pytest.mark.parametrize("path", REQUESTS)
@pytest.mark.parametrize("when", [ASKED, ANSWERED])
@pytest.mark.usefixtures("manager")
async def test_a_wire_that_is_given_up_leaves_no_container(
    instance: Instance, tmp_path: Path, engine: Any, path: str, when: str
) -> None:
    scope = anyio.CancelScope()

    async def passes(moment: str, asked: str) -> None:
        if (moment, asked) == (when, path):
            scope.cancel()

    async with engine_proxy(tmp_path, passes) as host, managing(instance, host) as manager:
        await one_wire(manager, record(FILES, over_stdio(args=["deaf"], timeouts={"shutdown": 1})), scope)
        assert scope.cancel_called
        await until(lambda: not ours(engine) and not instance.containers())  # without a reconciliation
