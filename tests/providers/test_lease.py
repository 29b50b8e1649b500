"""A lease: checked before reuse, tried once more only when nothing was sent, dead once it was given back."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest

from providers.errors import BackendError, BackendTimeout, BackendUnavailable, LeaseReleased
from providers.lease import current_lease, lease
from providers.wire import Message, error_answer
from tests.helpers.fakes import (
    Call,
    FakeBackend,
    FakeWire,
    Json,
    Refusal,
    Silence,
    caller_of,
    never,
    no_waiting,
    pool_of,
    settled,
    text,
    time_passes,
)

pytestmark = pytest.mark.core

CALL: Json = {"name": "echo", "arguments": {"text": "hi"}}
QUIET = {"health_interval": 10_000, "idle_timeout": 10_000, "max_lifetime": 10_000}
"""The pool by itself asks nothing and closes nothing."""
FIRST, SECOND = caller_of(session="session:1"), caller_of(session="session:2")


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


# ------------------------------------------------------------------------------- given back


async def test_a_released_lease_is_dead() -> None:
    async with pool_of(**QUIET) as pool:
        async with lease(pool, FakeBackend().target(), FIRST) as held:
            assert repr(held) == "<Lease fake open>"
        assert repr(held) == "<Lease fake released>"
        with pytest.raises(LeaseReleased, match="server 'fake': this lease was given back"):
            await held.request("ping", {})
        with pytest.raises(LeaseReleased):
            _ = held.session


async def test_giving_back_twice_is_giving_back_once() -> None:
    async with pool_of(**QUIET) as pool:
        async with lease(pool, FakeBackend().target(), FIRST) as held:
            held.close()
            held.close()
        assert pool.statistics().leases == 0


async def test_outside_of_a_call_there_is_no_lease() -> None:
    with pytest.raises(LeaseReleased, match="outside of a call"):
        current_lease()


@pytest.mark.parametrize("error", [RuntimeError("in the caller"), KeyboardInterrupt(), BackendTimeout("fake", "slow")])
async def test_whatever_goes_wrong_in_a_call_its_connection_is_given_back(error: BaseException) -> None:
    async with pool_of(**QUIET) as pool:
        with pytest.raises(type(error)):
            async with lease(pool, FakeBackend().target(), FIRST):
                raise error
        assert pool.statistics().leases == 0 and pool.statistics().idle == 1


# ------------------------------------------------------------------------------- before reuse


async def test_a_connection_that_was_idle_for_long_is_asked_before_it_is_used_again() -> None:
    async with pool_of(**QUIET) as pool:
        backend = FakeBackend()
        for pause, pings in ((0, 0), (29, 0), (31, 1), (5, 1)):
            await time_passes(pause)
            async with lease(pool, backend.target(), FIRST) as held:
                await held.request("tools/call", CALL)
            assert backend.count("ping") == pings
        assert len(backend.wires) == 1


async def test_one_that_does_not_answer_any_more_is_replaced_and_the_call_goes_through() -> None:
    async with pool_of(**QUIET) as pool:
        backend = FakeBackend(answers={"ping": never})
        async with lease(pool, backend.target(), FIRST):
            pass
        await time_passes(31)
        began = anyio.current_time()
        async with lease(pool, backend.target(), FIRST) as held:
            await held.request("tools/call", CALL)
        assert anyio.current_time() - began == pytest.approx(2)
        await settled()
        assert len(backend.wires) == 2 and backend.open == 1


async def test_an_error_is_an_answer_too() -> None:
    async with pool_of(**QUIET) as pool:
        backend = FakeBackend(answers={"ping": refuses})
        for pause in (0, 31):
            await time_passes(pause)
            async with lease(pool, backend.target(), FIRST):
                pass
        assert len(backend.wires) == 1 and backend.count("ping") == 1


async def refuses(call: Call) -> Json:
    raise Refusal(-32601, "Method not found")


async def test_who_gives_up_during_the_check_leaves_the_connection_as_it_was() -> None:
    async with pool_of(**QUIET) as pool:
        backend = FakeBackend()
        async with lease(pool, backend.target(), FIRST):
            pass
        await time_passes(31)
        backend.answers["ping"] = never
        with anyio.move_on_after(1):
            async with lease(pool, backend.target(), FIRST):
                raise AssertionError("the ping is not answered")
        assert pool.statistics().leases == 0 and pool.statistics().idle == 1
        del backend.answers["ping"]
        async with lease(pool, backend.target(), FIRST) as held:
            await held.request("tools/call", CALL)
        assert len(backend.wires) == 1


async def test_a_connection_in_use_is_not_doubted() -> None:
    """A backend that does one thing at a time answers no ping while it works; its session goes on."""
    async with pool_of(**QUIET) as pool:
        backend = FakeBackend(answers={"ping": never})
        async with lease(pool, backend.target(), FIRST) as long_call:
            await time_passes(100)
            async with lease(pool, backend.target(), FIRST) as second:
                assert second.session is long_call.session
        assert backend.count("ping") == 0


async def test_a_backend_that_stays_silent_is_given_up_with_a_clear_error() -> None:
    backend = FakeBackend(answers={"ping": never})
    async with pool_of(check_after=-1) as suspicious:
        with pytest.raises(BackendUnavailable, match="server 'fake': does not answer"):
            async with lease(suspicious, backend.target(), FIRST):
                pass
        assert suspicious.statistics().leases == 0


# ------------------------------------------------------------------------------- once more


async def test_what_was_not_sent_is_sent_once_more_on_a_new_connection() -> None:
    async with pool_of(**QUIET) as pool:
        backend = FakeBackend(before_send=loses("tools/call", 1))
        async with lease(pool, backend.target(), FIRST) as held:
            answer = await held.request("tools/call", CALL)
        assert answer["content"] == text("hi")["content"]
        assert len(backend.wires) == 2 and pool.statistics().leases == 0


async def test_what_was_not_sent_twice_fails() -> None:
    async with pool_of(**QUIET) as pool:
        backend = FakeBackend(before_send=loses("tools/call", 10))
        with pytest.raises(BackendUnavailable, match="did not take it"):
            async with lease(pool, backend.target(), FIRST) as held:
                await held.request("tools/call", CALL)
        assert len(backend.wires) == 2 and pool.statistics().leases == 0


def loses(method: str, times: int) -> object:
    """A hook under which the first requests of a method provably do not reach the backend."""
    left = [times]

    async def hook(wire: FakeWire, message: Message) -> None:
        if message.get("method") == method and left[0]:
            left[0] -= 1
            raise BackendUnavailable(wire.server, "did not take it.", not_sent=True)

    return hook


async def test_an_answer_of_the_wire_that_says_not_sent_is_tried_again_too() -> None:
    async with pool_of(**QUIET) as pool:

        async def answer(call: Call) -> Json:
            if len(backend.wires) == 1:
                await call.wire.deliver(error_answer(call.id, BackendUnavailable("fake", "refused.", not_sent=True)))
                raise Silence
            return text("second")

        backend = FakeBackend(answers={"tools/call": answer})
        async with lease(pool, backend.target(), FIRST) as held:
            assert (await held.request("tools/call", CALL))["content"] == text("second")["content"]


async def test_what_may_have_been_sent_is_never_sent_again() -> None:
    async with pool_of(**QUIET) as pool:

        async def crash(call: Call) -> Json:
            call.wire.die()
            raise Silence

        backend = FakeBackend(answers={"tools/call": crash})
        with pytest.raises(BackendUnavailable, match="has crashed") as failure:
            async with lease(pool, backend.target(), FIRST) as held:
                await held.request("tools/call", CALL)
        assert not failure.value.not_sent and backend.count("tools/call") == 1


async def test_after_a_crash_the_lease_still_counts_once() -> None:
    async with pool_of(**QUIET) as pool:
        backend = FakeBackend()
        async with lease(pool, backend.target(), FIRST) as held:
            backend.wire.die()
            await settled()
            await held.request("tools/call", CALL)  # provably not sent: the wire was dead before
        assert pool.statistics().leases == 0 and backend.open == 1


# ------------------------------------------------------------------------------- too slow


async def test_after_a_timeout_a_hung_backend_is_ended_and_the_next_call_gets_a_new_one() -> None:
    async with pool_of(**QUIET) as pool:
        backend = FakeBackend(answers={"tools/call": never, "ping": never})
        target = backend.target(timeouts={"call": 7})
        with pytest.raises(BackendTimeout, match="no answer to 'tools/call' within 7 s"):
            async with lease(pool, target, FIRST) as held:
                await held.request("tools/call", CALL)
        await time_passes(3)
        assert backend.open == 0
        backend.answers.clear()
        async with lease(pool, target, FIRST) as held:
            await held.request("tools/call", CALL)


async def test_after_a_timeout_a_backend_that_is_alive_keeps_its_session() -> None:
    async with pool_of(**QUIET) as pool:
        backend = FakeBackend(answers={"tools/call": never})
        with pytest.raises(BackendTimeout):
            async with lease(pool, backend.target(), FIRST) as held:
                await held.request("tools/call", CALL)
        await time_passes(3)
        assert backend.open == 1 and backend.count("ping") == 1


async def test_an_error_answer_counts_as_life() -> None:
    """What the backend says is not held against it: its earlier failures are forgotten with any answer."""
    async with pool_of(**QUIET) as pool:
        backend = FakeBackend(answers={"tools/call": refuses})
        pool.backoff.failed(backend.target().key, BackendUnavailable("fake", "x"), 30)
        async with lease(pool, backend.target(), FIRST) as held:
            with pytest.raises(Exception, match="Method not found"):
                await held.request("tools/call", CALL)
        pool.backoff.failed(backend.target().key, BackendUnavailable("fake", "x"), 30)
        assert pool.backoff.rests_for(backend.target().key) == 0


async def test_errors_of_a_lease_name_the_server() -> None:
    async with pool_of(**QUIET) as pool:
        backend = FakeBackend("files", answers={"initialize": refuses})
        with pytest.raises(BackendError, match=r"^server 'files': refused 'initialize'"):
            async with lease(pool, backend.target(), SECOND):
                pass
