"""How long a search for tools takes, and how long it takes to index them.

    uv run benchmarks/search.py [TOOLS.json]

TOOLS.json maps servers to their tools, as a catalog publishes them; without it, tools are made up. They are repeated
under other server names until there are 4,000.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from composition.ranking import ToolIndex, rank

ENOUGH = 4_000
QUERIES = ("create a new invoice for a customer", "list all pods", "search the web for news", "delete a firewall rule")
WORDS = [
    "create",
    "list",
    "get",
    "update",
    "delete",
    "search",
    "user",
    "group",
    "rule",
    "policy",
    "file",
    "page",
    "issue",
    "project",
    "order",
    "report",
    "log",
    "key",
]


def made_up() -> dict[str, list[dict[str, object]]]:
    chance = random.Random(7)
    return {
        f"server{number}": [
            {"name": "_".join(chance.sample(WORDS, 3)), "description": " ".join(chance.choices(WORDS, k=20))}
            for _ in range(50)
        ]
        for number in range(16)
    }


def main() -> None:
    tools = json.loads(Path(sys.argv[1]).read_text()) if len(sys.argv) > 1 else made_up()
    indexes, count, copy = [], 0, 0
    began = time.perf_counter()
    while count < ENOUGH:
        for server, forms in tools.items():
            name = f"{server}{copy}"
            indexes.append(ToolIndex(name, {f"{name}_{form['name']}": form for form in forms}))
            count += len(forms)
        copy += 1
    indexed = time.perf_counter() - began
    times = []
    for query in QUERIES * 25:
        began = time.perf_counter()
        rank(indexes, query, 5)
        times.append((time.perf_counter() - began) * 1000)
    print(f"{count} tools of {len(indexes)} servers, indexed in {indexed * 1000:.0f} ms")
    print(f"a search: {statistics.median(times):.2f} ms (median), {max(times):.2f} ms (longest of {len(times)})")


main()
