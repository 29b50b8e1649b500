"""How a record is written down: the same in each durable store, so that a record can be moved from one to another.

The stores come in, with rows of text; it calls `resource`, which checks what it reads. The bookkeeping stands beside
the document, so that a store changes a version without reading JSON. A document that this version cannot read is left
out and told of by name: one record never takes the others down.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import NamedTuple

from pydantic import ValidationError

from providers.errors import InternalError
from providers.resource import McpServerResource
from providers.store import Snapshot

logger = logging.getLogger(__name__)

_BESIDE = frozenset({"name", "version", "created_at", "updated_at"})
_ALWAYS = frozenset({"transport_type", "created_by"})
"""Written even where they are the default: the record says how the server is reached, and whose it is."""


class Row(NamedTuple):
    """One record as it is stored. Times are ISO 8601 in UTC, without spaces."""

    version: int
    created_at: str
    updated_at: str
    document: str


def document_of(resource: McpServerResource) -> str:
    """The JSON of a record without its bookkeeping. What is as by default is left out, so that older gateways, which
    do not know of a new key yet, read the records that do not use it."""
    document = resource.model_dump(mode="json", exclude=set(_BESIDE), exclude_defaults=True)
    document |= {key: str(getattr(resource, key)) for key in _ALWAYS}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


class Reader:
    """Reads the rows of one store. What it has read before it gives as the same object, so that who compares snapshots
    sees at once what did not change."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Row, McpServerResource | None]] = {}
        self._snapshot: Snapshot | None = None

    def snapshot(self, rows: Mapping[str, Row]) -> Snapshot:
        """All records that can be read; the same object as before if nothing changed."""
        before = self._known
        if self._snapshot is None or {name: row for name, (row, _) in before.items()} != rows:
            self._known = {
                name: known if (known := before.get(name)) and known[0] == row else (row, read(name, row))
                for name, row in rows.items()
            }
            found = {name: resource for name, (_, resource) in self._known.items() if resource is not None}
            self._snapshot = MappingProxyType(found)
        return self._snapshot


def read(name: str, row: Row) -> McpServerResource | None:
    """The record, or None where this version cannot read it."""
    try:
        document = dict(json.loads(row.document))
        beside = {"name": name, "version": row.version, "created_at": row.created_at, "updated_at": row.updated_at}
        return McpServerResource.model_validate(document | beside)
    except ValidationError as error:
        keys = ", ".join(sorted({".".join(map(str, problem["loc"])) or "the whole" for problem in error.errors()}))
        problem = f"it has something in {keys} that this version does not know"
    except (ValueError, TypeError, RecursionError):
        problem = "it is not the JSON of a record"
    logger.error("server %r is left out: its stored record cannot be read, %s", name, problem)
    return None


def stored(name: str, row: Row) -> McpServerResource:
    """A record as everybody will read it, right after it was written."""
    resource = read(name, row)
    if resource is None:
        raise InternalError(f"server '{name}': what was written of it cannot be read")
    return resource
