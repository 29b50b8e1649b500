"""Whose a question is, where calls of several windows of one user run on a session at the same time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest

from tests.helpers.desk import Desk, desk_with, said_by
from tests.helpers.fakes import Call, FakeBackend, Json, client_of, no_waiting, settled, text, time_passes
from tests.helpers.people import Meeting

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


class Windows:
    """Two windows of one user: one's call asks for roots, the other's only waits."""

    def __init__(self) -> None:
        self.go_on = anyio.Event()
        self.got: list[Json] = []
        self.backend = FakeBackend(answers={"tools/call": self._answer})
        self.asking: Call | None = None

    async def _answer(self, call: Call) -> Json:
        if call.arguments["text"] == "asks":
            self.asking = call
            self.got.append(await call.wire.ask("roots/list"))
        else:
            await self.go_on.wait()
        return text("done")

    async def play(self, desk: Desk, *, gives_up: bool = False) -> None:
        async with (
            client_of(desk.server, roots=["file:///one"]) as one,
            client_of(desk.server, roots=["file:///two"]) as two,
            anyio.create_task_group() as tasks,
        ):
            waiting = anyio.CancelScope()

            async def wait() -> None:
                with waiting:
                    await said_by(two, "waits")

            tasks.start_soon(wait)
            await settled()
            tasks.start_soon(said_by, one, "asks")
            await settled()
            assert self.got == []
            await time_passes(1)
            waiting.cancel() if gives_up else self.go_on.set()


async def test_a_question_goes_to_the_call_that_is_left_when_the_other_is_answered() -> None:
    windows = Windows()
    async with desk_with(windows.backend, has_session=False) as desk:
        await windows.play(desk)
    assert windows.got[0]["result"]["roots"][0]["uri"] == "file:///one"


async def test_it_goes_to_nobody_when_the_other_was_given_up_since_it_may_have_been_the_one() -> None:
    windows = Windows()
    async with desk_with(windows.backend, has_session=False) as desk:
        await windows.play(desk, gives_up=True)
    assert windows.got[0]["error"]["code"] == -32601


async def test_it_goes_to_nobody_when_it_does_not_become_clear() -> None:
    windows = Windows()
    async with (
        desk_with(windows.backend, has_session=False, call=20) as desk,
        client_of(desk.server, roots=["file:///one"]) as one,
        client_of(desk.server, roots=["file:///two"]) as two,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(said_by, two, "waits")
        await settled()
        assert await said_by(one, "asks") == "done"
        windows.go_on.set()
    assert windows.got[0]["error"]["code"] == -32601


async def test_what_comes_on_the_stream_of_a_request_belongs_to_its_call() -> None:
    """Each of the two calls asks on its own stream, as over HTTP, and while the other asks, too."""
    meeting = Meeting(3)

    async def answer(call: Call) -> Json:
        await meeting()
        got = await call.wire.ask("roots/list", of=call)
        return text(got["result"]["roots"][0]["uri"])

    backend = FakeBackend(answers={"tools/call": answer})
    answers: dict[str, str] = {}
    async with desk_with(backend, has_session=False) as desk:

        async def use(name: str) -> None:
            async with client_of(desk.server, roots=[f"file:///{name}"]) as client:
                answers[name] = await said_by(client, name)

        async with anyio.create_task_group() as tasks:
            for name in ("one", "two", "three"):
                tasks.start_soon(use, name)
    assert answers == {name: f"file:///{name}" for name in ("one", "two", "three")}
