"""What the gateway declares: what a server that this user may read can do, or might, while it is not known."""

from __future__ import annotations

import pytest

from providers import lines
from tests.helpers.fakes import FakeBackend, Json, signed_in
from tests.helpers.house import House, house_of

pytestmark = pytest.mark.skipif(not lines.MODERN, reason="on FastMCP 3.4 the client hears what FastMCP says")


def able(name: str = "fake") -> FakeBackend:
    """A server that can do all."""
    return FakeBackend(name, capabilities={"resources": {"subscribe": True}, "tools": {}, "completions": {}})


async def declared(house: House) -> Json:
    async with house.client() as connected:
        facts: Json = lines.server_facts(connected)["capabilities"]
        return facts


async def test_a_server_that_is_not_known_yet_may_be_able_to_do_anything() -> None:
    async with house_of(able()) as house:
        assert await declared(house) == {
            "tools": {"listChanged": True},
            "resources": {"subscribe": True, "listChanged": True},
            "prompts": {"listChanged": True},
            "completions": {},
            "logging": {},
        }


async def test_once_all_are_known_only_what_one_of_them_can_is_declared() -> None:
    plain = FakeBackend("plain", capabilities={"tools": {}, "resources": {}})
    async with house_of(plain) as house:
        async with house.client() as first:
            await first.list_tools()
        assert await declared(house) == {
            "tools": {"listChanged": True},
            "resources": {"subscribe": False, "listChanged": True},
        }


async def test_nothing_is_declared_for_a_server_that_may_not_be_read() -> None:
    hidden = able("secret").resource().model_copy(update={"required_roles": ("boss",)})
    plain = FakeBackend("plain", capabilities={"tools": {}})
    async with house_of(able("secret"), plain, records=[hidden, plain.resource()], local=None) as house:
        with signed_in("bob"):
            async with house.client() as first:
                await first.list_tools()
            assert await declared(house) == {"tools": {"listChanged": True}}
