"""Secrets in the keyring of the operating system: macOS Keychain, Windows Credential Locker, Secret Service.

`secrets` asks here where the operator has switched it on. Called is the package `keyring`, which is not installed by
itself. A keyring cannot say what it holds, so a list of names is kept in it, under a name that no secret can have.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from providers.errors import ConfigurationError
from providers.secrets import Owner

_SERVICE = "apollos-mcp-gateway"
_INDEX = ":names"


class KeyringSecrets:
    """The keyring of the user who runs the gateway. Its methods block, and may ask that user to unlock it."""

    name = "keyring"

    def __init__(self) -> None:
        try:
            import keyring
            import keyring.errors
        except ImportError:
            raise ConfigurationError(
                "[gateway] key 'keyring' needs the package keyring. Start with: uv run --with keyring server.py"
            ) from None
        self._keyring, self._errors = keyring, keyring.errors

    def get(self, secret: str, owner: Owner | None) -> str | None:
        with self._told():
            value: str | None = self._keyring.get_password(_SERVICE, _entry(secret, owner))
            return value

    def names(self) -> Iterator[tuple[str, Owner | None]]:
        for name, *owner in self._index():
            yield name, Owner(*owner) if owner else None

    def set(self, secret: str, value: str, owner: Owner | None) -> None:
        with self._told():
            self._keyring.set_password(_SERVICE, _entry(secret, owner), value)
            self._put_index(
                [*(each for each in self._index() if each != [secret, *(owner or ())]), [secret, *(owner or ())]]
            )

    def remove(self, secret: str, owner: Owner | None) -> bool:
        if self.get(secret, owner) is None:
            return False
        with self._told():
            self._keyring.delete_password(_SERVICE, _entry(secret, owner))
            self._put_index([each for each in self._index() if each != [secret, *(owner or ())]])
        return True

    def _index(self) -> list[list[str]]:
        with self._told():
            text = self._keyring.get_password(_SERVICE, _INDEX)
        try:
            found: Any = json.loads(text or "[]")
        except ValueError:
            return []
        return [each for each in found if isinstance(each, list) and len(each) in (1, 3)]

    def _put_index(self, entries: list[list[str]]) -> None:
        self._keyring.set_password(_SERVICE, _INDEX, json.dumps(sorted(entries)))

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._errors.KeyringError as error:
            raise ConfigurationError(
                f"the keyring cannot be used ({type(error).__name__}). Unlock it, or set keyring = false"
            ) from None


def _entry(secret: str, owner: Owner | None) -> str:
    """Names hold no ':', and a user's key none but what is percent-encoded."""
    return ":".join((*(owner or ()), secret))
