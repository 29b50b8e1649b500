"""Nothing crosses: state, logs, progress, questions and answers belong to whoever the isolation level says.

Three windows are open at once, two of one user and one of another: any two of them are either two sessions of one
user or two users. What may be shared is written down once, in `whose`.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import product
from typing import Any

import anyio
import pytest
from fastmcp.exceptions import ToolError

from tests.helpers.gateway import LATEST, LEGACY, ServedGateway, gateway_over_http, in_process, local, servers_toml
from tests.helpers.people import Meeting, Window, identity, tokens, window
from tests.helpers.processes import SERVERS, STOP_TIMEOUT

pytestmark = pytest.mark.filterwarnings("ignore:The logging capability is deprecated")  # of a backend in this process


def whose(isolation: str, one: Window) -> Hashable:
    """What a backend session belongs to; windows for which it is equal share one."""
    match isolation:
        case "session":
            return one.tag
        case "user":
            return one.user
        case "shared":
            return "everybody"
        case _:
            return object()  # equal to nothing else: each call has its own


@pytest.fixture(params=["stdio", "streamable_http", "sse", "python"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["session", "user", "shared", "call"])
def isolation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def remote_servers() -> Iterator[dict[str, dict[str, Any]]]:
    """The test server over HTTP and over SSE. It keeps state by MCP session, so that all tests may use the same."""
    command = [sys.executable, str(SERVERS / "everything.py")]
    servers = {kind: subprocess.Popen([*command, kind, "0"], stdout=subprocess.PIPE) for kind in ("http", "sse")}
    ports = {kind: int(server.stdout.readline()) for kind, server in servers.items() if server.stdout}
    try:
        yield {
            "streamable_http": {"url": f"http://127.0.0.1:{ports['http']}/mcp"},
            "sse": {"url": f"http://127.0.0.1:{ports['sse']}/sse", "transport_type": "sse"},
        }
    finally:
        for server in servers.values():
            server.terminate()
            server.communicate(timeout=STOP_TIMEOUT)


Served = Callable[..., AbstractAsyncContextManager[ServedGateway]]


@pytest.fixture
def served(transport: str, isolation: str, remote_servers: dict[str, dict[str, Any]]) -> Served:
    """Starts a gateway with the test server `b`, which every user may use."""
    ways = {
        "stdio": local("everything.py"),
        "python": in_process("everything.py"),
        **remote_servers,
    }
    table = {**ways[transport], "isolation": isolation, "required_roles": ["*"]}
    return partial(gateway_over_http, servers_toml({"b": table}), auth=tokens())


@asynccontextmanager
async def three_windows(gateway: ServedGateway, era: str = LEGACY) -> AsyncIterator[list[Window]]:
    """Two of Ada and one of Bob."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(window(gateway.url, user, tag, era=era))
            for user, tag in (("ada", "ada-1"), ("ada", "ada-2"), ("bob", "bob-1"))
        ]


# ------------------------------------------------------------------------------------------------------- state


@pytest.mark.core
async def test_state_is_shared_with_whom_the_isolation_says(served: Served, transport: str, isolation: str) -> None:
    tool = "b_total" if transport == "stdio" else "b_count"  # the state of the process; that of the MCP session
    expected: Counter[Hashable] = Counter()
    async with served() as gateway, three_windows(gateway) as (ada, ada_too, bob):
        for one in (ada, ada_too, bob, ada):
            owner = whose(isolation, one)
            expected[owner] += 1
            assert await one.call(tool) == expected[owner], f"{one.tag} shares with somebody else"


# ---------------------------------------------------------------------------------------------------- messages


@pytest.mark.core
async def test_messages_reach_the_caller_of_their_call_and_nobody_else(
    served: Served, transport: str, isolation: str
) -> None:
    async with served() as gateway, three_windows(gateway) as windows:
        sessions = len({whose(isolation, one) for one in windows})
        meeting = Meeting(sessions)  # as many as can be, are asked at the same time

        async def use(one: Window, steps: int) -> None:
            one.when_asked = meeting
            answers = {"ask": one.tag, "think": one.tag, "roots": [f"file:///{one.tag}"]}
            assert await one.call("b_confer", tag=one.tag, steps=steps) == answers
            await is_told_of(one, transport)

        await all_at_once(windows, use)
        for steps, one in enumerate(windows, start=2):
            await heard_exactly(one, [*chatter_of(one, 3), *progress_of(steps), *questions_to(one)])


async def all_at_once(windows: list[Window], use: Callable[[Window, int], Awaitable[None]]) -> None:
    """Each takes another number of steps, so that its progress bears its mark, too."""
    async with anyio.create_task_group() as tasks:
        for steps, one in enumerate(windows, start=2):
            tasks.start_soon(use, one, steps)


async def is_told_of(one: Window, transport: str) -> None:
    """The backend hears who makes this very call, and nothing that the client sent."""
    heard = await one.call("b_whoami")
    expected = identity(one.user)
    if transport in ("stdio", "python"):
        assert (heard["identity"], heard["headers"]) == (expected, {})
        return
    own = {name: value for name, value in heard["headers"].items() if name != "user-agent"}
    assert heard["identity"] is None
    assert own == {
        "x-mcp-userid": expected["userId"],
        "x-mcp-username": expected["userName"],
        "x-mcp-roles": ",".join(expected["roles"]),
    }


def chatter_of(one: Window, count: int) -> Iterable[tuple[str, str]]:
    return (("log", f"{one.tag} {number}") for number in range(count))


def progress_of(steps: int) -> Iterable[tuple[str, str]]:
    return (("progress", f"step {step} of {steps}") for step in range(1, steps + 1))


def questions_to(one: Window) -> Iterable[tuple[str, str]]:
    return (("question", f"{one.tag}?"), ("prompt", f"{one.tag}!"))


async def heard_exactly(one: Window, expected: list[tuple[str, str]]) -> None:
    await one.heard_all(len(expected))
    assert sorted(one.heard) == sorted(expected)


@pytest.mark.core
@pytest.mark.parametrize("transport", ["python"])
async def test_who_cannot_be_asked_is_not_asked_and_nobody_in_his_place(served: Served) -> None:
    mute = {"elicitation_handler": None, "sampling_handler": None, "roots": None}
    async with (
        served() as gateway,
        window(gateway.url, "ada", "ada-1") as able,
        window(gateway.url, "ada", "ada-2", **mute) as unable,
    ):
        assert await able.call("b_ask", question="first?") == "ada-1"
        for tool, arguments in (("ask", {"question": "second?"}), ("think", {"prompt": "second?"}), ("roots", {})):
            with pytest.raises(ToolError, match="cannot be asked"):
                await unable.call(f"b_{tool}", **arguments)
        assert able.heard == [("question", "first?")]


# -------------------------------------------------------------------------------------- clients of the newest era


@pytest.mark.parametrize(
    ("transport", "isolation"),
    [*product(["streamable_http"], ["session", "user", "shared", "call"]), *product(["stdio"], ["user", "shared"])],
)
async def test_nothing_crosses_between_clients_of_the_newest_era(served: Served, transport: str) -> None:
    async with served() as gateway, three_windows(gateway, LATEST) as windows:

        async def use(one: Window, steps: int) -> None:
            await one.call("b_slow", seconds=0.05, steps=steps)
            assert await one.call("b_ask", question=f"{one.tag}?") == one.tag
            await is_told_of(one, transport)

        await all_at_once(windows, use)
        for steps, one in enumerate(windows, start=2):
            await heard_exactly(one, [*progress_of(steps), ("question", f"{one.tag}?")])
