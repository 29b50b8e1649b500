"""`DockerEngine`: the connection to one Docker engine. The only file that imports the Docker SDK.

The container manager comes in with pieces of work, each a function of the SDK's client. They run in worker threads with
a limiter and deadlines of their own, so that a hung engine costs nobody else anything; what goes wrong comes back as
one of our errors, for a person to read. The SDK is loaded by the first of those threads, and never where no server
needs it: it takes a tenth of a second.
"""

from __future__ import annotations

import math
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import anyio
import anyio.to_thread

from providers.engine import EngineAddress, find_engine, own_container_id
from providers.errors import BackendUnavailable, ConfigurationError, GatewayError

if TYPE_CHECKING:
    import docker
    from docker.errors import APIError

    Api: TypeAlias = docker.APIClient
    """The SDK's client, one HTTP request per method."""
else:
    Api = Any

_THREADS = 8
QUICK, SLOW = 5.0, 15.0
"""Seconds for a question to the engine, and for making, starting or ending a container."""
_LOOK_EVERY = 0.02
_NAME_TRIES = 50
_SDK_SECONDS = 10
"""After which the SDK gives up by itself, so that a hung engine holds no thread for ever."""

Result = TypeVar("Result")


class ImageMissing(BackendUnavailable):
    """Raised when the engine does not have a server's image."""


class EngineUnavailable(BackendUnavailable):
    """Raised when the Docker engine cannot be reached, or does not answer in time."""

    is_of_server = False


class EngineHung(EngineUnavailable):
    """Raised when the Docker engine is there and does not answer."""


class _NobodyListens(GatewayError):
    """Raised when nobody listens at the engine's address."""


class DockerEngine:
    """One engine. Nothing is connected before the first call.

    Args:
        host: the engine, where the operator chose one; else Docker's own rules say which.
    """

    def __init__(self, host: str | None = None) -> None:
        self._host = host
        self._line = anyio.Lock()
        """Of callers who wait for a thread."""
        self._unlimited = anyio.CapacityLimiter(math.inf)
        """How many threads there are is decided here: anyio's limiter forgets those whose callers have given up."""
        self._connecting = threading.Lock()
        self._connected: Api | None = None
        self._working: dict[object, float] = {}
        """Threads that are at work, also for callers who have given up, and when each should have ended."""
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
        if not self._connecting.acquire(timeout=_SDK_SECONDS):  # else each would wait for all before it
            raise TimeoutError
        try:
            if self._connected is None:
                api = self._connect()
                try:
                    self.own_id = _own_id(api)
                except BaseException:
                    api.close()
                    raise
                self._connected = api
            return self._connected
        finally:
            self._connecting.release()

    def _knock(self) -> None:
        """Whether anybody listens. The SDK would leave a socket open for each time that nobody does."""
        if self.address.socket_path is None:
            return
        with socket.socket(socket.AF_UNIX) as door:
            door.settimeout(QUICK)
            try:
                door.connect(self.address.socket_path)
            except OSError as error:
                raise _NobodyListens from error

    def _connect(self) -> Api:
        """A client that speaks the engine's own version of the API. Another one asks for that first, because the SDK
        would ask before we can say what it may trust."""
        import docker

        asking = self._client(docker.constants.MINIMUM_DOCKER_API_VERSION)
        try:
            return self._client(str(asking.version(api_version=False)["ApiVersion"]))
        except KeyError:
            raise docker.errors.DockerException("that is no Docker engine") from None
        finally:
            asking.close()

    def _client(self, version: str) -> Api:
        import docker

        tls: Any = False
        if given := self.address.tls:
            pair = (given.certificate, given.key) if given.certificate else None
            tls = docker.tls.TLSConfig(client_cert=pair, ca_cert=given.ca, verify=given.is_verified)
        host = self.address.host
        api = docker.APIClient(host, version=version, timeout=_SDK_SECONDS, tls=tls, max_pool_size=_THREADS)
        api.trust_env = False  # else REQUESTS_CA_BUNDLE beats the engine's own authority, and a proxy gets its calls
        return api

    def close(self) -> None:
        if self._connected is not None:
            self._connected.close()

    async def call(self, server: str, work: Callable[[Api], Result], deadline: float) -> Result:
        """Run one piece of work in a thread. A thread that the engine keeps waiting is left behind; the SDK's own
        deadline ends it. Until then it counts: a hung engine never holds more than a few.

        Raises:
            EngineHung: no answer within `deadline` seconds, or all threads wait for longer than they should.
        """
        place = threading.Lock()
        """Taken once: by the thread when it begins, or by us if it has not begun when the caller gives up."""

        def run() -> Result:
            if not place.acquire(blocking=False):
                raise EngineUnavailable(server, "its caller has given up.", not_sent=True)
            try:
                with _translated(server, lambda: self.address):
                    return work(self._api())
            finally:
                del self._working[place]

        try:
            with anyio.fail_after(deadline):
                async with self._line:
                    await self._free_thread(server)
                    self._working[place] = anyio.current_time() + deadline
                return await anyio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=self._unlimited)
        except TimeoutError:
            raise EngineHung(server, f"Docker did not answer within {deadline:g} s ({self.address}).") from None
        finally:
            if place.acquire(blocking=False):
                self._working.pop(place, None)

    async def _free_thread(self, server: str) -> None:
        while len(self._working) >= _THREADS:
            if max([*self._working.values()], default=math.inf) < anyio.current_time():
                problem = f"Docker has not answered for a while ({self.address}). Is the engine hung?"
                raise EngineHung(server, problem, not_sent=True)
            await anyio.sleep(_LOOK_EVERY)  # threads tell nobody

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
    """The SDK's errors, and those of what it is made of, as ours."""
    import requests
    import urllib3
    from docker.errors import APIError, DockerException, ImageNotFound, StreamParseError

    broken_off = (requests.exceptions.ChunkedEncodingError, urllib3.exceptions.HTTPError, StreamParseError)
    try:
        yield
    except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError, TimeoutError):
        raise EngineHung(server, f"Docker did not answer within {_SDK_SECONDS} s ({engine()}).") from None
    except ConfigurationError as error:
        raise BackendUnavailable(server, str(error), not_sent=True) from None
    except ImageNotFound as error:
        raise ImageMissing(server, f"Docker: {_said(error)}.", not_sent=True) from None
    except APIError as error:
        raise BackendUnavailable(server, f"Docker refused: {_said(error)}.", not_sent=True) from None
    except broken_off:
        problem = f"Docker broke off in the middle of its answer ({engine()}). Try again."
        raise EngineUnavailable(server, problem) from None
    except requests.exceptions.SSLError as error:
        problem = f"the certificates do not fit the Docker engine at {engine()}: {_tls_reason(error)}."
        what_to_do = "Correct DOCKER_CERT_PATH or the Docker context."
        raise EngineUnavailable(server, f"{problem} {what_to_do}", not_sent=True) from None
    except (DockerException, requests.exceptions.RequestException, _NobodyListens):
        problem = f"no Docker engine answers at {engine()}. Start it, or correct DOCKER_HOST or docker_host."
        raise EngineUnavailable(server, problem, not_sent=True) from None
    except OSError as error:  # not the engine's: the gateway's own files
        raise BackendUnavailable(server, f"this machine refused the gateway: {error}.", not_sent=True) from None


@contextmanager
def tolerating(*statuses: int) -> Iterator[None]:
    """Let the engine refuse with one of these HTTP statuses."""
    from docker.errors import APIError

    try:
        yield
    except APIError as error:
        if error.status_code not in statuses:
            raise


def found(ask: Callable[[], Result]) -> Result | None:
    """What the engine answers to a question about one thing; None if it has no such thing."""
    with tolerating(404):
        return ask()
    return None


def is_refusal(error: BaseException) -> bool:
    """Whether the engine refused, so that it is certain that it did nothing."""
    from docker.errors import APIError

    return isinstance(error, APIError) and bool(error.is_client_error())


def create_named(name: str, body: Mapping[str, Any], api: Api) -> Mapping[str, Any] | None:
    """Make a container; None if another one has the name. Docker lets go of a name a moment after its container is
    gone, so a name that no container has is asked for again."""
    for _ in range(_NAME_TRIES):
        with tolerating(409):
            made: Mapping[str, Any] = api.create_container_from_config(body, name)
            return made
        holders = api.containers(all=True, filters={"name": f"^/{name}$"})
        if any(holder["State"] != "removing" for holder in holders):
            return None
        threading.Event().wait(_LOOK_EVERY)  # this is a thread of the engine's own
    return None


def _own_id(api: Api) -> str | None:
    """The container that the gateway runs in, if this engine knows it: we may be in one of another engine."""
    container_id = own_container_id()
    return container_id if container_id and found(lambda: api.inspect_container(container_id)) else None


def _tls_reason(error: Exception) -> str:
    """What OpenSSL says, without its own line numbers; the libraries in between wrap it."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    inner = reason.args[0] if isinstance(reason, Exception) and reason.args else error
    return getattr(inner, "verify_message", "") or (getattr(inner, "reason", "") or "no TLS").lower().replace("_", " ")


def _said(error: APIError) -> str:
    return " ".join(str(error.explanation or error).split())[:300].rstrip(".")
