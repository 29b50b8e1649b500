"""The benchmark's own parts, tiny: its backends answer its driver in both eras, and the driver notices a
wrong answer. Nothing here asserts a time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from pathlib import Path
from urllib.request import urlopen

import anyio.to_thread
import pytest

from benchmarks import fronts, measurements, report
from benchmarks.answers import Era
from benchmarks.driver import Load, Outcome
from benchmarks.fronts import Backend, Site, Variant, Via, started
from benchmarks.measurements import Bench, Plan, Row
from benchmarks.processes import ROOT, Cores, Helper, helper
from benchmarks.sessions import Target

TINY = Plan(rounds=1, seconds_alone=0.05, seconds_crowded=0.05)
ERAS = pytest.mark.parametrize("era", list(Era))


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with helper("http_backend", frozenset()) as backend:
        yield Site((await backend.read())["port"], Cores(), tmp_path)


async def drive(driver: Helper, load: Load) -> Outcome:
    return Outcome(**await driver.ask(asdict(load), 30))


def direct(site: Site, backend: Backend) -> Target:
    return Target(backend.era, url=backend.entry(Via.HTTP, site.http_port, site.cores)["url"])


@ERAS
async def test_an_http_backend_answers_many_sessions(site: Site, era: Era) -> None:
    target = direct(site, Backend("one", era))
    async with helper("driver", frozenset()) as driver:
        outcome = await drive(driver, Load(target, "tools/call", concurrency=4, seconds=0, min_calls=20))
    assert (outcome.error, outcome.calls) == (None, 20)
    assert 0 < outcome.p50_ms <= outcome.p99_ms


@ERAS
async def test_a_stdio_backend_answers_calls_that_share_its_pipes(site: Site, era: Era) -> None:
    backends = [Backend("one", era)]
    async with started(site, Variant.DIRECT, era, backends, front=Via.STDIO, back=Via.STDIO) as front:
        assert front.target.pipes is not None
        async with helper("driver", frozenset(), front.target.pipes) as driver:
            load = Load(front.target, "tools/call", concurrency=4, seconds=0, min_calls=20)
            outcome = await drive(driver, load)
    assert (outcome.error, outcome.calls) == (None, 20)


@ERAS
async def test_a_listing_is_checked_for_its_length(site: Site, era: Era) -> None:
    listing = Load(direct(site, Backend("wide", era, tools=50)), "tools/list", seconds=0, tool_count=50)
    async with helper("driver", frozenset()) as driver:
        right = await drive(driver, listing)
        wrong = await drive(driver, replace(listing, tool_count=51))
    assert right.error is None
    assert wrong.error is not None and "listed 50 tools, not 51" in wrong.error


async def test_a_backend_that_hangs_ends_a_load_at_its_deadline(site: Site) -> None:
    target = direct(site, Backend("hung", Era.MODERN, hangs=True))
    async with helper("driver", frozenset()) as driver:
        outcome = await drive(driver, Load(target, "tools/call", begin_seconds=0.1))
    assert outcome.error is not None and outcome.error.startswith("TimeoutError")


async def test_a_backend_speaks_only_its_own_era(site: Site) -> None:
    handshake = direct(site, Backend("one", Era.HANDSHAKE))
    async with helper("driver", frozenset()) as driver:
        outcome = await drive(driver, Load(replace(handshake, era=Era.MODERN), "tools/call"))
    assert outcome.error is not None and outcome.error.startswith("WrongAnswer")


async def test_requests_are_counted_by_path_and_method(site: Site) -> None:
    backend = Backend("one", Era.HANDSHAKE)
    async with helper("driver", frozenset()) as driver:
        await drive(driver, Load(direct(site, backend), "tools/call", seconds=0, min_calls=3))
    counts = await anyio.to_thread.run_sync(read_counts, site)
    assert counts == {backend.path: {"initialize": 1, "notifications/initialized": 1, "tools/call": 3}}


def read_counts(site: Site) -> dict[str, dict[str, int]]:
    with urlopen(f"http://127.0.0.1:{site.http_port}/counts", timeout=5) as answer:
        counts: dict[str, dict[str, int]] = json.load(answer)
        return counts


@pytest.mark.parametrize("back", list(Via))
async def test_direct_calls_are_measured_and_reported(site: Site, back: Via) -> None:
    bench = Bench(site, TINY, (Variant.DIRECT,))
    rows = await measurements.calls(bench, Via.HTTP, back, Era.HANDSHAKE)
    assert [row.error for row in rows] == [None]
    assert rows[0].requests_per_call == ({"tools/call": 1.0} if back is Via.HTTP else None)
    assert "| direct |" in report.calls_table(rows)


async def test_a_proxy_is_measured_in_a_process_of_its_own(site: Site) -> None:
    rows = await measurements.calls(Bench(site, TINY, (Variant.SHARED,)), Via.HTTP, Via.HTTP, Era.HANDSHAKE)
    assert [row.error for row in rows] == [None]
    requests = rows[0].requests_per_call
    assert requests is not None and requests["tools/call"] == 1.0  # its client may look for a stream meanwhile


async def test_a_front_that_does_not_start_is_reported_with_its_log(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [sys.executable, "-c", "raise SystemExit('no such setting')"]
    monkeypatch.setattr(fronts, "_command", lambda *_: (broken, {}))
    rows = await measurements.calls(Bench(site, TINY, (Variant.GATEWAY,)), Via.HTTP, Via.HTTP, Era.HANDSHAKE)
    assert rows[0].error is not None and "no such setting" in rows[0].error
    assert "gateway failed: did not start" in report.calls_table(rows)


def test_targets_compare_rounds_of_one_run() -> None:
    def row(variant: Variant, calls: int, cpu: float) -> Row:
        crowded = [Outcome(calls, 1.0, 1.0, 2.0, cpu_ms=cpu)] * 3
        return Row(variant, crowded=crowded, requests_per_call={"tools/call": 1.0})

    rows = [row(Variant.DIRECT, 900, 0), row(Variant.GATEWAY, 500, 1), row(Variant.CREATE_PROXY, 50, 20)]
    verdicts = report.call_verdicts([*rows, row(Variant.SHARED, 250, 1.5)], Era.HANDSHAKE)
    assert [(verdict.found, verdict.met) for verdict in verdicts] == [
        ("10.0 x", True),
        ("0.67 x", False),
        ("2.0 ms", True),
        ("+0.00", True),
    ]


def test_idle_servers_may_cost_neither_time_nor_cpu() -> None:
    def row(p50_ms: float, cpu_ms: float) -> Row:
        return Row(Variant.GATEWAY, alone=[Outcome(100, 1.0, p50_ms, 2.0, cpu_ms=cpu_ms)])

    cheap, dear = (
        report.idle_verdicts([row(1.0, 1.0), row(0.9, 1.05)]),
        report.idle_verdicts([row(1.0, 1.0), row(0.9, 1.2)]),
    )
    assert (cheap[0].met, dear[0].met) == (True, False)
    assert dear[0].found == "-10.0 % latency, +20.0 % CPU"


def test_nothing_known_is_not_taken_for_met() -> None:
    assert {verdict.met for verdict in report.call_verdicts([], Era.MODERN)} == {None}


def test_the_command_explains_itself() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "--quick" in shown and "--json" in shown
