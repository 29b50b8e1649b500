"""What changed in the registry since clients were told last, and whom it concerns.

The registry comes in. A user hears only of servers that this user may read, or might have read before. Pure values.
"""

from __future__ import annotations

from dataclasses import dataclass

from providers.catalogue import KINDS
from providers.identity import Identity
from providers.resource import may
from providers.store import Snapshot


@dataclass(frozen=True, slots=True)
class News:
    """What changed since clients were told last: kinds by server, by user and by session (None: everybody)."""

    changes: dict[tuple[str, str | None, str | None], set[str]]
    before: Snapshot
    now: Snapshot

    def concerning(self, identity: Identity, server: str | None, session: str) -> list[str]:
        """The notifications for the clients of one user, who hears only of what this user may or might read.

        Args:
            server: the one that the client came for; None: all.
            session: the client's.
        """
        kinds = {
            kind
            for (name, user, only), kinds in self.changes.items()
            if user in (None, identity.key)
            and only in (None, session)
            and server in (None, name)
            and self._could_read(name, identity)
            for kind in kinds
        }
        return [f"notifications/{kind}/list_changed" for kind in KINDS if kind in kinds]

    def _could_read(self, name: str, identity: Identity) -> bool:
        records = (snapshot.get(name) for snapshot in (self.before, self.now))
        return any(record is not None and may(identity, "read", record) for record in records)
