"""What a client is told when it says hello: what can be had at this address, and how it is used.

A front server comes in, once for each client; the view says which servers there are, their catalogues what they said
of themselves.
"""

from __future__ import annotations

from typing import Any

from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext

from composition import capabilities
from composition.mount import Mount
from composition.view import View
from providers import lines
from providers.caller import Caller
from providers.identity import Identity

_MAX_PURPOSE = 300
_MAX_INSTRUCTIONS = 16 * 1024
"""Characters of one server's own instructions; no model reads more, and a client may refuse a longer welcome."""


class Welcome(Middleware):
    """
    Args:
        name: the gateway's.
    """

    def __init__(self, name: str, view: View) -> None:
        self._name, self._view = name, view

    async def on_initialize(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        if context.fastmcp_context is not None:
            lines.remember_capabilities(context.fastmcp_context)
        return await self._as_told(await call_next(context))

    async def on_discover(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        return await self._as_told(await call_next(context))

    async def _as_told(self, result: Any) -> Any:
        """What the gateway says of itself: the servers of this user, and what can be had through it."""
        if result is None or isinstance(result, dict):
            return result
        caller = await self._view.caller()
        mounts = [(mount, caller.identity) for mount in self._view.readable(caller.identity)] if caller else []
        if self._view.server is not None and caller is not None:
            await _meet(mounts, caller)
        told = {
            "instructions": self._instructions(mounts),
            "capabilities": capabilities.honest(result.capabilities, mounts),
        }
        return result.model_copy(update=told)

    def _instructions(self, mounts: list[tuple[Mount, Identity]]) -> str | None:
        if self._view.server is None:
            return instructions(self._name, mounts)
        return "\n\n".join(text for mount in mounts if (text := own_instructions(*mount))) or None


async def _meet(mounts: list[tuple[Mount, Identity]], caller: Caller) -> None:
    """Who came for one server is told what that server says, so it is asked first, if it never was."""
    for mount, identity in mounts:
        if mount.catalogue.known_to(identity) is None:
            await mount.catalogue.get(caller, mount.resource.timeouts.list)


def own_instructions(mount: Mount, identity: Identity) -> str:
    """A server's own instructions word for word, or else what the operator says that it is for."""
    listing = mount.catalogue.known_to(identity)
    text = str(listing.facts.get("instructions") or "") if listing else ""
    return (text or mount.resource.description or "")[:_MAX_INSTRUCTIONS]


def instructions(name: str, mounts: list[tuple[Mount, Identity]]) -> str:
    """What a model reads first: which servers there are for a user, and what each is for."""
    if not mounts:
        return f"{name}: no server is available to you at the moment."
    servers = "\n".join(f"- {mount.resource.name}: {purpose(mount, identity)}" for mount, identity in mounts)
    said = [(mount.resource.name, _chapter(mount, identity)) for mount, identity in mounts]
    chapters = "".join(f"\n\n# How to use {server}\n\n{text}" for server, text in said if text)
    return (
        f"{name} offers the tools of several servers. A tool is named after its server: 'server_tool'. "
        f"The servers:\n{servers}{chapters}"
    )


def _chapter(mount: Mount, identity: Identity) -> str:
    """A server's own instructions word for word, where its line in the list does not hold them already."""
    listing = mount.catalogue.known_to(identity)
    text = str(listing.facts.get("instructions") or "") if listing else ""
    return text[:_MAX_INSTRUCTIONS] if text != purpose(mount, identity) else ""


def purpose(mount: Mount, identity: Identity) -> str:
    """What a server is for: the operator's description, else what it has told this user of itself."""
    listing = mount.catalogue.known_to(identity)
    facts = listing.facts if listing else {}
    info = facts.get("serverInfo") or {}
    said = (
        mount.resource.description
        or facts.get("instructions")
        or info.get("description")
        or info.get("title")
        or info.get("name")
        or "no description"
    )
    text = " ".join(str(said).split())
    return text if len(text) <= _MAX_PURPOSE else text[: _MAX_PURPOSE - 1] + "…"
