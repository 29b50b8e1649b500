"""Documents fetched from the web, with the last good copy of each on disk.

The readers of catalogs and registries come in with an address and with what makes a document good; aiohttp and the file
system are called. A document that was fetched a moment ago is not fetched again; one that has not changed is not sent
again (ETag); and where a server is away, or sends what cannot be read, the last good copy serves and says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import urljoin, urlsplit

import aiohttp
import anyio
import anyio.to_thread

from providers.endpoint import http_client
from providers.errors import ConfigurationError, GatewayError
from providers.ownership import state_folder
from providers.private_files import private_folder, write_new

log = logging.getLogger(__name__)

MAX_BYTES = 16 * 1024 * 1024
"""The largest document that is read, fetched or from a file."""

_MOST_COPIES = 256
_MOST_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")

T = TypeVar("T")


class DocumentUnavailable(GatewayError):
    """Raised when a document can be had neither from its address nor from an earlier copy. `is_missing` is true where
    its server answered that there is none."""

    def __init__(self, message: str, *, is_missing: bool = False) -> None:
        self.is_missing = is_missing
        super().__init__(message)


@dataclass(frozen=True)
class Document(Generic[T]):
    """What was read from a document. `note` says why it is an earlier copy, where it is one."""

    value: T
    note: str | None = None


@dataclass(frozen=True)
class _Copy:
    url: str
    content: bytes = field(repr=False)
    etag: str
    fetched_at: float

    def age(self) -> float:
        return time.time() - self.fetched_at


def cache_folder(state_dir: str | None) -> Path:
    """Where documents are kept, below the operator's `state_dir` or the usual place for it."""
    return state_folder(state_dir) / "documents"


class DocumentCache:
    """Documents from the web. Several programs may share its folder: each file is whole or not there."""

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = MAX_BYTES,
        timeout: float = 20.0,
        fresh_for: float = 300.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """
        Args:
            max_bytes: the largest document that is read.
            timeout: seconds for a whole fetch, redirects included.
            fresh_for: seconds in which a copy serves without asking.
            tls: which authorities are trusted, if not those of the system.
        """
        self._folder, self._max, self._timeout, self._fresh_for = folder, max_bytes, timeout, fresh_for
        self._tls = tls

    async def get(
        self,
        url: str,
        parse: Callable[[bytes], T],
        *,
        accept: str = "*/*",
        fresh_for: float | None = None,
        outlives: bool = False,
    ) -> Document[T]:
        """A document, from its address or from the last good copy.

        Args:
            parse: makes something of its bytes, in a thread; a `GatewayError` or `ValueError` says that it is not
                good, and keeps it from replacing the copy.
            accept: the media types that are asked for.
            fresh_for: seconds in which a copy serves without asking, if not those of the cache; 0 asks always.
            outlives: whether the copy serves although the server says that there is no such document any more.

        Raises:
            ConfigurationError: the address may not be asked.
            DocumentUnavailable: there is neither an answer nor a copy; it says what was wrong with the answer.
        """
        check_address(url)
        kept = await self._kept(url, parse)
        if kept and 0 <= kept[0].age() < (self._fresh_for if fresh_for is None else fresh_for):
            return Document(kept[1])
        try:
            fetched = await self._fetch(url, accept, kept[0] if kept else None)
            if kept and fetched is kept[0]:
                await self._keep(replace(fetched, fetched_at=time.time()))
                return Document(kept[1])
            value = await anyio.to_thread.run_sync(parse, fetched.content)
        except (GatewayError, ValueError) as error:
            is_gone = isinstance(error, DocumentUnavailable) and error.is_missing and not outlives
            if kept is None or is_gone:
                raise error if isinstance(error, GatewayError) else _unreadable(url, error) from None
            return Document(kept[1], f"{error} This is the copy of {_when(kept[0].fetched_at)}.")
        await self._keep(fetched)
        return Document(value)

    # ------------------------------------------------------------------------------------------------ the web

    async def _fetch(self, url: str, accept: str, kept: _Copy | None) -> _Copy:
        headers = {"Accept": accept, "Accept-Encoding": "identity"} | ({"If-None-Match": kept.etag} if kept else {})
        try:
            with anyio.fail_after(self._timeout):
                async with http_client() as client:
                    return await self._follow(client, url, headers, kept)
        except TimeoutError:
            raise DocumentUnavailable(
                f"{_shown(url)} did not answer in full within {self._timeout:g} seconds."
            ) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise DocumentUnavailable(f"{_shown(url)} could not be read ({_reason(error)}).") from None

    async def _follow(
        self, client: aiohttp.ClientSession, url: str, headers: dict[str, str], kept: _Copy | None
    ) -> _Copy:
        address = url
        for _ in range(_MOST_REDIRECTS + 1):
            async with client.get(address, headers=headers, allow_redirects=False, ssl=self._tls or True) as answer:
                if answer.status not in _REDIRECTS:
                    return await self._read(url, answer, kept)
                address = urljoin(address, answer.headers.get("Location", ""))
            _check_redirect(url, address)
        raise DocumentUnavailable(f"{_shown(url)} leads from one address to the next without an end.")

    async def _read(self, url: str, answer: aiohttp.ClientResponse, kept: _Copy | None) -> _Copy:
        if answer.status == 304 and kept:
            return kept
        if answer.status != 200:
            is_missing = answer.status in (404, 410)
            raise DocumentUnavailable(f"{_shown(url)} answered HTTP {answer.status}.", is_missing=is_missing)
        if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise DocumentUnavailable(f"{_shown(url)} answers compressed, although it was asked not to.")
        content = bytearray()
        if (answer.content_length or 0) <= self._max:
            async for chunk in answer.content.iter_any():
                content += chunk
                if len(content) > self._max:
                    break
            else:
                return _Copy(url, bytes(content), answer.headers.get("ETag", ""), time.time())
        raise DocumentUnavailable(f"{_shown(url)} holds more than {self._max:,} bytes.")

    # -------------------------------------------------------------------------------------------------- copies

    async def _kept(self, url: str, parse: Callable[[bytes], T]) -> tuple[_Copy, T] | None:
        """The copy of a document, and what it says. One that cannot be read is none."""

        def look() -> tuple[_Copy, T] | None:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, GatewayError):
                copy = _opened(url, self._file(url).read_bytes())
                return copy, parse(copy.content)
            return None

        return await anyio.to_thread.run_sync(look)

    async def _keep(self, copy: _Copy) -> None:
        """Without a copy everything works, so that what stands in its way is told and no more."""
        try:
            await anyio.to_thread.run_sync(self._write, copy)
        except (OSError, ConfigurationError) as error:
            log.warning("a copy of %s could not be kept: %s", _shown(copy.url), error)

    def _write(self, copy: _Copy) -> None:
        head = {"url": copy.url, "etag": copy.etag, "fetched_at": copy.fetched_at, "length": len(copy.content)}
        file = self._file(copy.url)
        self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with private_folder(self._folder):
            new = file.with_name(f"{file.name}.{os.getpid()}-{time.monotonic_ns()}.new")  # two may write at once
            try:
                write_new(new, json.dumps(head).encode() + b"\n" + copy.content, 0o600)
                new.replace(file)
            finally:
                new.unlink(missing_ok=True)
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        copies = [file for file in self._folder.iterdir() if file.is_file()]
        for file in sorted(copies, key=_written_at)[: max(0, len(copies) - _MOST_COPIES)]:
            file.unlink(missing_ok=True)

    def _file(self, url: str) -> Path:
        return self._folder / hashlib.sha256(url.encode()).hexdigest()


class _Place(NamedTuple):
    scheme: str
    host: str


def check_address(url: str) -> None:
    """Refuse an address that no document is fetched from.

    Raises:
        ConfigurationError: it is not https (or http to this machine itself), or holds credentials.
    """
    place = _place(url)
    if place is None or not (place.scheme == "https" or (place.scheme == "http" and place.host in _LOOPBACK)):
        raise ConfigurationError(f"'{_shown(url)}' is no address for a document: it has to begin with https://")
    if urlsplit(url).username is not None:
        raise ConfigurationError(f"'{_shown(url)}' has credentials in it. Write it without them.")


def _check_redirect(url: str, target: str) -> None:
    """Nobody leads us from the web to this machine, nor from https to http."""
    origin, place = _place(url), _place(target)
    if place is None or place.scheme != "https":
        if origin and place and place == origin:
            return
        raise DocumentUnavailable(f"{_shown(url)} leads to an address that is not https. It was not followed.")


def _place(url: str) -> _Place | None:
    try:
        parts = urlsplit(url)
        return _Place(parts.scheme, parts.hostname) if parts.hostname and url.isprintable() and " " not in url else None
    except ValueError:
        return None


def _shown(url: str) -> str:
    """An address as it may be told: what follows a '?' and what stands before an '@' can be a secret."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    return "the address"


def _reason(error: Exception) -> str:
    match error:
        case aiohttp.ClientConnectorDNSError():
            return "its host name was not found"
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
            return "its TLS certificate is not one that we trust"
        case aiohttp.ClientConnectorError():
            return "no connection"
        case _:
            return "the connection ended too early, or the answer is not HTTP"


def _unreadable(url: str, error: Exception) -> DocumentUnavailable:
    return DocumentUnavailable(f"{_shown(url)} holds no document that can be read: {error}")


def _opened(url: str, data: bytes) -> _Copy:
    """A copy as it lies on disk.

    Raises:
        ValueError: it is of another document, or not whole.
        KeyError: it is no copy; so do TypeError.
    """
    head, _, content = data.partition(b"\n")
    facts = json.loads(head)
    if facts["url"] != url or facts["length"] != len(content):
        raise ValueError("not a whole copy")
    return _Copy(url, content, str(facts["etag"]), float(facts["fetched_at"]))


def _written_at(file: Path) -> float:
    with contextlib.suppress(OSError):
        return file.stat().st_mtime
    return 0.0


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(moment))
