"""The wire to a local process: messages, floods and sending, against real processes that behave badly."""

from __future__ import annotations

import logging
import os
import re
import signal

import anyio
import pytest

from providers.errors import BackendProtocolError, BackendTimeout, BackendUnavailable
from providers.stdio import stdio_wire
from providers.wire import NOT_SENT, Message
from tests.helpers.processes import eventually, is_running
from tests.helpers.raw import MEBIBYTE, PeakMemory, all_gone, failure_of, opened, pids_of, request, script

# ------------------------------------------------------------------------------------------------------------ messages


async def test_a_message_comes_back_as_it_was_sent() -> None:
    params = {"text": "line\nbreak, ünïcödé, \u2028, \u0000", "deep": [{"n": 1.5, "none": None}]}
    async with opened(script("raw_echo.py")) as (wire, inbox):
        await wire.send(request("echo", params), {})
        assert (await inbox.next())["result"] == params
        assert wire.identity_in_meta
        assert re.fullmatch(r"<StdioWire raw pid=\d+ open>", repr(wire))
    assert wire.failure is None
    assert repr(wire).endswith("closed>")


async def test_lines_of_a_hundred_senders_do_not_interleave() -> None:
    async with opened(script("raw_echo.py")) as (wire, inbox), anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(wire.send, request("echo", f"{number}" * 5_000, number), {})
        answers = [await inbox.next() for _ in range(100)]
    assert {answer["id"]: answer["result"] for answer in answers} == {n: f"{n}" * 5_000 for n in range(100)}


async def test_a_message_may_be_as_long_as_the_cap() -> None:
    async with opened(script("raw_echo.py")) as (wire, inbox):
        text = "x" * (15 * MEBIBYTE)
        await wire.send(request("echo", text), {})
        assert (await inbox.next())["result"] == text


async def test_a_message_that_comes_byte_by_byte_is_one_message() -> None:
    async with opened(script("raw_noise.py", "single_bytes")) as (_, inbox):
        assert (await inbox.next())["result"] == "pong"


async def test_what_is_no_json_object_is_dropped_counted_and_logged_once_without_its_content(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with opened(script("raw_noise.py", "garbage")) as (wire, inbox):
        assert (await inbox.next())["result"] == "pong"
        assert wire.dropped_lines == 6
        assert not wire.closed.is_set()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "'raw'" in warnings[0]
    assert "Listening" not in caplog.text


async def test_text_that_was_cut_within_a_character_is_repaired() -> None:
    async with opened(script("raw_noise.py", "damaged_text")) as (_, inbox):
        assert await inbox.next() == {"id": 1, "bytes": "caf\ufffd", "half": "?"}


async def test_a_flood_arrives_whole_in_order_and_lets_others_run() -> None:
    turns = 0

    async def other_work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with opened(script("raw_noise.py", "flood")) as (_, inbox), anyio.create_task_group() as tasks:
        tasks.start_soon(other_work)
        received = [(await inbox.next())["params"]["data"] for _ in range(20_000)]
        tasks.cancel_scope.cancel()
    assert received == list(range(20_000))
    assert turns > 100


async def test_back_pressure_reaches_the_process() -> None:
    delivered = 0
    go_on = anyio.Event()

    async def slow(_: Message) -> None:
        nonlocal delivered
        delivered += 1
        if delivered == 1:
            await go_on.wait()

    async with stdio_wire(script("raw_noise.py", "flood"), slow):
        await eventually(lambda: delivered == 1)
        go_on.set()
        await eventually(lambda: delivered == 20_000)


async def test_a_session_that_is_gone_does_not_hold_up_the_end() -> None:
    async def gone(_: Message) -> None:
        raise anyio.BrokenResourceError

    async with stdio_wire(script("raw_noise.py", "flood"), gone) as wire:
        pass
    assert wire.failure is None


async def test_a_fault_of_the_session_fails_the_wire_and_not_its_user() -> None:
    async def broken(_: Message) -> None:
        raise KeyError("secret")

    async with stdio_wire(script("raw_noise.py", "single_bytes"), broken) as wire:
        assert "could not be handled" in await failure_of(wire)


# --------------------------------------------------------------------------------------------------------------- floods


@pytest.mark.parametrize("noise", ["big_line", "endless_line"])
async def test_a_line_beyond_the_cap_fails_the_wire_within_bounded_memory(noise: str) -> None:
    with PeakMemory() as peak:
        async with opened(script("raw_noise.py", noise)) as (wire, _):
            assert "sent a line of more than 16 MiB" in await failure_of(wire)
            assert isinstance(wire.failure, BackendProtocolError)
            assert repr(wire).endswith("failed>")
            with pytest.raises(BackendUnavailable, match="16 MiB"):
                await wire.send(request("echo"), {})
    assert peak.growth < 64 * MEBIBYTE


async def test_endless_blank_lines_cost_no_memory_and_let_the_wire_end() -> None:
    with PeakMemory() as peak:
        async with opened(script("raw_noise.py", "blank_lines"), shutdown=1) as (wire, _):
            for _ in range(1_000):
                await anyio.lowlevel.checkpoint()
            assert not wire.closed.is_set()
    assert peak.growth < 64 * MEBIBYTE


# -------------------------------------------------------------------------------------------------------------- sending


async def test_a_process_that_never_reads_blocks_no_cancellation_and_fails_in_the_end() -> None:
    resource = script("raw_stubborn.py", timeouts={"call": 1})
    async with opened(resource) as (wire, inbox):
        pids = await pids_of(inbox)
        with anyio.move_on_after(0.1) as patience:
            for _ in range(100):
                await wire.send(request("echo", "x" * MEBIBYTE), {})
        assert patience.cancelled_caught
        assert not wire.closed.is_set()
        with pytest.raises(BackendUnavailable, match="has not read its input for 1 s") as caught:
            await wire.send(request("echo"), {})
        assert caught.value.not_sent
        assert isinstance(wire.failure, BackendTimeout)
        await all_gone(pids)


async def test_a_cancelled_sender_leaves_no_half_line_behind() -> None:
    async with opened(script("raw_echo.py")) as (wire, inbox):
        for number in range(50):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(wire.send, request("echo", "x" * 300_000, number), {})
                    for _ in range(number % 5):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()
        await wire.send(request("echo", "last", "last"), {})
        while (answer := await inbox.next())["id"] != "last":
            assert answer["result"] == "x" * 300_000
        assert answer["result"] == "last"


async def test_sending_to_a_dead_process_says_that_nothing_was_sent() -> None:
    async with opened(script("raw_echo.py")) as (wire, inbox):
        await wire.send(request("die"), {})
        assert "killed by signal 9" in await failure_of(wire)
        with pytest.raises(BackendUnavailable) as caught:
            await wire.send(request("echo"), {})
        assert caught.value.not_sent
        assert inbox.waiting == 0


async def test_a_request_that_no_process_read_is_answered_as_not_sent() -> None:
    async with opened(script("raw_echo.py")) as (wire, inbox):
        await wire.send(request("where"), {})
        pid = (await inbox.next())["result"]["pid"]
        os.kill(pid, signal.SIGKILL)
        while is_running(pid):  # without giving the event loop a turn: it has not noticed yet
            pass
        await wire.send(request("echo", "hello", 7), {})
        answer = await inbox.next()
        assert answer["id"] == 7
        assert answer["error"]["data"] == {NOT_SENT: True}
        assert "ended before it read" in answer["error"]["message"]
        await failure_of(wire)


async def test_sending_after_the_block_says_that_nothing_was_sent() -> None:
    async with opened(script("raw_echo.py")) as (wire, _):
        pass
    with pytest.raises(BackendUnavailable, match="has ended") as caught:
        await wire.send(request("echo"), {})
    assert caught.value.not_sent


async def test_what_was_sent_just_before_the_end_still_arrives() -> None:
    async with opened(script("raw_echo.py")) as (wire, inbox):
        await wire.send(request("where"), {})
        await inbox.next()
        await wire.send({"jsonrpc": "2.0", "method": "say", "params": {"text": "farewell"}}, {})
    assert "farewell" in wire._stderr.last_words()
