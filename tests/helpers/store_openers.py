"""Processes that open new SQLite stores in the same moment: `python store_openers.py FOLDER FILES`.

It makes that many files, one after another, and has each opened by several processes at once. What one of them could
not do is told on stderr, and is the exit code.
"""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from providers.store_sqlite import SqliteMcpResourceStore

SCRIPT = Path(__file__)
AT_ONCE = 4
SECONDS = 30.0


def open_each(folder: Path, files: int, start: Barrier) -> None:
    async def all_of_them() -> None:
        for number in range(files):
            store = SqliteMcpResourceStore(folder / f"{number}.db")
            start.wait(SECONDS)
            async with store:
                assert await store.list_all() == {}

    anyio.run(all_of_them)


def main(folder: Path, files: int) -> int:
    at_once = multiprocessing.get_context("fork")
    start = at_once.Barrier(AT_ONCE)
    openers = [at_once.Process(target=open_each, args=(folder, files, start)) for _ in range(AT_ONCE)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join()
    return max(abs(opener.exitcode or 0) for opener in openers)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
