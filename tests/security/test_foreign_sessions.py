"""Another user's session is none: whoever names it is answered as if it were random, and its owner notices nothing.

At `/mcp` and at the address of one server, on POST, GET and DELETE, with a session of the other address, too.
"""

from __future__ import annotations

import aiohttp
import anyio
import pytest

from tests.helpers.rpc import HANDSHAKE
from tests.security.house import UNKNOWN_SESSION, Answer, House, Person, house, server

pytestmark = pytest.mark.core

PLACES = (None, "mine")
ATTEMPTS = ("ping", "tools/list", "tools/call", "resources/subscribe", "notifications/cancelled", "initialize")
PARAMS = {"tools/call": {"name": "mine_pid"}, "resources/subscribe": {"uri": "data://mine/greeting"}}


async def tried(person: Person, session_id: str) -> list[Answer]:
    """All that can be done with the id of a session; DELETE last."""
    person.session_id = session_id
    came = [await person.ask(method, dict(PARAMS.get(method, {}))) for method in ATTEMPTS]
    person.more = {"Last-Event-ID": "0-1"}
    came.append(await person.send("GET"))
    person.more = {}
    came += [await person.send(verb) for verb in ("GET", "DELETE")]
    return [each.bare for each in came]


async def begun(made: House, who: str, name: str | None) -> Person:
    owner = made.person(who, name)
    assert (await owner.shake_hands()).status == 200
    return owner


@pytest.mark.parametrize("place", PLACES, ids=["all", "alone"])
@pytest.mark.parametrize("who", ["anonymous", "stranger", "reader", "admin"])
async def test_a_foreign_session_is_like_a_random_one(who: str, place: str | None) -> None:
    async with house(server("mine", "guest")) as made:
        owner = await begun(made, "creator", place)
        assert owner.session_id is not None
        thief = made.person(who, place)
        foreign, random = await tried(thief, owner.session_id), await tried(thief, UNKNOWN_SESSION)
        assert foreign == random
        assert {each.status for each in foreign} <= ({401} if who == "anonymous" else {404})
        assert '"result"' in (await owner.ask("tools/list")).text


@pytest.mark.parametrize("place", PLACES, ids=["all", "alone"])
async def test_the_owners_stream_stays(place: str | None) -> None:
    async with house(server("mine", "guest")) as made:
        owner = await begun(made, "creator", place)
        async with owner.stream("", {}) as stream:
            assert stream.status == 200
            await tried(made.person("reader", place), str(owner.session_id))
            await made.served.gateway.store.upsert(server("mine", "guest", tools={"exclude": ["echo"]}))
            with anyio.fail_after(10):
                assert await _hears(stream)


async def _hears(stream: aiohttp.ClientResponse) -> bool:
    async for line in stream.content:
        if b"list_changed" in line:
            return True
    return False


async def test_a_session_is_good_at_its_own_address_alone() -> None:
    async with house(server("mine", "guest"), server("more", "guest")) as made:
        of_all, of_one = await begun(made, "reader", None), await begun(made, "reader", "mine")
        for session, elsewhere in ((of_all, "mine"), (of_one, None), (of_one, "more")):
            person = made.person("reader", elsewhere)
            assert await tried(person, str(session.session_id)) == await tried(person, UNKNOWN_SESSION)
        for session in (of_all, of_one):
            assert '"result"' in (await session.ask("tools/list")).text


async def test_a_user_with_a_second_token_goes_on() -> None:
    """Sessions belong to users, not to tokens."""
    async with house(server("mine", "guest")) as made:
        owner = await begun(made, "reader", None)
        second = Person(made.http, owner.url, made.file.add("bob", "bob", ["guest"])[0], HANDSHAKE)
        second.session_id = owner.session_id
        assert '"result"' in (await second.ask("tools/list")).text
