"""`DockerEngine`: the connection to one Docker engine. The only file that imports the Docker SDK.

The container manager comes in with pieces of work, each a function of the SDK's client. They run in worker threads with
a limiter and deadlines of their own, so that a hung engine costs nobody else anything; what goes wrong comes back as
one of our errors, for a person to read.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import anyio
import anyio.to_thread
import docker
import requests
from docker.errors import APIError as APIError
from docker.errors import DockerException, ImageNotFound
from docker.errors import NotFound as NotFound

from providers.engine import EngineAddress, find_engine, own_container_id
from providers.errors import BackendUnavailable, ConfigurationError

_THREADS = 8
QUICK, SLOW = 5.0, 15.0
"""Seconds for a question to the engine, and for making, starting or ending a container."""
_LOOK_EVERY = 0.02
_SDK_SECONDS = 10
"""After which the SDK gives up by itself, so that a hung engine holds no thread for ever."""

Result = TypeVar("Result")


class ImageMissing(BackendUnavailable):
    """Raised when the engine does not have a server's image."""


class EngineUnavailable(BackendUnavailable):
    """Raised when the Docker engine cannot be reached, or does not answer in time."""


Api: TypeAlias = docker.APIClient
"""The SDK's client, one HTTP request per method."""


class DockerEngine:
    """One engine. Nothing is connected before the first call.

    Args:
        host: the engine, where the operator chose one; else Docker's own rules say which.
    """

    def __init__(self, host: str | None = None) -> None:
        self._host = host
        self._threads = anyio.CapacityLimiter(_THREADS)
        self._connecting = threading.Lock()
        self._connected: Api | None = None
        self._working: set[object] = set()
        """Threads that are at work, also for callers who have given up."""
        self.own_id: str | None = None
        """The container that the gateway itself runs in, if it is one of this engine's."""

    def __repr__(self) -> str:
        return f"<DockerEngine {'connected' if self._connected else 'not connected'}>"

    @cached_property
    def address(self) -> EngineAddress:
        """Where the engine is.

        Raises:
            ConfigurationError: that cannot be told.
        """
        return find_engine(self._host)

    @cached_property
    def tls_context(self) -> ssl.SSLContext | None:
        return self.address.tls.context() if self.address.tls else None

    async def api_version(self, server: str) -> str:
        """The version of Docker's API that we speak with this engine."""
        return await self.call(server, lambda api: str(api.api_version), QUICK)

    def _api(self) -> Api:
        self._knock()
        with self._connecting:
            if self._connected is None:
                self._connected = self._connect()
                self.own_id = _own_id(self._connected)
            return self._connected

    def _knock(self) -> None:
        """Whether anybody listens. The SDK would leave a socket open for each time that nobody does."""
        if self.address.socket_path is not None:
            with socket.socket(socket.AF_UNIX) as door:
                door.settimeout(QUICK)
                door.connect(self.address.socket_path)

    def _connect(self) -> Api:
        tls: Any = False
        if given := self.address.tls:
            pair = (given.certificate, given.key) if given.certificate else None
            tls = docker.tls.TLSConfig(client_cert=pair, ca_cert=given.ca, verify=given.is_verified)
        host = self.address.host
        api = Api(host, version="auto", timeout=_SDK_SECONDS, tls=tls, max_pool_size=_THREADS)
        api.trust_env = False  # else REQUESTS_CA_BUNDLE beats the engine's own authority, and a proxy gets its calls
        return api

    def close(self) -> None:
        if self._connected is not None:
            self._connected.close()

    async def call(self, server: str, work: Callable[[Api], Result], deadline: float) -> Result:
        """Run one piece of work in a thread. A thread that the engine keeps waiting is left behind; the SDK's own
        deadline ends it."""

        def run() -> Result:
            self._working.add(me := object())
            try:
                with _translated(server, lambda: self.address):
                    return work(self._api())
            finally:
                self._working.discard(me)

        try:
            with anyio.fail_after(deadline):
                return await anyio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=self._threads)
        except TimeoutError:
            raise EngineUnavailable(server, f"Docker did not answer within {deadline:g} s ({self.address}).") from None

    async def rest(self) -> None:
        """Until no thread is at work any more, but no longer than a question may take."""
        with anyio.move_on_after(QUICK):
            while self._working:  # noqa: ASYNC110  # threads tell nobody
                await anyio.sleep(_LOOK_EVERY)

    def pull(self, server: str, image: str) -> Iterator[Mapping[str, Any]]:
        """What the engine tells while it fetches an image. It blocks, and nobody can say for how long."""
        with _translated(server, lambda: self.address):
            yield from self._api().pull(image, stream=True, decode=True)


@contextmanager
def _translated(server: str, engine: Callable[[], EngineAddress]) -> Iterator[None]:
    """The SDK's errors as ours."""
    try:
        yield
    except requests.exceptions.Timeout:
        raise EngineUnavailable(server, f"Docker did not answer within {_SDK_SECONDS} s ({engine()}).") from None
    except ConfigurationError as error:
        raise BackendUnavailable(server, str(error), not_sent=True) from None
    except ImageNotFound as error:
        raise ImageMissing(server, f"Docker: {_said(error)}.", not_sent=True) from None
    except APIError as error:
        raise BackendUnavailable(server, f"Docker refused: {_said(error)}.", not_sent=True) from None
    except (DockerException, requests.exceptions.RequestException, OSError):
        problem = f"no Docker engine answers at {engine()}. Start it, or correct DOCKER_HOST or docker_host."
        raise EngineUnavailable(server, problem, not_sent=True) from None


@contextmanager
def tolerating(*statuses: int) -> Iterator[None]:
    """Let the engine refuse with one of these HTTP statuses."""
    try:
        yield
    except APIError as error:
        if error.status_code not in statuses:
            raise


def _own_id(api: Api) -> str | None:
    """The container that the gateway runs in, if this engine knows it: we may be in one of another engine."""
    container_id = own_container_id()
    try:
        return container_id if container_id and api.inspect_container(container_id) else None
    except NotFound:
        return None


def _said(error: APIError) -> str:
    return " ".join(str(error.explanation or error).split())[:300].rstrip(".")
