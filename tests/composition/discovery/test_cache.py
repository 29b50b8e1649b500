"""Documents from the web: fetched once, asked for again with their ETag, and kept for when their server fails."""

from __future__ import annotations

import ssl
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web

from composition.discovery.cache import Document, DocumentCache, DocumentUnavailable, cache_folder, check_address
from providers.errors import ConfigurationError
from tests.helpers.certificates import authority
from tests.helpers.site import Site, serving

pytestmark = pytest.mark.core


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving(Site()) as site:
        yield site


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "documents"


def text(content: bytes) -> str:
    if content.startswith(b"bad"):
        raise ValueError("it is bad")
    return content.decode()


def copies_in(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.exists() else []


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def asking(folder: Path, **options: Any) -> DocumentCache:
    return DocumentCache(folder, **{"fresh_for": 0, "timeout": 5, **options})


async def test_a_document_is_fetched_and_a_fresh_copy_is_not_fetched_again(site: Site, folder: Path) -> None:
    cache = asking(folder, fresh_for=60)
    assert await cache.get(site.url, text) == await asking(folder, fresh_for=60).get(site.url, text) == Document("one")
    assert len(site.asked) == 1


async def test_what_has_not_changed_is_not_sent_again(site: Site, folder: Path) -> None:
    await asking(folder).get(site.url, text)
    assert await asking(folder).get(site.url, text) == Document("one")
    assert site.asked[1]["If-None-Match"] == '"1"'


async def test_what_has_changed_replaces_the_copy(site: Site, folder: Path) -> None:
    await asking(folder).get(site.url, text)
    site.body, site.headers = b"two", {"ETag": '"2"'}
    assert await asking(folder).get(site.url, text) == Document("two")
    assert await asking(folder, fresh_for=60).get(site.url, text) == Document("two")


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [(500, b"", "answered HTTP 500"), (200, b"bad", "it is bad"), (200, b"x" * 101, "more than 100 bytes")],
)
async def test_a_failing_server_leaves_the_last_good_copy(
    site: Site, folder: Path, status: int, body: bytes, told: str
) -> None:
    await asking(folder).get(site.url, text)
    site.status, site.body, site.headers = status, body, {"ETag": '"2"'}
    document = await asking(folder, max_bytes=100).get(site.url, text)
    assert document.value == "one"
    assert document.note is not None and told in document.note and "This is the copy of 20" in document.note


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [(500, b"", "answered HTTP 500"), (200, b"bad", "it is bad"), (200, b"x" * 101, "more than 100 bytes")],
)
async def test_without_a_copy_a_failure_is_told(site: Site, folder: Path, status: int, body: bytes, told: str) -> None:
    site.status, site.body = status, body
    with pytest.raises(DocumentUnavailable, match=told):
        await asking(folder, max_bytes=100).get(site.url + "?key=SECRET", text)
    assert copies_in(folder) == []


async def test_a_document_that_is_gone_is_not_served_from_its_copy(site: Site, folder: Path) -> None:
    await asking(folder).get(site.url, text)
    site.status, site.headers = 404, {}
    with pytest.raises(DocumentUnavailable, match="HTTP 404") as caught:
        await asking(folder).get(site.url, text)
    assert caught.value.is_missing
    assert (await asking(folder).get(site.url, text, outlives=True)).value == "one"


async def test_a_server_that_is_away_leaves_the_copy_and_secrets_of_the_address_are_not_told(folder: Path) -> None:
    async with serving(Site()) as site:
        url = site.url + "?key=SECRET"
        await asking(folder).get(url, text)
    document = await asking(folder).get(url, text)
    assert document.value == "one"
    assert document.note is not None and "no connection" in document.note and "SECRET" not in document.note


async def test_a_body_without_an_end_is_cut(site: Site, folder: Path) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 4096)

    site.answer = endless  # type: ignore[method-assign]
    async with serving(site):
        with pytest.raises(DocumentUnavailable, match="holds more than 100,000 bytes"):
            await asking(folder, max_bytes=100_000).get(site.url, text)


async def test_a_slow_body_is_given_up(folder: Path) -> None:
    released = anyio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x")
        await released.wait()
        return response

    site = Site()
    site.answer = slow  # type: ignore[method-assign]
    async with serving(site):
        with pytest.raises(DocumentUnavailable, match=r"did not answer in full within 0\.2 seconds"):
            await asking(folder, timeout=0.2).get(site.url, text)
        released.set()


@pytest.mark.parametrize("target", ["http://localhost:1/x", "http://example.com/", "file:///etc/passwd"])
async def test_nobody_leads_us_away_from_https(site: Site, folder: Path, target: str) -> None:
    site.status, site.headers = 302, {"Location": target}
    with pytest.raises(DocumentUnavailable, match="leads to an address that is not https"):
        await asking(folder).get(site.url, text)


async def test_redirects_end(site: Site, folder: Path) -> None:
    site.status, site.headers = 302, {"Location": "http://127.0.0.1:1/other"}
    site.headers = {"Location": site.url}
    with pytest.raises(DocumentUnavailable, match="without an end"):
        await asking(folder).get(site.url, text)
    assert len(site.asked) == 4


async def test_over_tls_only_whom_we_trust_is_read(folder: Path, tmp_path: Path) -> None:
    written = authority().write(tmp_path / "site", "site")
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(written / "cert.pem", written / "key.pem")
    async with serving(Site(), theirs) as site:
        with pytest.raises(DocumentUnavailable, match="not one that we trust"):
            await asking(folder).get(site.url, text)
        ours = ssl.create_default_context(cafile=str(written / "ca.pem"))
        assert (await asking(folder, tls=ours).get(site.url, text)).value == "one"


@pytest.mark.parametrize("damage", [b"", b"{}\n", b"[]\nxx", b"\xff\xff", b'{"url": 1}\nx'])
async def test_a_damaged_copy_is_no_copy(site: Site, folder: Path, damage: bytes) -> None:
    await asking(folder).get(site.url, text)
    (copy,) = copies_in(folder)
    copy.write_bytes(damage)
    assert await asking(folder, fresh_for=60).get(site.url, text) == Document("one")
    assert len(site.asked) == 2


async def test_copies_are_for_us_alone_and_not_endless(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("composition.discovery.cache._MOST_COPIES", 2)
    for number in range(4):
        await asking(folder).get(f"{site.url}?{number}", text)
    copies = copies_in(folder)
    assert len(copies) == 2
    assert {mode(copy) for copy in copies} == {0o600}
    assert mode(folder) == 0o700


async def test_a_folder_that_cannot_be_written_costs_the_copy_alone(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert (await asking(tmp_path / "file" / "documents").get(site.url, text)).value == "one"
    assert "could not be kept" in caplog.text


@pytest.mark.parametrize(
    "url",
    ["http://example.com/x", "ftp://example.com", "x", "https://", "https://a b/", "https://[x/", "https://u:p@h/"],
)
def test_addresses_that_are_not_asked(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_address(url)
    assert "u:p" not in str(caught.value)


def test_copies_lie_in_the_state_folder(tmp_path: Path) -> None:
    assert cache_folder(str(tmp_path)) == tmp_path / "documents"
