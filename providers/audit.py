"""The audit: one line of JSON for each decision and for the end of each call.

Whoever decides comes in: `composition.admission` for what MCP clients ask, `composition.door` for what HTTP refuses,
the REST API for its routes. Lines go to `audit_log`. They hold names and sizes, never the value of an argument, never a
secret; what a caller wrote is cut to a length, and escaped, so that nobody can forge a line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Self
from uuid import uuid4

from providers.audit_log import AuditLog
from providers.identity import Identity
from providers.visit import visit_of

MAX_TEXT, MAX_NAMES, MAX_NAME = 256, 32, 64
"""Characters of a target, an issuer or a subject; names of arguments or roles, and characters of each."""

_TRACE = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_USER_IN_PATH = re.compile(r"[^/]*@")

Json = dict[str, Any]


@dataclass(slots=True)
class Asked:
    """What was asked for. `target` is a tool, a prompt, a URI or a path, as the caller wrote it."""

    method: str
    server: str | None = None
    target: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    session: str | None = None
    """Our own key of the client's session, never its id, which is a credential."""
    trace: str | None = None


@dataclass(slots=True)
class Entry:
    """One request in the audit: its decision, then its end."""

    common: Json
    began: float = field(default_factory=monotonic)
    outcome: str | None = None
    """Set by who knows better than the answer how it ended."""
    backend: str | None = None
    """What served it: see `served_by`."""


class Audit:
    """Writes decisions and ends. Everything is a no-op where there is no log.

    Args:
        log: where lines go; None: the audit is off.
    """

    def __init__(self, log: AuditLog | None) -> None:
        self.log = log

    def __repr__(self) -> str:
        return f"<Audit {self.log!r}>" if self.log else "<Audit off>"

    async def __aenter__(self) -> Self:
        """Write, as long as the block lasts; see `AuditLog`."""
        if self.log is not None:
            await self.log.__aenter__()
        return self

    async def __aexit__(self, *left: Any) -> None:
        if self.log is not None:
            await self.log.__aexit__(*left)

    @property
    def is_on(self) -> bool:
        return self.log is not None

    async def decision(
        self, scope: MutableMapping[str, Any] | None, asked: Asked, identity: Identity | None, rule: str, *, allow: bool
    ) -> Entry:
        """Write down that a request is allowed or refused, and by which rule.

        Args:
            scope: of the HTTP request, which then counts as decided; None over stdio.

        Raises:
            AuditFailed: it has to be written before anything goes on, and cannot be.
        """
        visit = visit_of(scope)
        if visit is not None:
            visit.is_decided = True
        entry = Entry({})
        if self.log is None:
            return entry
        entry.common = _common(asked, identity, visit.source if visit else "stdio" if scope is None else "unknown")
        more: Json = {"arguments": sizes(asked.arguments)} if asked.arguments else {}
        decided = {"decision": "allow" if allow else "deny", "rule": text(rule)}
        await self._write("decision", entry.common | more | decided)
        return entry

    async def end(self, entry: Entry, outcome: str, bytes_in: int, bytes_out: int, *, waits: bool = True) -> None:
        """Write down how a call ended.

        Args:
            waits: false for a call that nobody waits for any more.

        Raises:
            AuditFailed: as for `decision`.
        """
        if self.log is None:
            return
        ended = {
            "outcome": text(entry.outcome or outcome),
            "ms": round((monotonic() - entry.began) * 1000, 1),
            "bytes_in": bytes_in,
            "bytes_out": bytes_out,
        }
        served = {"backend": text(entry.backend)} if entry.backend else {}
        await self._write("end", entry.common | ended | served, waits=waits)

    async def _write(self, event: str, fields: Json, *, waits: bool = True) -> None:
        assert self.log is not None
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        await self.log.write(json.dumps({"time": now, "event": event, **fields}).encode() + b"\n", waits=waits)


def _common(asked: Asked, identity: Identity | None, source: str) -> Json:
    fields: Json = {"id": uuid4().hex}
    if asked.session is not None:
        fields["session"] = text(asked.session)
    if asked.trace is not None and _TRACE.fullmatch(asked.trace):
        fields["trace"] = asked.trace
    if identity is not None:
        roles = [text(role, MAX_NAME) for role in sorted(identity.roles)[:MAX_NAMES]]
        fields |= {"iss": text(identity.issuer), "sub": text(identity.user_id), "roles": roles}
    fields |= {"source": text(source), "method": text(asked.method, MAX_NAME)}
    if asked.server is not None:
        fields["server"] = text(asked.server, MAX_NAME)
    if asked.target is not None:
        fields["target"] = text(without_secrets(asked.target))
    return fields


def rule_of_all(identity: Identity | None) -> str:
    """The rule of what whoever is known may do."""
    if identity is None:
        return "everybody"
    return "local" if identity.issuer == "local" else "authenticated"


def text(value: str, most: int = MAX_TEXT) -> str:
    return value if len(value) <= most else value[: most - 1] + "…"


def without_secrets(target: str) -> str:
    """A URI without its query, its fragment and who logs in; any other text as it is."""
    scheme, separator, rest = target.partition(":")
    if not separator or not rest.startswith("/"):
        return target
    return f"{scheme}:{_USER_IN_PATH.sub('', re.split('[?#]', rest, maxsplit=1)[0])}"


def sizes(arguments: Mapping[str, Any]) -> dict[str, int]:
    """The names of the first arguments, each with the length of its value as JSON."""
    named = list(arguments.items())[:MAX_NAMES]
    return {text(str(name), MAX_NAME): size(value) for name, value in named}


def size(value: Any) -> int:
    """The length of a value as JSON; of a model of the SDK, as it is sent."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json", by_alias=True, exclude_none=True)
    return len(json.dumps(value, default=str))


_current: ContextVar[Entry | None] = ContextVar("apollos_audit", default=None)


def bind(entry: Entry) -> Any:
    """Have `note` and `served_by` mean this request, in this task and those that it starts; undo with `unbind`."""
    return _current.set(entry)


def unbind(token: Any) -> None:
    _current.reset(token)


def note(outcome: str) -> None:
    """Say how the current call ends, where its answer alone does not tell."""
    entry = _current.get()
    if entry is not None:
        entry.outcome = outcome


def served_by(backend: str) -> None:
    """Say which connection serves the current call."""
    entry = _current.get()
    if entry is not None:
        entry.backend = backend
