"""The npm server-everything, asked for all that it has, answers through the gateway as it does directly.

The script is in `everything_steps`. Answers, questions to the client and notifications are compared step by step, with
the gateway's names put off; the differences that there may be are listed here, each with its reason.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.helpers.clients import HANDSHAKE, HandClient, connect_http, connect_stdio
from tests.helpers.gateway import gateway_over_stdio, gateway_process, patient_toml
from tests.helpers.names import Names
from tests.helpers.processes import ServerCommand
from tests.helpers.reference import everything_over_http
from tests.integration.everything_steps import LISTS, STEPS, Seen, play

pytestmark = pytest.mark.timeout(300)  # the first test that needs a package may have to fetch it

NAMESPACE = "b"

DIFFERENCES = {
    "no-such-tool {}": "the gateway knows what each server has, and refuses by itself what none has",
    "no-such-prompt {}": "the same",
    "no such method": "the gateway refuses by itself, and says in `data` which method that was",
}
"""By step: what differs, and why it must."""

SOMETIMES = {
    "get-roots-list {}": "over HTTP the log line comes on another stream than the answer; when the answer is first, no "
    "call runs any more, and the line is nobody's",
}
"""By step: what may differ in what is told, and why."""


@asynccontextmanager
async def client_of(front: str, toml: str) -> AsyncIterator[HandClient]:
    if front == "http":
        async with gateway_process(toml) as gateway, connect_http(gateway.url, HANDSHAKE) as one:
            yield one
    else:
        async with gateway_over_stdio(toml) as gateway, connect_stdio(gateway.command, gateway.env, HANDSHAKE) as one:
            yield one


@pytest.mark.parametrize("front", ["http", "stdio"])
@pytest.mark.parametrize("transport", ["stdio", "http"])
async def test_all_that_it_has_is_the_same_through_the_gateway(
    transport: str, front: str, everything_server: ServerCommand
) -> None:
    command = everything_server.command
    if transport == "stdio":
        async with connect_stdio([command], os.environ, HANDSHAKE) as one:
            direct = await play(one)
        async with client_of(front, patient_toml({NAMESPACE: {"command": command}})) as one:
            through = await play(one, Names(NAMESPACE))
    else:
        async with everything_over_http(command) as url:
            async with connect_http(url, HANDSHAKE) as one:
                direct = await play(one)
            async with client_of(front, patient_toml({NAMESPACE: {"url": url}})) as one:
                through = await play(one, Names(NAMESPACE))
    assert all_is_asked_for(direct) == []
    different = {
        step: (seen, through[step])
        for step, seen in direct.items()
        if seen != through[step] and not (about(step) in SOMETIMES and is_same_but_told(seen, through[step]))
    }
    unexpected = {step: both for step, both in different.items() if about(step) not in DIFFERENCES}
    assert not unexpected, "\n\n".join(shown(step, *both) for step, both in unexpected.items())
    assert set(DIFFERENCES) == {about(step) for step in different}, "what is no longer different goes from the list"


def about(step: str) -> str:
    """A step without its number."""
    return step.partition(" ")[2]


def is_same_but_told(one: Seen, other: Seen) -> bool:
    return (one.answer, one.asked) == (other.answer, other.asked)


def shown(step: str, direct: Seen, through: Seen) -> str:
    lines = [step]
    for part in ("answer", "asked", "told"):
        one, other = getattr(direct, part), getattr(through, part)
        if one != other:
            lines += [f"  {part}, directly:            {one}", f"  {part}, through the gateway: {other}"]
    return "\n".join(lines)


def all_is_asked_for(direct: dict[str, Seen]) -> list[str]:
    """What the server lists and no step asks for."""
    asked = str([step.params for step in STEPS])
    return [
        str(item[key])
        for seen in direct.values()
        for kind, key in LISTS.items()
        if isinstance(seen.answer, dict)
        for item in seen.answer.get(kind, [])
        if f"'{item[key]}'" not in asked and "/static/" not in item[key]
    ]
