"""What is kept for streams that broke: for whom, how much, how long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from composition.replay import ReplayLimits, ReplayStore
from providers.lines import MODERN

pytestmark = pytest.mark.skipif(not MODERN, reason="streams are taken up on FastMCP 4.x alone")

A, B = "3:aaa:", "3:bbb:"


def message(text: str = "x") -> Any:
    return SimpleNamespace(result={"text": text})


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def store(**limits: Any) -> tuple[ReplayStore, Clock]:
    clock = Clock()
    return ReplayStore(ReplayLimits(**limits), clock), clock


async def replayed(kept: ReplayStore, last: str) -> tuple[str | None, list[Any]]:
    events: list[Any] = []

    async def send(event: Any) -> None:
        events.append(event)

    return await kept.replay_events_after(last, send), events


async def test_what_came_after_an_event_of_its_stream_is_sent_again_in_order() -> None:
    kept, _ = store()
    first = await kept.store_event(A + "1", None)
    sent = [message(str(number)) for number in range(3)]
    ids = [await kept.store_event(A + "1", each) for each in sent]
    await kept.store_event(A + "2", message("of another stream"))
    stream, events = await replayed(kept, first)
    assert stream == A + "1" and [event.message for event in events] == sent
    assert [event.event_id for event in events] == ids
    assert (await replayed(kept, ids[2])) == (A + "1", [])


@pytest.mark.parametrize("unknown", ["", "-", "0", "x-0", "-0", "aaa-0", "\N{SNOWMAN}"])
async def test_an_unknown_event_is_after_nothing(unknown: str) -> None:
    kept, _ = store()
    event = await kept.store_event(A + "1", message())
    assert await replayed(kept, unknown) == (None, [])
    assert await replayed(kept, event + "0") == (None, [])


async def test_ids_of_one_session_tell_nothing_of_another() -> None:
    kept, _ = store()
    ids = [await kept.store_event(prefix + "1", message()) for prefix in (A, B, A)]
    tags = [event.partition("-")[0] for event in ids]
    assert tags[0] == tags[2] != tags[1] and "aaa" not in ids[0]
    assert [event.partition("-")[2] for event in ids] == ["0", "0", "1"]


async def test_a_request_id_cannot_pass_for_a_session() -> None:
    kept, _ = store(per_session=10_000)
    for number in range(100):
        await kept.store_event(f"{A}{number}:3:zz{number}:", message("x" * 1000))
    assert kept.size <= 10_000 and repr(kept).startswith("<ReplayStore 1 sessions")


async def test_a_session_holds_only_so_much_and_all_together_too() -> None:
    kept, _ = store(per_session=10_000, in_all=25_000)
    for prefix in (A, B, "3:ccc:"):
        ids = [await kept.store_event(prefix + "1", message("x" * 1000)) for _ in range(20)]
        assert await replayed(kept, ids[0]) == (None, [])
        assert len((await replayed(kept, ids[-2]))[1]) == 1
        assert kept.size <= 25_000
    assert len(kept) < 20


async def test_what_is_too_large_to_keep_makes_its_stream_unknown_and_no_other() -> None:
    kept, _ = store(per_session=10_000)
    first, other = await kept.store_event(A + "1", None), await kept.store_event(A + "2", None)
    await kept.store_event(A + "1", message("x" * 100_000))
    await kept.store_event(A + "2", message())
    assert await replayed(kept, first) == (None, [])
    assert len((await replayed(kept, other))[1]) == 1


async def test_what_is_old_goes_when_anything_new_comes() -> None:
    kept, clock = store(age=300)
    old = [await kept.store_event(A + str(number), message()) for number in range(50)]
    clock.now = 301
    await kept.store_event(B + "1", message())
    assert len(kept) == 1 and await replayed(kept, old[-1]) == (None, [])


async def test_messages_of_any_shape_are_measured() -> None:
    kept, _ = store(per_session=5_000)
    deep: Any = "x"
    for _ in range(3_000):
        deep = [deep]
    for odd in (deep, {"a": [1, None, 2.5, True]}, [], "", {str(number): number for number in range(1_000)}):
        await kept.store_event(A + "1", SimpleNamespace(params=odd))
        await kept.store_event(A + "1", SimpleNamespace(error=SimpleNamespace(message="m")))
    assert kept.size <= 5_000
