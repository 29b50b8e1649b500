"""Catalogs for tests: one written by hand, and a real one where it lies beside the checkout."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from composition.discovery.catalog import read_catalog
from composition.discovery.catalog_sources import Shelf
from composition.discovery.found import Found, NeedKind, State

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "tests" / "composition" / "discovery" / "catalogs" / "small.yaml"
REAL = ROOT.parent / "shared" / "data" / "docker-catalog" / "docker-catalog.yaml"
CATALOGS = [file for file in (SMALL, REAL) if file.exists()]
"""Those that are there. A test of each of them is not skipped where the real one is absent: it is not collected."""


def shelf_of(file: Path) -> Shelf:
    """A catalog, as the commands have it."""
    shelf = Shelf()
    shelf.add(file.name, read_catalog(file.read_bytes()))
    return shelf


def needed(server: Found) -> str:
    """Of which kinds a server needs something: `a secret`, `a value`, or both."""
    words = {NeedKind.SECRET: "a secret", NeedKind.CONFIG: "a value"}
    kinds = {"a token of its login" if "OAuth" in need.description else words[need.kind] for need in server.missing}
    return " and ".join(sorted(kinds))


def summary(file: Path, servers: list[Found]) -> list[str]:
    """How many servers of a catalog are runnable, need something (what), or are not runnable (why)."""
    counted: Counter[tuple[str, str]] = Counter()
    for server in servers:
        match server.state:
            case State.RUNNABLE:
                why = ""
            case State.NEEDS:
                why = needed(server)
            case State.NOT_RUNNABLE:
                why = server.problem or ""
        counted[str(server.state), why] += 1
    lines = [f"{count:5}  {state:16}{why}".rstrip() for (state, why), count in sorted(counted.items(), reverse=True)]
    return [f"catalog {file.name}: {len(servers)} servers", *lines]
