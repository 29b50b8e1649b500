"""Room for containers: for each who waits one idle container is stopped, and no more."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest

from providers.container_slots import Slot, Slots
from providers.errors import PoolExhausted
from tests.helpers.fakes import no_waiting, settled

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


class Idle:
    """Idle containers, each with its slot; `leaving` are those that were asked to stop."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.leaving: list[Slot] = []

    def stop_one(self) -> bool:
        if not self.slots:
            return False
        self.leaving.append(self.slots.pop(0))
        self.leaving[-1].leave()
        return True


async def full(most: int) -> tuple[Slots, Idle]:
    idle = Idle()
    slots = Slots(most, idle.stop_one)
    idle.slots = [await slots.take("idle", str(number), 1) for number in range(most)]
    return slots, idle


async def test_for_each_who_waits_one_container_is_stopped() -> None:
    slots, idle = await full(5)
    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(slots.take, "new", str(number), 5)
        await settled()
        assert len(idle.leaving) == 3
        for slot in idle.leaving:
            slots.free(slot)
    assert len(idle.slots) == 2


async def test_a_container_that_is_being_stopped_already_is_waited_for() -> None:
    slots, idle = await full(2)
    idle.slots[0].leave()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(slots.take, "new", "a", 5)
        await settled()
        assert not idle.leaving
        slots.free(idle.slots[0])


async def test_one_that_does_not_stop_is_not_counted_on_for_ever() -> None:
    slots, idle = await full(2)
    stuck = idle.slots.pop(0)
    stuck.leave()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(slots.take, "new", "a", 5)
        with anyio.fail_after(4):
            while not idle.leaving:  # noqa: ASYNC110  # nobody tells
                await anyio.sleep(0.05)
        slots.free(idle.leaving[0])


async def test_when_all_are_in_use_the_caller_hears_of_it() -> None:
    slots = Slots(1, lambda: False)
    await slots.take("busy", "a", 1)
    with pytest.raises(PoolExhausted, match="all 1 containers are in use; raise max_containers"):
        await slots.take("new", "b", 1)


async def test_a_slot_is_freed_once() -> None:
    slots = Slots(1, lambda: False)
    slot = await slots.take("busy", "a", 1)
    slots.free(slot)
    slots.free(slot)
    assert repr(slots) == "<Slots 0/1 taken, 0 wanted>"
