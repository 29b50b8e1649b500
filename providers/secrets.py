"""`${secret:NAME}`: what a record names instead of holding, and where its value comes from.

The gateway comes in with each record whose server is about to be started or connected to: `SecretStore.filled` gives
the record with the values in it, which lives no longer than that session. The command line comes in to set, list and
remove. Values come from sources, in order: the first that has a name decides. Only `FileSecrets` and `KeyringSecrets`
can be written to.

A secret with an owner is of one user for one server: it goes to that server on behalf of that user, and nowhere else.
So no record can name a value that a user gave for another server.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import anyio
import anyio.to_thread
from pydantic import ValidationError

from providers.errors import BackendUnavailable, ConfigurationError
from providers.identity import Identity
from providers.private_files import NO_LINK, locked, put
from providers.resource import McpServerResource
from providers.secret_names import RULE, is_name, named_in, with_values
from providers.wire import Deliver, OpenWire, Wire, opened_by

logger = logging.getLogger(__name__)

MAX_VALUE_BYTES = 64 * 1024
_VARIABLE_PREFIX = "APOLLOS_SECRET_"
_FOLDER = "/run/secrets"
"""Where Docker, Compose and Kubernetes put the secrets of a container."""


_Opened = AbstractAsyncContextManager[Wire]


class Owner(NamedTuple):
    """Of whom a value is: one user, for one server."""

    user: str
    """`Identity.key`"""
    server: str


class SecretMissing(BackendUnavailable):
    """Raised when a server needs values that nobody has set. It says nothing about the server's health."""

    is_of_server = False


class SecretSource(Protocol):
    """Where values come from. Its methods block."""

    name: str

    def get(self, secret: str, owner: Owner | None) -> str | None:
        """The value, or None.

        Raises:
            ConfigurationError: the source cannot be read.
        """

    def names(self) -> Iterable[tuple[str, Owner | None]]:
        """What it has, as far as it can tell."""


class SecretKeeper(SecretSource, Protocol):
    """A source that can be written to."""

    def set(self, secret: str, value: str, owner: Owner | None) -> None: ...

    def remove(self, secret: str, owner: Owner | None) -> bool:
        """Whether it was there."""


class EnvironmentSecrets:
    """`APOLLOS_SECRET_GITHUB__TOKEN` holds `github.token`. The gateway's environment is the operator's: no user has a
    value of his own there."""

    name = "environment"

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._environ = environ

    def get(self, secret: str, owner: Owner | None) -> str | None:
        variable = None if owner else variable_for(secret)
        return self._environ.get(variable) or None if variable else None

    def names(self) -> Iterator[tuple[str, Owner | None]]:
        for variable in sorted(self._environ):
            if variable.startswith(_VARIABLE_PREFIX) and self._environ[variable]:
                yield variable, None


def variable_for(secret: str) -> str | None:
    """The environment variable that holds a secret; None for a name with two signs side by side. So no server's secret
    is another's: `my.server-token` and `my-server.token` are two variables."""
    if re.search(r"[_.-]{2}", secret):
        return None
    return _VARIABLE_PREFIX + secret.upper().replace(".", "__").replace("-", "_")


class FolderSecrets:
    """A file for each, as Docker, Compose and Kubernetes mount them; the operator's, too."""

    name = "folder"

    def __init__(self, folder: Path | str = _FOLDER) -> None:
        self._folder = Path(folder)

    def get(self, secret: str, owner: Owner | None) -> str | None:
        if owner:
            return None
        try:  # a link within the folder is how Kubernetes does it; a name holds no '/', so nothing leads out by name
            with (self._folder / secret).open("rb") as file:
                return _text(file.read(MAX_VALUE_BYTES + 1), str(self._folder / secret))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise ConfigurationError(f"{self._folder / secret}: cannot be read ({error.strerror})") from None

    def names(self) -> Iterator[tuple[str, Owner | None]]:
        if self._folder.is_dir():
            for file in sorted(self._folder.iterdir()):
                if is_name(file.name) and file.is_file():
                    yield file.name, None


def _text(data: bytes, where: str) -> str:
    if len(data) > MAX_VALUE_BYTES:
        raise ConfigurationError(f"{where}: is larger than 64 KiB, which no secret is")
    try:
        return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{where}: is not text in UTF-8") from None


class FileSecrets:
    """One JSON file that its owner alone can read: `{"secrets": {NAME: …}, "users": {USER: {SERVER: {NAME: …}}}}`.
    It is not encrypted: what could decrypt it would lie beside it."""

    name = "file"

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, secret: str, owner: Owner | None) -> str | None:
        value = _values(self._read(), owner).get(secret)
        return value if isinstance(value, str) else None

    def names(self) -> Iterator[tuple[str, Owner | None]]:
        document = self._read()
        for name in sorted(document["secrets"]):
            yield name, None
        for user, servers in sorted(document["users"].items()):
            for server, secrets in sorted(servers.items()):
                for name in sorted(secrets):
                    yield name, Owner(user, server)

    def set(self, secret: str, value: str, owner: Owner | None) -> None:
        def change(document: dict[str, Any]) -> bool:
            _values(document, owner, make=True)[secret] = value
            return True

        self._change(change)

    def remove(self, secret: str, owner: Owner | None) -> bool:
        return self._change(lambda document: _values(document, owner).pop(secret, None) is not None)

    def _change(self, change: Callable[[dict[str, Any]], bool]) -> bool:
        """Two that write at once must not lose each other's: each reads what the other has written."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked(self.path.with_name(f"{self.path.name}.lock")):
                document = self._read()
                if is_changed := change(document):
                    put(self.path, json.dumps(document, indent=1).encode())
                return is_changed
        except OSError as error:
            raise ConfigurationError(f"{self.path}: cannot be written ({error.strerror})") from None

    def _read(self) -> dict[str, Any]:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | NO_LINK)
        except FileNotFoundError:
            return {"secrets": {}, "users": {}}
        except OSError as error:
            raise ConfigurationError(f"{self.path}: cannot be read ({error.strerror})") from None
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
            found = os.fstat(descriptor)
            if hasattr(os, "geteuid") and (found.st_uid != os.geteuid() or found.st_mode & 0o077):
                raise ConfigurationError(
                    f"{self.path}: must belong to this user and be closed to others: chmod 600. "
                    "Whoever could read it knows the secrets in it: change them"
                )
            data = file.read()
        try:
            document = json.loads(data)
            secrets, users = document["secrets"], document["users"]
            owned = [table for servers in users.values() for table in servers.values()]
            if not all(isinstance(table, dict) for table in (secrets, *owned)):
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ConfigurationError(f"{self.path}: is not what `secret set` writes. Restore it or remove it") from None
        return {"secrets": secrets, "users": users}


def _values(document: dict[str, Any], owner: Owner | None, *, make: bool = False) -> dict[str, Any]:
    if owner is None:
        values: dict[str, Any] = document["secrets"]
        return values
    users = document["users"]
    if make:
        found: dict[str, Any] = users.setdefault(owner.user, {}).setdefault(owner.server, {})
    else:
        found = users.get(owner.user, {}).get(owner.server, {})
    return found


class PassingSecrets:
    """In memory alone: what users gave for servers that end with their session. Each value has an owner."""

    name = "memory"

    def __init__(self) -> None:
        self._values: dict[tuple[Owner, str], str] = {}

    def get(self, secret: str, owner: Owner | None) -> str | None:
        return self._values.get((owner, secret)) if owner else None

    def names(self) -> Iterator[tuple[str, Owner | None]]:
        return ((secret, owner) for owner, secret in sorted(self._values))

    def keep(self, secret: str, value: str, owner: Owner) -> None:
        """
        Raises:
            ConfigurationError: it is no value.
        """
        _check_value(value)
        self._values[(owner, secret)] = value

    def forget(self, server: str) -> None:
        """A server is gone."""
        self._values = {key: value for key, value in self._values.items() if key[0].server != server}


def _check_value(value: str) -> None:
    if not value or "\0" in value or len(value.encode(errors="replace")) > MAX_VALUE_BYTES:
        raise ConfigurationError("a secret's value is not empty, has no NUL, and at most 64 KiB")


class SecretStore:
    """All sources together; before all others `passing`, which ends with the gateway.

    Args:
        sources: in the order in which they are asked.
        keeper: that of them which `set` and `remove` write to.
    """

    def __init__(self, sources: Iterable[SecretSource], keeper: SecretKeeper) -> None:
        self.passing = PassingSecrets()
        self._sources, self._keeper = (self.passing, *sources), keeper
        self._threads = anyio.CapacityLimiter(4)  # a keyring may wait for somebody to unlock it

    def __repr__(self) -> str:
        return f"<SecretStore {', '.join(source.name for source in self._sources[1:])}>"

    @property
    def keeper(self) -> str:
        """Where values are written to."""
        return self._keeper.name

    def get(self, secret: str, owner: Owner | None = None) -> str | None:
        """The value in the first source that has it. Blocks."""
        return next((value for source in self._sources if (value := source.get(secret, owner)) is not None), None)

    def set(self, secret: str, value: str, owner: Owner | None = None) -> None:
        """Keep a value. Blocks.

        Raises:
            ConfigurationError: it is no name, no value, or cannot be kept.
        """
        if not is_name(secret):
            raise ConfigurationError(f"a secret's name has {RULE}")
        _check_value(value)
        self._keeper.set(secret, value, owner)

    def remove(self, secret: str, owner: Owner | None = None) -> bool:
        """Forget a value that `set` has kept; whether there was one. Blocks."""
        return self._keeper.remove(secret, owner)

    def names(self) -> list[tuple[str, Owner | None, str]]:
        """What there is: names, never values, with its owner and the source. Blocks."""
        return [(name, owner, source.name) for source in self._sources for name, owner in source.names()]

    def missing(self, resource: McpServerResource, identity: Identity | None) -> list[str]:
        """The names that a record needs and nobody has set. Blocks."""
        return [name for name in named_in(resource) if self.get(name, _owner(resource, identity)) is None]

    def values_in(self, resource: McpServerResource) -> list[tuple[str, str]]:
        """Names and values of all that a record may be filled with, whosever they are: to be hidden in what its server
        says. Blocks.

        Raises:
            ConfigurationError: a source cannot be read.
        """
        names = set(named_in(resource))
        owners: Iterable[tuple[str, Owner | None]] = [(name, None) for name in names]
        if names and resource.per_user:
            owners = {(name, owner) for name, owner, _ in self.names() if owner and owner.server == resource.name}
        found = ((name, self.get(name, owner)) for name, owner in owners if name in names)
        return [(name, value) for name, value in found if value is not None]

    async def filled(self, resource: McpServerResource, identity: Identity | None) -> McpServerResource:
        """The record with its secrets in place.

        Args:
            identity: on whose behalf the server is started or connected to; None for everybody's.

        Raises:
            SecretMissing: with all that are missing.
            BackendUnavailable: a source cannot be read.
        """
        names = named_in(resource)
        if not names:
            return resource
        owner = _owner(resource, identity)
        try:
            values = await anyio.to_thread.run_sync(
                lambda: {name: self.get(name, owner) for name in names}, abandon_on_cancel=True, limiter=self._threads
            )
        except ConfigurationError as error:
            logger.error("%s", error)
            problem = "its secrets cannot be read. The gateway's log says why."
            raise BackendUnavailable(resource.name, problem, not_sent=True) from None
        missing = [name for name, value in values.items() if value is None]
        if missing:
            raise SecretMissing(resource.name, _what_to_do(missing, owner), not_sent=True)
        return _put_into(resource, {name: value for name, value in values.items() if value is not None})

    def wire(self, resource: McpServerResource, open_wire: Callable[[McpServerResource, Deliver], _Opened]) -> OpenWire:
        """How a wire is opened to a server whose record may name secrets."""
        if not named_in(resource):
            return partial(open_wire, resource)

        @asynccontextmanager
        async def opened(deliver: Deliver) -> AsyncIterator[Wire]:
            async with open_wire(await self.filled(resource, opened_by.get()), deliver) as wire:
                yield wire

        return opened


def _put_into(resource: McpServerResource, values: Mapping[str, str]) -> McpServerResource:
    """Checked like any record: a line break in a value would otherwise make a header of its own."""
    try:
        return McpServerResource.model_validate(resource.model_dump() | with_values(resource, values))
    except ValidationError as error:
        keys = ", ".join(sorted({str(detail["loc"][0]) for detail in error.errors() if detail["loc"]}))
        problem = f"a value of its secrets cannot stand in '{keys}'. Set it again, without line breaks."
        raise BackendUnavailable(resource.name, problem, not_sent=True) from None


def _owner(resource: McpServerResource, identity: Identity | None) -> Owner | None:
    if not resource.per_user:
        return None
    return Owner(identity.key if identity else "", resource.name)


def _what_to_do(missing: list[str], owner: Owner | None) -> str:
    names = ", ".join(missing)
    noun = "secret" if len(missing) == 1 else "secrets"
    whose = f" --server {owner.server} --user YOU" if owner else ""
    own = " of your own" if owner else ""
    return f"needs the {noun} {names}{own}. Set each with: server.py secret set {missing[0]}{whose}"
