"""Which containers a replica that takes a lease removes: those of other leases of that place, which replicas made."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from providers.errors import BackendUnavailable
from providers.fence import CLUSTER, LEASE, LEASE_PROOF, Fence
from providers.leases import Lease, Leases
from providers.ownership import SCOPE, SERVER
from providers.replica_board import Board, Holder

PLACE = ("box", "shared")
NAME, IMAGE = "apollos-mcp-box", "sha256:1"


class Held(Leases):
    """Leases of a replica that has those of a place, and of no other."""

    def __init__(self, token: int | None) -> None:
        super().__init__(Board("redis://127.0.0.1:1/0"), "a" * 12)
        self.token = token

    def held(self, place: tuple[str, str]) -> Lease | None:
        if self.token is None or place[0] != PLACE[0]:
            return None
        return Lease(place, Holder(self.token, self.replica), 0.0)


def fence(token: int | None = 7, key: bytes = b"k" * 32) -> Fence:
    made = Fence(Held(token))
    made.key = key
    return made


def listed(token: int = 7, scope: str = "shared", key: bytes = b"k" * 32, **other: Any) -> dict[str, Any]:
    """A container as Docker lists it."""
    labels = {SERVER: "box", SCOPE: scope, **fence(token, key).marks("box", NAME, IMAGE, scope)}
    return {"Id": "1", "Names": [f"/{NAME}"], "ImageID": IMAGE, "Labels": labels} | other


def test_what_another_lease_left_is_removed_and_our_own_is_not() -> None:
    assert fence().is_left(listed(6), PLACE, 7)
    assert fence().is_left(listed(9), PLACE, 7), "Redis may have lost its count"
    assert not fence().is_left(listed(7), PLACE, 7)


def test_other_places_are_let_be() -> None:
    assert not fence().is_left(listed(6, scope="user:ada"), PLACE, 7)
    assert fence().is_left(listed(6, scope="user:ada"), ("box", "user:ada"), 7)
    assert not fence().is_left(listed(6), ("other", "shared"), 7)


def test_what_no_replica_made_is_let_be() -> None:
    assert not fence().is_left(listed(6, key=b"x" * 32), PLACE, 7)
    assert not fence().is_left(listed(6, Names=["/somebody-elses"]), PLACE, 7)
    assert not fence().is_left(listed(6, ImageID="sha256:2"), PLACE, 7)
    for label, value in ((LEASE, "5"), (LEASE_PROOF, ""), (LEASE_PROOF, "\u00e4"), (LEASE, None), (LEASE_PROOF, 7)):
        copied = listed(6)
        copied["Labels"] |= {label: value}
        assert not fence().is_left(copied, PLACE, 7)
    assert not fence().is_left(listed(6, Labels=None), PLACE, 7)


@pytest.mark.parametrize("scope", ["shared", "user:ada"])
async def test_without_the_lease_none_is_made(scope: str) -> None:
    with pytest.raises(BackendUnavailable, match="another replica's to start") as refusal:
        await anyio.to_thread.run_sync(fence(None).marks, "box", NAME, IMAGE, scope)
    assert refusal.value.not_sent


@pytest.mark.parametrize("scope", ["session:1", "call:1", "process:1"])
def test_containers_of_one_session_need_no_lease(scope: str) -> None:
    assert fence(None).marks("box", NAME, IMAGE, scope) == {}


def test_labels_tell_nothing_of_the_key() -> None:
    labels = fence().marks("box", NAME, IMAGE, "shared")
    assert set(labels) == {CLUSTER, LEASE, LEASE_PROOF}
    assert (b"k" * 32).hex() not in str(labels) and "kkkk" not in f"{labels}{fence()!r}"
