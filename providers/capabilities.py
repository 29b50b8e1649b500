"""What a client declared that it can be asked, part by part: a value, equal for equal declarations.

`caller` makes one for each request; connections and listings are kept apart by it, `client` declares it to the backend,
and whoever is about to ask a client looks here first. Only what the gateway relays is in it. What `experimental` and
`extensions` promise are methods and meanings that it does not know, and tasks are not relayed: a backend that heard of
them would rely on what never comes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from providers.lines import Json

RELAYED: Mapping[str, tuple[str, ...]] = {
    "elicitation": ("form", "url"),
    "sampling": ("context", "tools"),
    "roots": ("listChanged",),
}
"""The capabilities that the gateway relays, with the parts that MCP knows. A declaration is part of keys, and a client
of 2026-07-28 may make another one with each request: with words of its own it could make sessions without end."""
_FLAGS = ("applyDefaults",)
"""Within a part: the TypeScript SDK's clients say so that they fill in the defaults of a form."""

_QUESTIONS = {
    "elicitation/create": "elicitation",
    "sampling/createMessage": "sampling",
    "roots/list": "roots",
}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """A declaration as canonical JSON. It is true if the client can be asked anything."""

    text: str = "{}"

    @classmethod
    def of(cls, declared: Mapping[str, Any]) -> Capabilities:
        """Of a client's whole declaration, what the gateway relays."""
        relayed = {name: _parts_of(declared[name], parts) for name, parts in RELAYED.items() if name in declared}
        known = {name: parts for name, parts in relayed.items() if parts is not None}
        return cls(json.dumps(known, sort_keys=True, separators=(",", ":")))

    def __bool__(self) -> bool:
        return self.text != "{}"

    @property
    def declared(self) -> Json:
        """The declaration, to be handed on as it is."""
        declared: Json = json.loads(self.text)
        return declared

    def missing(self, method: str, params: Mapping[str, Any]) -> Json | None:
        """What a client would have to declare to be asked this; None where it did.

        Args:
            method: a question's; anything else is missing without a name.
        """
        name = _QUESTIONS.get(method)
        if name is None:
            return {}
        declared, part = self.declared.get(name), _part(name, params)
        if declared is None:
            return {name: {part: {}} if part else {}}
        # Elicitation without parts is that of forms, which was there first.
        is_there = part is None or part in declared or (part == "form" and "url" not in declared)
        return None if is_there else {name: {part: {}}}

    def has(self, method: str) -> bool:
        """Whether the capability that a question is about was declared at all, in whatever part."""
        return _QUESTIONS.get(method) in self.declared


NO_CAPABILITIES = Capabilities()


def _parts_of(declared: Any, known: tuple[str, ...]) -> Json | None:
    """Of one capability, the parts that are known, and what is known of them."""
    if not isinstance(declared, Mapping):
        return None
    given = {name: declared[name] for name in known if isinstance(declared.get(name), bool | Mapping)}
    return {name: value if isinstance(value, bool) else _flags_of(value) for name, value in given.items()}


def _flags_of(part: Mapping[str, Any]) -> Json:
    return {name: part[name] for name in _FLAGS if isinstance(part.get(name), bool)}


def _part(name: str, params: Mapping[str, Any]) -> str | None:
    """The part of a capability that a question needs."""
    if name == "elicitation":
        return "url" if params.get("mode") == "url" else "form"
    if name == "sampling" and (params.get("tools") is not None or params.get("toolChoice") is not None):
        return "tools"
    return None
