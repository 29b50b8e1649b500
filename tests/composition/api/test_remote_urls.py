"""Addresses of remote servers: what leads inside is refused before a socket opens, and again at each connect."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

from composition.api.problems import Refusal
from composition.api.remote_urls import check_url
from providers.addresses import AddressRules
from providers.endpoint import http_client
from tests.helpers.api import SHARED, Rest, rest_api
from tests.helpers.people import window
from tests.helpers.processes import eventually

PUBLIC = "93.184.216.34"
NAMES = {
    "public.example": [PUBLIC],
    "mixed.example": [PUBLIC, "10.0.0.1"],
    "private.example": ["192.168.0.1"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "nat64.example": ["64:ff9b::a9fe:a9fe"],
    "metadata.google.internal": ["169.254.169.254"],
    "localhost": ["::1", "127.0.0.1"],
    "nothing.example": [],
}
INSIDE = [
    "http://169.254.169.254/latest/meta-data/",
    "https://169.254.169.254/",
    "https://[::ffff:127.0.0.1]/",
    "https://[64:ff9b::a9fe:a9fe]/",
    "https://[2002:7f00:1::]/",
    "https://2130706433/",
    "https://0x7f.1/",
    "https://127.1/",
    "https://localhost/",
    "https://localhost./",
    "https://LOCALHOST:8808/mcp",
    "https://u:p@public.example/",
    "https://metadata.google.internal/",
    *(f"https://{name}/" for name in NAMES if name != "public.example"),
    "http://public.example/",
    "https://0.0.0.0/",
    "https://[::]/",
]


@contextmanager
def answering(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], list[str]]) -> Iterator[list[tuple[Any, ...]]]:
    """Host names have these addresses; the block gets the sockets that were made meanwhile."""
    real, made = socket.getaddrinfo, []

    def look_up(host: Any, port: Any, *args: Any, **named: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        try:
            socket.inet_pton(socket.AF_INET6 if ":" in name else socket.AF_INET, name)
            return real(host, port, *args, **named)
        except OSError:
            found = answer(name)
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [entry for address in found for entry in real(address, port, *args, **named)]

    class Counted(socket.socket):
        def __init__(self, *args: Any, **named: Any) -> None:
            made.append(args)
            super().__init__(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", look_up)
        patch.setattr(socket, "socket", Counted)
        yield made


@pytest.mark.parametrize("url", INSIDE)
async def test_what_leads_inside_is_refused_before_a_socket_opens(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(monkeypatch, lambda name: NAMES.get(name, [])) as made:
        with pytest.raises(Refusal) as refused:
            await check_url(url, AddressRules())
        assert [each.key for each in refused.value.errors] == ["url"]
        assert made == []


async def test_what_is_public_may_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(monkeypatch, lambda name: NAMES.get(name, [])):
        await check_url("https://public.example/mcp", AddressRules())
        await check_url("http://private.example/mcp", AddressRules(["192.168.0.0/16"]))


async def test_the_answer_does_not_tell_which_names_the_network_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    said = set()
    with answering(monkeypatch, lambda name: NAMES.get(name, [])):
        for name in ("private.example", "nothing.example", "mixed.example"):
            with pytest.raises(Refusal) as refused:
                await check_url(f"https://{name}/", AddressRules())
            said.add(str(refused.value.errors))
    assert len(said) == 1


async def test_every_connect_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether an address is looked up or not."""
    with answering(monkeypatch, lambda name: ["127.0.0.1", "::1"]):
        async with http_client(within=AddressRules()) as client:
            for host in ("127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "name.example", "0.0.0.0"):
                with pytest.raises(OSError, match="no address that it may have"):
                    await client.get(f"http://{host}:9/")


@pytest.fixture
async def rest() -> AsyncIterator[Rest]:
    async with rest_api(SHARED, allowed_networks=["10.0.0.0/8"]) as rest:
        yield rest


async def test_a_name_that_changes_its_answer_is_refused_at_connect(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, visits = iter([[PUBLIC]]), []
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:

        async def visited(stream: anyio.abc.ByteStream) -> None:
            visits.append(stream)
            await stream.aclose()

        tasks.start_soon(listener.serve, visited)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        with answering(monkeypatch, lambda name: next(answers, ["127.0.0.1"])):
            body = {"name": "flip", "url": f"https://flip.example:{port}/mcp"}
            assert (await rest("POST", "/adapters", body)).status == 201
            await eventually(lambda: "flip" in rest.gateway.registry.mounts)
            async with window(rest.served.url) as ada:
                answer = await ada.connection.call_tool("flip_anything", {}, raise_on_error=False)
        assert "servers of the API may not have" in answer.content[0].text
        tasks.cancel_scope.cancel()
    assert visits == []


async def test_servers_of_the_file_go_where_the_operator_says(rest: Rest) -> None:
    async with window(rest.served.url) as ada:
        assert await ada.call("everything_echo", text="hello") == "hello"


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "https://localhost/mcp", "https://10.0.0.1:0/"])
async def test_a_write_that_leads_inside_is_refused(rest: Rest, url: str) -> None:
    reply = await rest("POST", "/adapters", {"name": "inside", "url": url})
    assert (reply.status, reply.wrong) == (400, ["url"])
    await rest.made(name="outside", url="http://10.0.0.1/mcp")
    for method in ("PUT", "PATCH"):
        assert (await rest(method, "/adapters/outside", {"url": url})).status == 400
    assert (await rest("PATCH", "/adapters/outside", {"isEnabled": False, "url": url})).status == 400
