"""A process that writes to a store, for tests of several gateways on one: `python store_writers.py URL WRITERS ROUNDS`.

Each of its writers adds one to the count in the record "files" as often as it is told, against the version that it
has read, until it wins. Each acknowledged version is a line of stdout, written at once. With `-` for ROUNDS it goes on
until it is killed.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from composition.stores import store_at
from providers.errors import VersionConflict
from providers.resource import McpServerResource
from providers.store import McpResourceStoreBase
from providers.store_redis import RedisMcpResourceStore

SCRIPT = Path(__file__)
PATIENCE = 30.0


def patient_store(url: str) -> McpResourceStoreBase:
    """One that does not give up on a busy machine: what is tested with it is who wins, not how fast."""
    if url.startswith("redis"):
        return RedisMcpResourceStore(url, answer_within=PATIENCE)
    return store_at(url)


async def count(store: McpResourceStoreBase) -> None:
    """Add one to the count."""
    while True:
        known = await store.get("files")
        version, number = (known.version, int(known.args[0])) if known else (0, 0)
        wanted = McpServerResource(name="files", command="run", args=(str(number + 1),))
        try:
            stored = await store.upsert(wanted, expected_version=version)
        except VersionConflict:
            continue
        sys.stdout.write(f"{stored.version}\n")
        sys.stdout.flush()
        return


async def write(url: str, writers: int, rounds: int | None) -> None:
    async def writer() -> None:
        for _ in itertools.count() if rounds is None else range(rounds):
            await count(store)

    async with patient_store(url) as store, anyio.create_task_group() as tasks:
        for _ in range(writers):
            tasks.start_soon(writer)


if __name__ == "__main__":
    anyio.run(write, sys.argv[1], int(sys.argv[2]), None if sys.argv[3] == "-" else int(sys.argv[3]))
