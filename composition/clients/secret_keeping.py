"""Where secrets go that are found in a client's configuration.

The command `import` comes in. The place itself is a secret store, which is given.
"""

from __future__ import annotations

from typing import Protocol


class SecretKeeper(Protocol):
    """What a secret store offers here."""

    def get(self, name: str) -> str | None:
        """The value, or None where there is none."""

    def set(self, name: str, value: str) -> None:
        """Keep a value under a name: letters, digits, `.`, `_` and `-`."""
