"""Where secrets go that are found in a client's configuration.

The command `import` comes in. The place itself is a secret store, which is given; without one nothing is taken over
silently: the person is told what to set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class SecretKeeper(Protocol):
    """What a secret store offers here."""

    def get(self, name: str) -> str | None:
        """The value, or None where there is none."""

    def set(self, name: str, value: str) -> None:
        """Keep a value under a name: letters, digits, `.`, `_` and `-`."""


def no_keeper() -> SecretKeeper | None:
    """No store: values stay where they are."""
    return None


KeeperOf = Callable[[], SecretKeeper | None]
