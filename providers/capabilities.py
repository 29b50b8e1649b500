"""What a client declared that it can be asked, word for word: a value, equal for equal declarations.

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

RELAYED = ("elicitation", "sampling", "roots")

_QUESTIONS = {
    "elicitation/create": "elicitation",
    "sampling/createMessage": "sampling",
    "roots/list": "roots",
}
_MAX_LENGTH = 16 * 1024
"""Characters of JSON; they are part of keys. Who declares more can be asked nothing."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """A declaration as canonical JSON. It is true if the client can be asked anything."""

    text: str = "{}"

    @classmethod
    def of(cls, declared: Mapping[str, Any]) -> Capabilities:
        """Of a client's whole declaration, what the gateway relays."""
        relayed = {name: declared[name] for name in RELAYED if isinstance(declared.get(name), dict)}
        try:
            text = json.dumps(relayed, sort_keys=True, separators=(",", ":"))
        except (RecursionError, ValueError):
            return cls()
        return cls(text) if len(text) <= _MAX_LENGTH else cls()

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


def _part(name: str, params: Mapping[str, Any]) -> str | None:
    """The part of a capability that a question needs."""
    if name == "elicitation":
        return "url" if params.get("mode") == "url" else "form"
    if name == "sampling" and (params.get("tools") is not None or params.get("toolChoice") is not None):
        return "tools"
    return None
