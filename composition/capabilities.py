"""What the gateway declares that it can: what at least one server that this user may read can, and what is relayed.

`composition.root` asks when a client says hello. A server that was not reached yet may be able to do anything. FastMCP
declares for itself what it has handlers for, and extensions of its own: those do not hold through a gateway.
"""

from __future__ import annotations

from typing import Any

from composition.mount import Mount
from providers.identity import Identity
from providers.lines import Json
from providers.resource import Isolation

_ANYTHING: Json = {"tools": {}, "resources": {"subscribe": True}, "prompts": {}, "completions": {}, "logging": {}}


def honest(declared: Any, mounts: list[tuple[Mount, Identity]], *, has_own_tools: bool = False) -> Any:
    """The SDK's `ServerCapabilities`, as far as they are true.

    Args:
        declared: what FastMCP would say.
        mounts: the servers that the client's user may read, and that user.
        has_own_tools: whether the gateway has tools of its own.
    """
    possible = _possible(mounts) | ({"tools": {}} if has_own_tools else {})
    told = declared.model_dump(by_alias=True, mode="json", exclude_none=True)
    true = {name: told[name] for name in _ANYTHING if name in told and name in possible}
    if "resources" in true:
        can_subscribe = bool(true["resources"].get("subscribe")) and bool(possible["resources"].get("subscribe"))
        true["resources"] = true["resources"] | {"subscribe": can_subscribe}
    return type(declared).model_validate(true)


def _possible(mounts: list[tuple[Mount, Identity]]) -> Json:
    """All that the servers can, together. Where there are none yet, anything may come: lists can change."""
    if not mounts:
        return _ANYTHING | {"resources": {}}
    possible: Json = {}
    for mount, identity in mounts:
        listing = mount.catalogue.known_to(identity)
        for name, value in (listing.facts.get("capabilities") or {} if listing else _ANYTHING).items():
            subscribe = isinstance(value, dict) and value.get("subscribe") and _remembers(mount)
            possible[name] = possible.get(name) or {}
            if name == "resources" and subscribe:
                possible[name] = {"subscribe": True}
    return possible


def _remembers(mount: Mount) -> bool:
    return mount.resource.isolation is not Isolation.CALL
