"""The store in memory keeps the contract; and what a caller may not read answers exactly like what does not exist."""

from __future__ import annotations

import anyio
import pytest
from fastmcp import FastMCP
from fastmcp.exceptions import NotFoundError

from providers.identity import Identity, IdentityMiddleware
from providers.resource import McpServerResource
from providers.store import InMemoryMcpResourceStore, McpResourceStoreBase, StoreMiddleware
from tests.providers.store_contract import StoreContract, record, watching

pytestmark = pytest.mark.core


class TestInMemory(StoreContract):
    @pytest.fixture
    def store(self) -> McpResourceStoreBase:
        return InMemoryMcpResourceStore()

    async def test_what_it_is_given_at_first_has_version_one(self) -> None:
        store = InMemoryMcpResourceStore([record("a"), record("b", version=7)])
        assert [each.version for each in (await store.list_all()).values()] == [1, 1]
        assert (await store.upsert(record("a"), expected_version=1)).version == 2

    def test_it_can_be_read_before_any_event_loop_runs(self) -> None:
        store = InMemoryMcpResourceStore([record("a")])
        assert list(store.snapshot) == ["a"] and repr(store) == "<InMemoryMcpResourceStore 1 records>"

    def test_its_records_cannot_be_changed_from_outside(self) -> None:
        with pytest.raises(TypeError):
            InMemoryMcpResourceStore([record("a")]).snapshot["b"] = record("b")  # type: ignore[index]

    async def test_made_outside_it_works_in_two_loops_one_after_the_other(self) -> None:
        store = InMemoryMcpResourceStore()

        async def change() -> None:
            async with watching(store) as following:
                before = len(await following())
                await store.upsert(record(f"n{before}"))
                assert len(await following()) == before + 1

        await anyio.to_thread.run_sync(anyio.run, change)
        await change()


# --------------------------------------------------------------------------------- hidden is absent

USERS = {
    "creator": Identity("ann", "Ann"),
    "admin": Identity("root", "Root", frozenset({"mcp.admin"})),
    "reader": Identity("rob", "Rob", frozenset({"engineer", "other"})),
    "stranger": Identity("eve", "Eve", frozenset({"Engineer", "engineer2", "*", ""})),
    "namesake": Identity("Ann", "Ann"),
}

MAY_READ = {
    (): {"creator", "admin"},
    ("engineer",): {"creator", "admin", "reader"},
    ("a", "other"): {"creator", "admin", "reader"},
    ("*",): {"creator", "admin", "reader", "stranger", "namesake"},
}


def server_of(resource: McpServerResource | None, user: str) -> FastMCP[None]:
    """A sub-server with one of each component."""
    server: FastMCP[None] = FastMCP(
        "sub", middleware=[IdentityMiddleware(USERS[user]), StoreMiddleware("files", lambda _: resource)]
    )

    @server.tool
    def a_tool() -> str:
        return "used"

    @server.resource("data://one")
    def a_resource() -> str:
        return "used"

    @server.resource("data://{which}/more")
    def a_template(which: str) -> str:
        return "used"

    @server.prompt
    def a_prompt() -> str:
        return "used"

    return server


async def seen(server: FastMCP[None]) -> list[int]:
    lists = (server.list_tools, server.list_resources, server.list_resource_templates, server.list_prompts)
    return [len(await each()) for each in lists]


async def answers(server: FastMCP[None], suffix: str = "") -> list[str]:
    """What using each component gives: `used`, or the error."""
    uses = (
        lambda: server.call_tool(f"a_tool{suffix}"),
        lambda: server.read_resource(f"data://one{suffix}"),
        lambda: server.render_prompt(f"a_prompt{suffix}"),
    )
    said = []
    for use in uses:
        try:
            await use()
        except NotFoundError as error:
            said.append(str(error).replace(suffix, ""))
        else:
            said.append("used")
    return said


@pytest.mark.parametrize("roles", MAY_READ)
@pytest.mark.parametrize("user", USERS)
async def test_who_may_read_may_see_and_use_and_nobody_else(roles: tuple[str, ...], user: str) -> None:
    server = server_of(record(created_by="local/ann", required_roles=roles), user)
    if user in MAY_READ[roles]:
        assert await seen(server) == [1, 1, 1, 1] and await answers(server) == ["used"] * 3
    else:
        assert await seen(server) == [0, 0, 0, 0]
        assert await answers(server) == await absent()


async def absent() -> list[str]:
    """What is answered for what does not exist, to somebody who may use the server."""
    everybody = server_of(record(required_roles=("*",)), "stranger")
    said = await answers(everybody, suffix="-no")
    assert "used" not in said
    return said


@pytest.mark.parametrize("resource", [None, record(created_by="local/ann", required_roles=("*",), is_enabled=False)])
@pytest.mark.parametrize("user", USERS)
async def test_what_is_gone_or_switched_off_is_absent_for_all(resource: McpServerResource | None, user: str) -> None:
    server = server_of(resource, user)
    assert await seen(server) == [0, 0, 0, 0] and await answers(server) == await absent()


async def test_a_revoked_role_counts_from_the_next_request_on() -> None:
    records = {"files": record(required_roles=("engineer",))}
    server: FastMCP[None] = FastMCP(
        "sub", middleware=[IdentityMiddleware(USERS["reader"]), StoreMiddleware("files", records.get)]
    )

    @server.tool
    def a_tool() -> str:
        return "used"

    assert len(await server.list_tools()) == 1
    records["files"] = record(required_roles=("boss",))
    assert len(await server.list_tools()) == 0
    with pytest.raises(NotFoundError):
        await server.call_tool("a_tool")


async def test_without_an_identity_everything_is_hidden() -> None:
    server: FastMCP[None] = FastMCP(
        "sub", middleware=[StoreMiddleware("files", lambda _: record(required_roles=("*",)))]
    )
    server.tool(lambda: "used", name="a_tool")
    assert len(await server.list_tools()) == 0
