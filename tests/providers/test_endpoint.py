"""What goes to a remote server with each request, and what of it never shows: headers, identity,
credentials."""

from __future__ import annotations

import base64
import logging
import random
import string
from typing import Any

import pytest
from aiohttp import web

from providers.errors import BackendUnavailable
from providers.identity import Identity
from tests.helpers.http_backend import (
    Seen,
    always,
    answer,
    event_stream,
    http_backend,
    line_to,
    open_line,
    remote,
)
from tests.helpers.ports import dead_port

pytestmark = pytest.mark.core

SECRET = "s3cr3t-canary"
ALICE = Identity("alice@example.com", "Älice, the\nfirst", frozenset({"engineer", "a,b"}))
ALWAYS_SENT = {"host", "user-agent", "accept", "accept-encoding", "content-type", "content-length"}
IDENTITY = {"x-mcp-userid", "x-mcp-username", "x-mcp-roles"}


def invented_headers(count: int) -> dict[str, str]:
    """Headers as a client might send them: some well known, the rest of random names."""
    known = ["Authorization", "Cookie", "X-Mcp-UserId", "x-mcp-roles", "X-MCP-USERNAME", "X-Forwarded-For", "Origin"]
    chance = random.Random(7)
    letters = string.ascii_letters + string.digits + "-_"
    made = {"".join(chance.choices(letters, k=chance.randint(3, 20))): SECRET for _ in range(count)}
    return dict.fromkeys(known, SECRET) | made


async def test_of_what_a_client_sent_nothing_arrives_but_mcps_own() -> None:
    async with http_backend() as backend, line_to(backend, headers={"X-Api-Key": "key"}) as line:
        line.wire.identity = ALICE
        mcp = {"Mcp-Method": "tools/call", "mcp-name": "echo", "Mcp-Param-Region": "north"}
        await line.call(1, headers=invented_headers(200) | mcp)
        names = backend.seen[0].header_names()
        expected = ALWAYS_SENT | IDENTITY | {"x-api-key", "mcp-method", "mcp-name", "mcp-param-region"}
        assert sorted(names) == sorted(expected)  # each of them once
        assert SECRET not in str(backend.seen[0].request.raw_headers)


async def test_the_identity_arrives_encoded() -> None:
    async with http_backend() as backend, line_to(backend) as line:
        line.wire.identity = ALICE
        await line.call(1)
        headers = backend.seen[0].headers
        assert headers["X-Mcp-UserId"] == "alice@example.com"
        assert headers["X-Mcp-UserName"] == "%C3%84lice%2C the%0Afirst"
        assert headers["X-Mcp-Roles"] == "a%2Cb,engineer"


async def test_a_request_that_is_nobodys_has_no_identity() -> None:
    async with http_backend() as backend, line_to(backend) as line:
        await line.call(1)
        assert not IDENTITY & set(backend.seen[0].header_names())


async def test_a_header_that_comes_from_two_sides_is_sent_once() -> None:
    own = {"user-agent": "mine", "accept-ENCODING": "gzip"}
    async with http_backend() as backend, line_to(backend, headers=own) as line:
        await line.call(1, headers={"ACCEPT": "text/html", "Content-TYPE": "text/plain"})
        names, headers = backend.seen[0].header_names(), backend.seen[0].headers
        assert len(names) == len(set(names))
        assert headers["User-Agent"] == "mine"
        assert headers["Accept-Encoding"] == "identity"
        assert headers["Accept"] == "application/json, text/event-stream"
        assert headers["Content-Type"] == "application/json"


async def test_a_header_that_cannot_be_sent_is_an_error() -> None:
    async with http_backend() as backend, line_to(backend) as line:
        await line.ask(1, headers={"Mcp-Name": "a\r\nX-Mcp-UserId: admin"})
        assert "'headers' cannot be used for a request" in await line.inbox.error_for(1)
        assert backend.seen == []


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, "Basic " + base64.b64encode(b"us:er:p@ss").decode()),
        ({"authorization": "Bearer mine"}, "Bearer mine"),
    ],
)
async def test_credentials_in_the_url_become_a_header(headers: dict[str, str], expected: str) -> None:
    async with http_backend("/mcp?key=1") as backend:
        url = backend.url.replace("http://", "http://us%3Aer:p%40ss@")
        async with open_line(remote(url, headers=headers)) as line:
            await line.call(1)
        assert backend.seen[0].headers["Authorization"] == expected
        assert backend.seen[0].header_names().count("authorization") == 1
        assert backend.seen[0].request.raw_path == "/mcp?key=1"


def with_secrets(url: str) -> str:
    return url.replace("http://", f"http://user:{SECRET}@") + f"?key={SECRET}"


async def dropped(seen: Seen) -> web.StreamResponse:
    assert seen.request.transport is not None
    seen.request.transport.close()
    return web.Response()


async def cut(seen: Seen) -> web.StreamResponse:
    return await event_stream(seen, b"data: x")


FAILURES: dict[str, Any] = {
    "status": always(lambda _: web.Response(status=500, text=SECRET)),
    "lost session": always(lambda _: web.Response(status=404, text=SECRET)),
    "html": always(lambda _: web.Response(text=f"<p>{SECRET}", content_type="text/html")),
    "no json": always(lambda _: web.Response(text=SECRET, content_type="application/json")),
    "wrong id": always(lambda _: web.json_response({"id": SECRET, "result": SECRET})),
    "session id": always(lambda seen: web.json_response(answer(seen), headers={"Mcp-Session-Id": f" {SECRET} é"})),
    "redirect": always(lambda _: web.Response(status=307, headers={"Location": f"http://other/{SECRET}"})),
    "dropped": dropped,
    "cut": cut,
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_no_secret_is_in_an_error_or_a_log(failure: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "providers")
    answers = dict.fromkeys(["tools/call", "notifications/progress", "DELETE"], FAILURES[failure])
    async with http_backend(**answers) as backend:
        headers = {"X-Api-Key": SECRET}
        async with open_line(remote(with_secrets(backend.url), headers=headers)) as line:
            await line.call(0, "initialize")
            await line.tell("notifications/progress")
            backend.answers["initialize"] = FAILURES[failure]
            await line.call(1, "tools/call" if failure != "session id" else "initialize")
    assert "error" in line.inbox.messages[1]
    assert SECRET not in str(line.inbox.messages) + str(line.wire.failure) + repr(line.wire) + caplog.text


async def test_no_secret_is_in_the_error_of_a_connection_that_is_not_made() -> None:
    with dead_port() as port:
        async with open_line(remote(with_secrets(f"http://127.0.0.1:{port}/mcp"))) as line:
            await line.ask(1)
            text = await line.inbox.error_for(1)
    assert SECRET not in text
    assert str(port) not in text


async def test_cookies_are_not_kept() -> None:
    def baked(seen: Seen) -> web.Response:
        return web.json_response(answer(seen), headers={"Set-Cookie": "a=b; Path=/"})

    async with http_backend(**{"tools/call": always(baked)}) as backend:
        by_name = backend.url.replace("127.0.0.1", "localhost")  # for an address no cookies are kept in any case
        async with open_line(remote(by_name)) as line:
            await line.call(1)
            await line.call(2)
        assert "cookie" not in backend.seen[1].header_names()


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with dead_port() as port:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        async with http_backend() as backend, line_to(backend) as line:
            assert "result" in await line.call(1)


async def test_a_url_that_cannot_be_used_is_an_error_at_once() -> None:
    unusable = remote("http://127.0.0.1/mcp").model_copy(update={"url": f"http://{SECRET}:99999999/"})
    with pytest.raises(BackendUnavailable, match="server 'docs': its 'url' cannot be used") as caught:
        async with open_line(unusable):
            raise AssertionError("it opened")
    assert caught.value.not_sent
    assert SECRET not in str(caught.value)
