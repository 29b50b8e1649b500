"""The file of static tokens: who may come in with which token, as whom, and until when.

`composition.auth` comes in with what clients send, `composition.token_command` to make and to end tokens. Called is the
file system alone. The file holds no token, only the SHA-256 of each. A slow hash is for passwords, which can be
guessed; nobody guesses 256 random bits, so a quick one gives nothing away and costs each request next to nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

import anyio
import anyio.to_thread
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from providers.errors import ConfigurationError
from providers.private_files import put

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

PREFIX = "apo_"
"""What each token begins with, so that people and secret scanners know one when they see it."""
ISSUER = "tokens"
"""Who vouches for the identity in the file; no issuer of JWTs may be called so."""
MAX_FILE_BYTES = 4 * 1024 * 1024
_FORMAT = 1
_RANDOM_BYTES = 32
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f,]")


def is_plain(word: str) -> bool:
    """Whether a user id or a role can stand in a list and on a line: no control characters, no commas, not empty."""
    return bool(word) and word == word.strip() and not _FORBIDDEN.search(word) and word.isprintable()


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


class StaticToken(BaseModel):
    """What the file holds of one token. The token itself is known to its owner alone."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    id: str = Field(pattern=r"^[0-9a-z]{1,32}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    user: str
    name: str = Field(min_length=1)
    roles: tuple[str, ...] = ()
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None

    @field_validator("user", "roles")
    @classmethod
    def _words_are_plain(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for word in [value] if isinstance(value, str) else value:
            if not is_plain(word):
                raise ValueError("is empty, or holds a comma, a control character or spaces at its ends")
        return value

    @property
    def has_expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= datetime.now(UTC)


class TokenFileState(StrEnum):
    UNREAD = "unread"
    READ = "read"
    UNUSABLE = "unusable"


class TokenFile:
    """The file, as it is now: `find` looks whether it changed each time, so that a token which was revoked counts for
    nothing from the next request on. A file that is gone, broken or open to others lets nobody in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = TokenFileState.UNREAD
        self._tokens: dict[str, StaticToken] = {}
        self._seen: tuple[int, ...] | None = None
        self._reading: anyio.Lock | None = None

    def __repr__(self) -> str:
        return f"<TokenFile '{self.path}' {self.state} {len(self._tokens)} tokens>"

    async def find(self, token: str) -> StaticToken | None:
        """What the file says of a token that a client sent; None where it does not let it in."""
        if not token.startswith(PREFIX):
            return None
        if self.state is TokenFileState.UNREAD or _print_of(self.path) != self._seen:
            await self._read_again()
        digest = digest_of(token)
        found = self._tokens.get(digest)  # how long that takes tells of the digest, from which no token follows
        if found is None or not hmac.compare_digest(found.sha256, digest) or found.has_expired:
            return None
        return found

    async def _read_again(self) -> None:
        self._reading = self._reading or anyio.Lock()
        async with self._reading:
            if self.state is not TokenFileState.UNREAD and _print_of(self.path) == self._seen:
                return  # somebody who waited for the same change has read it
            was_usable = self.state is not TokenFileState.UNUSABLE
            self._seen = _print_of(self.path)  # before it is read: what changes from here on is read again
            try:
                tokens = await anyio.to_thread.run_sync(self.read)
            except ConfigurationError as error:
                self._tokens, self.state = {}, TokenFileState.UNUSABLE
                if was_usable:
                    logger.error("%s. Until then nobody comes in with a static token.", error)
            else:
                self._tokens, self.state = {token.sha256: token for token in tokens}, TokenFileState.READ

    # --- for commands, and before the gateway runs; these block

    def read(self) -> list[StaticToken]:
        """All tokens, in the order in which they were made.

        Raises:
            ConfigurationError: the file is not there, may be read by others, or is not what this module writes.
        """
        try:
            with self.path.open("rb") as file:
                _refuse_open_file(self.path, os.fstat(file.fileno()))
                data = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            raise ConfigurationError(
                f"{self.path}: no such file. Make a token with 'server.py token add USER', which makes the file too"
            ) from None
        except OSError as error:
            raise ConfigurationError(f"{self.path}: cannot be read ({error.strerror}). Check it") from None
        return _parsed(self.path, data)

    def add(
        self, user: str, name: str, roles: Iterable[str], lifetime: timedelta | None = None
    ) -> tuple[str, StaticToken]:
        """Make a token, and the file if there is none yet.

        Args:
            lifetime: until it expires; None means never.

        Returns:
            The token, which nobody can find out again, and what the file holds of it.

        Raises:
            ConfigurationError: the user or a role cannot be one, or the file cannot be read or written.
        """
        token, now = PREFIX + secrets.token_urlsafe(_RANDOM_BYTES), datetime.now(UTC).replace(microsecond=0)
        for word in (user, *roles):
            if not is_plain(word):
                raise ConfigurationError(
                    "A user or a role is empty, or holds a comma, a control character or spaces at its ends"
                )
        with self._changing() as tokens:
            made = StaticToken(
                id=_new_id({token.id for token in tokens}),
                sha256=digest_of(token),
                user=user,
                name=name,
                roles=tuple(dict.fromkeys(roles)),
                created_at=now,
                expires_at=now + lifetime if lifetime is not None else None,
            )
            tokens.append(made)
        return token, made

    def revoke(self, token_id: str) -> StaticToken | None:
        """Take a token out of the file; what it held, or None where there is no such token.

        Raises:
            ConfigurationError: the file cannot be read or written.
        """
        with self._changing() as tokens:
            revoked = next((token for token in tokens if token.id == token_id), None)
            if revoked is not None:
                tokens.remove(revoked)
        return revoked

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[StaticToken]]:
        """The tokens, to be changed in place; written afterwards, whole. One changes them at a time."""
        try:
            with _locked(self.path.parent):
                tokens = self.read() if self.path.exists() else []
                yield tokens
                known = {"version": _FORMAT, "tokens": [token.model_dump(mode="json") for token in tokens]}
                put(self.path.resolve(), json.dumps(known, indent=1, ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            raise ConfigurationError(f"{self.path}: cannot be written ({error.strerror}). Check its folder") from None


def _new_id(taken: set[str]) -> str:
    while (token_id := secrets.token_hex(4)) in taken:
        pass
    return token_id


def _print_of(path: Path) -> tuple[int, ...] | None:
    """What differs between two versions of the file; None where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_mode


def _refuse_open_file(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigurationError(f"{path}: is not a file. Name the file of tokens")
    if os.name == "posix" and stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigurationError(
            f"{path}: has mode {stat.S_IMODE(found.st_mode):03o}, so that others can get at it; it says who may come "
            f"in. Close it to them: chmod 600 {path}"
        )
    if os.name == "posix" and found.st_uid not in (os.geteuid(), 0):
        raise ConfigurationError(f"{path}: belongs to user {found.st_uid}, who could let anybody in. Take it over")


def _parsed(path: Path, data: bytes) -> list[StaticToken]:
    try:
        if len(data) > MAX_FILE_BYTES:
            raise ValueError("too large")
        document = json.loads(data)
        if not isinstance(document, dict) or document.get("version") != _FORMAT:
            raise ValueError("another format")
        tokens = [StaticToken.model_validate_json(json.dumps(token)) for token in document["tokens"]]
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "a token"
        raise ConfigurationError(f"{path}: '{where}' is not what it must be ({first['msg']}). Mend it") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigurationError(
            f"{path}: is not a file of tokens of this version. Mend it, or make a new one"
        ) from None
    if len({token.id for token in tokens}) < len(tokens) or len({token.sha256 for token in tokens}) < len(tokens):
        raise ConfigurationError(f"{path}: holds a token twice. Take one of the two out")
    return tokens


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Only one process at a time is within, of those that ask for the same folder."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # and with it the lock
