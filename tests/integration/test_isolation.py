"""Nothing crosses: state, logs, progress, questions and answers belong to whoever the isolation level says.

Three windows are open at once, two of one user and one of another: any two of them are either two sessions of one
user or two users. What may be shared is written down once, in `whose`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Hashable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest

from tests.helpers.gateway import LATEST, LEGACY, ServedGateway, gateway_over_http, local, remote, servers_toml
from tests.helpers.people import Meeting, Window, identity, tokens, window
from tests.helpers.processes import SERVERS, http_server
from providers.lines import MODERN

pytestmark = [
    pytest.mark.core,
    pytest.mark.filterwarnings("ignore:The logging capability is deprecated"),  # of a backend in this process
]

TRANSPORTS = ("stdio", "streamable_http", "sse", "python")
ISOLATIONS = ("session", "user", "shared", "call")


def whose(isolation: str, one: Window, *, has_session: bool = True) -> Hashable:
    """What a backend session belongs to; windows for which it is equal share one."""
    match isolation:
        case "session":
            return one.tag if has_session else one.user
        case "user":
            return one.user
        case "shared":
            return "everybody"
        case _:
            return object()  # equal to nothing else: each call has its own


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=ISOLATIONS)
def isolation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def backend(transport: str, **more: Any) -> AsyncIterator[dict[str, Any]]:
    """The table of the test server, reached in this way; every user may use it."""
    more.setdefault("required_roles", ["*"])
    match transport:
        case "stdio":
            yield local("everything.py", **more)
        case "python":
            yield {"python": f"{SERVERS / 'everything.py'}:mcp", **more}
        case "sse":
            async with http_server("everything.py", "sse", path="/sse") as server:
                yield remote(server.url, transport_type="sse", **more)
        case _:
            async with http_server("everything.py", "http") as server:
                yield remote(server.url, **more)


@asynccontextmanager
async def gateway(transport: str, isolation: str) -> AsyncIterator[ServedGateway]:
    async with (
        backend(transport, isolation=isolation) as table,
        gateway_over_http(servers_toml({"b": table}), auth=tokens()) as served,
    ):
        yield served


@asynccontextmanager
async def three_windows(served: ServedGateway, era: str = LEGACY, **options: Any) -> AsyncIterator[list[Window]]:
    """Two of Ada and one of Bob."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(window(served.url, user, tag, era=era, **options))
            for user, tag in (("ada", "ada-1"), ("ada", "ada-2"), ("bob", "bob-1"))
        ]


# ------------------------------------------------------------------------------------------------------- state


async def test_state_is_shared_with_whom_the_isolation_says(transport: str, isolation: str) -> None:
    tool = "b_total" if transport == "stdio" else "b_count"  # the state of the process; that of the MCP session
    expected: Counter[Hashable] = Counter()
    async with gateway(transport, isolation) as served, three_windows(served) as (ada, ada_too, bob):
        for one in (ada, ada_too, bob, ada, bob, ada_too):
            owner = whose(isolation, one)
            expected[owner] += 1
            assert await one.call(tool) == expected[owner], f"{one.tag} shares with somebody else"


async def test_the_backend_is_told_who_makes_this_very_call(transport: str, isolation: str) -> None:
    async with gateway(transport, isolation) as served, three_windows(served) as (ada, ada_too, bob):
        for one in (ada, bob, ada_too, bob):
            await is_told_of(one, transport)


async def is_told_of(one: Window, transport: str) -> None:
    heard = await one.call("b_whoami")
    expected = identity(one.user)
    if transport in ("stdio", "python"):
        assert (heard["identity"], heard["headers"]) == (expected, {})
        return
    assert heard["identity"] is None
    assert heard["headers"]["x-mcp-userid"] == expected["userId"]
    assert heard["headers"]["x-mcp-username"] == expected["userName"]
    assert heard["headers"]["x-mcp-roles"] == ",".join(expected["roles"])


# ---------------------------------------------------------------------------------------------------- messages


async def test_messages_reach_the_caller_of_their_call_and_nobody_else(transport: str, isolation: str) -> None:
    async with gateway(transport, isolation) as served, three_windows(served) as windows:
        sessions = len({whose(isolation, one) for one in windows})
        question, prompt = Meeting(sessions), Meeting(sessions)  # as many as can be, are asked at the same time

        async def use(one: Window, steps: int) -> None:
            assert await one.call("b_chatter", n=3, tag=one.tag) == one.tag
            await one.call("b_slow", seconds=0.05, steps=steps)
            one.when_asked = question
            assert await one.call("b_ask", question=f"{one.tag}?") == one.tag
            one.when_asked = prompt
            assert await one.call("b_think", prompt=f"{one.tag}!") == one.tag
            assert await one.call("b_roots") == f'["file:///{one.tag}"]'

        async with anyio.create_task_group() as tasks:
            for steps, one in enumerate(windows, start=2):
                tasks.start_soon(use, one, steps)
        for steps, one in enumerate(windows, start=2):
            await heard_exactly(one, [*chatter_of(one, 3), *progress_of(steps), *questions_to(one)])


def chatter_of(one: Window, count: int) -> Iterable[tuple[str, str]]:
    return (("log", f"{one.tag} {number}") for number in range(count))


def progress_of(steps: int) -> Iterable[tuple[str, str]]:
    """Each window takes another number of steps, so that its progress bears its mark, too."""
    return (("progress", f"step {step} of {steps}") for step in range(1, steps + 1))


def questions_to(one: Window) -> Iterable[tuple[str, str]]:
    return (("question", f"{one.tag}?"), ("prompt", f"{one.tag}!"))


async def heard_exactly(one: Window, expected: list[tuple[str, str]]) -> None:
    await one.heard_all(len(expected))
    assert sorted(one.heard) == sorted(expected)


async def test_a_window_that_cannot_be_asked_is_not_asked_and_nobody_in_its_place(isolation: str) -> None:
    mute = {"elicitation_handler": None, "sampling_handler": None, "roots": None}
    async with (
        gateway("python", isolation) as served,
        window(served.url, "ada", "ada-1") as able,
        window(served.url, "ada", "ada-2", **mute) as unable,
    ):
        assert await able.call("b_ask", question="first?") == "ada-1"
        for tool, arguments in (("ask", {"question": "second?"}), ("think", {"prompt": "second?"}), ("roots", {})):
            with pytest.raises(Exception, match=r"cannot be asked|not supported|does not support|Method not found"):
                await unable.call(f"b_{tool}", **arguments)
        assert able.heard == [("question", "first?")]


# -------------------------------------------------------------------------------------- clients of the newest era


@pytest.mark.skipif(not MODERN, reason="FastMCP 3.4 does not speak the newest era")
@pytest.mark.parametrize("transport", ["stdio", "streamable_http", "python"], indirect=True)
async def test_nothing_crosses_between_clients_of_the_newest_era(transport: str, isolation: str) -> None:
    async with gateway(transport, isolation) as served, three_windows(served, LATEST) as windows:

        async def use(one: Window, steps: int) -> None:
            await one.call("b_slow", seconds=0.05, steps=steps)
            assert await one.call("b_ask", question=f"{one.tag}?") == one.tag
            assert await one.call("b_think", prompt=f"{one.tag}!") == one.tag
            await is_told_of(one, transport)

        async with anyio.create_task_group() as tasks:
            for steps, one in enumerate(windows, start=2):
                tasks.start_soon(use, one, steps)
        for steps, one in enumerate(windows, start=2):
            await heard_exactly(one, [*progress_of(steps), *questions_to(one)])
