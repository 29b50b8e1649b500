"""The command line of the benchmark: which measurements, how long, and where the results go.

    uv run benchmarks/run.py [--quick] [--only NAME ...] [--variants NAME ...] [--json FILE]

It calls `measurements` one after another and prints each table as soon as it is there. Everything listens on
127.0.0.1 only, is bounded in time, and ends with the command.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio

from benchmarks import measurements, report
from benchmarks.answers import Era
from benchmarks.fronts import Site, Variant, Via
from benchmarks.measurements import QUICK, Bench, Plan, Row
from benchmarks.processes import Cores, helper, other_seconds, share_cores
from benchmarks.report import Verdict

_COMPARED = (Variant.DIRECT, Variant.GATEWAY, Variant.CREATE_PROXY, Variant.SHARED)
_EVERYTHING_SECONDS = 600.0


@dataclass(frozen=True)
class Section:
    """One measurement of the run. `name` is what --only takes; `quick` says whether --quick has it."""

    name: str
    era: Era
    front: Via = Via.HTTP
    back: Via = Via.HTTP
    quick: bool = False


SECTIONS = (
    Section("http-http", Era.HANDSHAKE, quick=True),
    Section("http-http", Era.MODERN, quick=True),
    Section("http-stdio", Era.HANDSHAKE, back=Via.STDIO, quick=True),
    Section("http-stdio", Era.MODERN, back=Via.STDIO),
    Section("stdio-stdio", Era.HANDSHAKE, front=Via.STDIO, back=Via.STDIO),
    Section("stdio-stdio", Era.MODERN, front=Via.STDIO, back=Via.STDIO),
    Section("list", Era.HANDSHAKE, quick=True),
    Section("list", Era.MODERN),
    Section("idle", Era.HANDSHAKE, quick=True),
    Section("start", Era.HANDSHAKE, quick=True),
    Section("start", Era.HANDSHAKE, front=Via.STDIO, back=Via.STDIO),
)


@dataclass(frozen=True)
class Result:
    """What a section found: for people, for the targets, and as it is for --json."""

    heading: str
    table: str
    verdicts: Sequence[Verdict]
    raw: Sequence[Any]


async def measure(bench: Bench, section: Section) -> Result | None:
    """Run one section; None where the chosen variants leave nothing to compare."""
    where = report.title(section.front, section.back, section.era)
    match section.name:
        case "list":
            rows = await measurements.listings(bench, section.era)
            size = f"{measurements.LISTED_SERVERS} servers x {measurements.LISTED_TOOLS} tools"
            heading = f"tools/list, {size}: {where}"
            return Result(heading, report.listings_table(rows), report.listing_verdicts(rows, section.era), rows)
        case "idle":
            if Variant.GATEWAY not in bench.variants:
                return None
            rows = await measurements.idle_servers(bench)
            heading = f"The gateway with idle servers, one call at a time: {where}"
            return Result(heading, report.idle_table(rows), report.idle_verdicts(rows), rows)
        case "start":
            starts = await measurements.start_ups(bench, section.front, section.back)
            heading = f"Start-up with {measurements.STARTED_SERVERS} servers of which one hangs: {where}"
            return Result(heading, report.starts_table(starts), (), starts)
        case _:
            return await _measure_calls(bench, section, where)


async def _measure_calls(bench: Bench, section: Section, where: str) -> Result:
    rows: list[Row] = await measurements.calls(bench, section.front, section.back, section.era)
    has_targets = section.front is Via.HTTP and section.back is Via.HTTP
    verdicts = report.call_verdicts(rows, section.era) if has_targets else []
    return Result(f"tools/call, one server: {where}", report.calls_table(rows), verdicts, rows)


def describe(cores: Cores, plan: Plan) -> str:
    """Where and with what this was measured."""
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    return (
        f"fastmcp {version('fastmcp')}, mcp {version('mcp')}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores ({cores}), load average {load} "
        f"at the start, {plan.rounds} round{'s' * (plan.rounds != 1)}: median (least-greatest)"
    )


def describe_noise(seconds: float, others: float | None) -> str:
    """How much the rest of the machine did in these seconds; `others` is what `other_seconds` said before them."""
    took = f"The run took {seconds:.0f} s."
    now = other_seconds()
    if now is None or others is None:
        return took
    share = (now - others) / seconds / (os.cpu_count() or 1)
    return f"{took} Meanwhile other processes used {max(0.0, share):.0%} of the machine's CPU time."


async def run(sections: Sequence[Section], plan: Plan, variants: tuple[Variant, ...], file: Path | None) -> None:
    """All sections, one after another, with the HTTP backends running beside them."""
    cores = share_cores()
    if cores.load:
        os.sched_setaffinity(0, cores.load)
    about = describe(cores, plan)
    print(f"# Apollos MCP Gateway: benchmark\n\n{about}\n", flush=True)
    results: list[Result] = []
    started, others = time.monotonic(), other_seconds()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        async with helper("http_backend", cores.load) as backend:
            site = Site((await backend.read())["port"], cores, Path(directory))
            bench = Bench(site, plan, variants)
            for section in sections:
                with anyio.fail_after(_EVERYTHING_SECONDS):
                    result = await measure(bench, section)
                if result is not None:
                    results.append(result)
                    print(f"## {result.heading}\n\n{result.table}\n", flush=True)
    disturbed = describe_noise(time.monotonic() - started, others)
    verdicts = [verdict for result in results for verdict in result.verdicts]
    if verdicts:
        print("## Targets\n\n" + "\n".join(map(str, verdicts)) + "\n")
    print(disturbed)
    if file is not None:
        raw = [{"heading": result.heading, "rows": [asdict(row) for row in result.raw]} for result in results]
        targets = [asdict(verdict) for verdict in verdicts]
        file.write_text(json.dumps({"about": about, "noise": disturbed, "results": raw, "targets": targets}, indent=1))  # noqa: ASYNC240


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(dict.fromkeys(section.name for section in SECTIONS))
    parser.add_argument("--quick", action="store_true", help="under a minute: one round, fewer sections")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"some of: {', '.join(names)}")
    parser.add_argument("--variants", nargs="+", type=Variant, choices=_COMPARED, default=_COMPARED, metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's numbers there")
    options = parser.parse_args()
    modern = int(version("fastmcp").partition(".")[0]) >= 4  # FastMCP 3 knows only the handshake
    sections = [
        section
        for section in SECTIONS
        if (section.name in options.only if options.only else section.quick or not options.quick)
        and (modern or section.era is Era.HANDSHAKE)
    ]
    plan = QUICK if options.quick else Plan()
    anyio.run(run, sections, plan, tuple(options.variants), options.json)


if __name__ == "__main__":
    main()
