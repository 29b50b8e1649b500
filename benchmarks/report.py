"""Results as people read them: a markdown table per measurement, its ratios, and a line per target. Called by
`__main__`.

Numbers are medians over the rounds, with the least and the greatest behind them where there were several:
that is the noise. A ratio is the median of the ratios of each round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.answers import Era
from benchmarks.driver import Outcome
from benchmarks.fronts import Variant, Via
from benchmarks.measurements import (
    IDLE_SERVERS,
    LISTED_SERVERS,
    LISTED_TOOLS,
    SESSIONS,
    STARTED_SERVERS,
    STARTED_TOOLS,
    Row,
    Start,
)

UNKNOWN = "-"
Ask = Callable[[Outcome], float]


@dataclass(frozen=True)
class Verdict:
    """One target and how it was met; `met` of None: it was not measured."""

    target: str
    found: str
    met: bool | None

    def __str__(self) -> str:
        word = {True: "met", False: "NOT MET", None: "not measured"}[self.met]
        return f"- {word}: {self.target}: {self.found}"


def p50(outcome: Outcome) -> float:
    return outcome.p50_ms


def p99(outcome: Outcome) -> float:
    return outcome.p99_ms


def rate(outcome: Outcome) -> float:
    return outcome.calls / outcome.seconds


def calls_table(rows: Sequence[Row]) -> str:
    """One variant a line: latency alone, throughput and CPU with 16 sessions, and what it cost elsewhere."""
    head = [
        "",
        "p50 ms, 1",
        "p99 ms, 1",
        f"calls/s, {SESSIONS}",
        "x create_proxy",
        f"p99 ms, {SESSIONS}",
        f"CPU ms/call, {SESSIONS}",
        "x shared",
        "backend requests/call",
        "MB idle to loaded",
    ]
    slow, shared = _row(rows, Variant.CREATE_PROXY), _row(rows, Variant.SHARED)
    lines = [
        [
            row.variant,
            _spread(map(p50, row.alone)),
            _spread(map(p99, row.alone)),
            _spread(map(rate, row.crowded)),
            _times(_ratio(_rates(row), _rates(slow))),
            _spread(map(p99, row.crowded)),
            _spread(_cpu(row.crowded)),
            _times(_ratio(_cpu(row.crowded), _cpu(shared.crowded if shared else ()))),
            _requests(row),
            _memory(row),
        ]
        for row in rows
    ]
    return _table(head, lines) + _errors(rows)


def listings_table(rows: Sequence[Row]) -> str:
    """Listings and single calls in front of many servers."""
    slow = _row(rows, Variant.CREATE_PROXY)
    head = [
        "",
        "tools/list p50 ms",
        "tools/list p99 ms",
        "x create_proxy",
        "CPU ms/list",
        "tools/call p50 ms",
        "MB loaded",
    ]
    lines = [
        [
            row.variant,
            _spread(map(p50, row.listings)),
            _spread(map(p99, row.listings)),
            _times(_ratio(_p50s(row.listings), _p50s(slow.listings if slow else ()))),
            _spread(_cpu(row.listings)),
            _spread(map(p50, row.alone)),
            _number(row.loaded_mb),
        ]
        for row in rows
    ]
    return _table(head, lines) + _errors(rows)


def idle_table(rows: Sequence[Row]) -> str:
    """Calls with and without the idle servers."""
    head = ["", "p50 ms, 1", "x without", "p99 ms, 1", "CPU ms/call, 1", "x without", "MB loaded"]
    names = ["one server", f"one used, {IDLE_SERVERS} idle"]
    lines = [
        [
            name,
            _spread(map(p50, row.alone)),
            _times(_ratio(_p50s(row.alone), _p50s(rows[0].alone))),
            _spread(map(p99, row.alone)),
            _spread(_cpu(row.alone)),
            _times(_ratio(_cpu(row.alone), _cpu(rows[0].alone))),
            _number(row.loaded_mb),
        ]
        for name, row in zip(names, rows, strict=True)
    ]
    return _table(head, lines) + _errors(rows)


def starts_table(starts: Sequence[Start]) -> str:
    """Start-up; `none in time` where the first listing was given up."""
    healthy = (STARTED_SERVERS - 1) * STARTED_TOOLS
    head = [
        "",
        "initialize answered, s",
        "first tools/list answered, s",
        f"tools in it (of {healthy})",
        "the next tools/list, ms",
    ]
    lines = []
    for start in starts:
        listed = [seconds for seconds in start.list_seconds if seconds is not None]
        missed = len(start.list_seconds) - len(listed)
        lines.append(
            [
                f"{start.variant}: no backends" if start.variant is Variant.ALONE else start.variant,
                _spread(start.initialize_seconds),
                _spread(listed) if not missed else "none in time",
                "/".join(map(str, sorted(set(start.listed)))),
                _spread(1000 * seconds for seconds in start.again_seconds),
            ]
        )
    return _table(head, lines)


def call_verdicts(rows: Sequence[Row], era: Era) -> list[Verdict]:
    """The targets of HTTP to HTTP."""
    ours, slow = _row(rows, Variant.GATEWAY), _row(rows, Variant.CREATE_PROXY)
    shared, direct = _row(rows, Variant.SHARED), _row(rows, Variant.DIRECT)
    where = f"HTTP to HTTP, {era}, {SESSIONS} sessions"
    faster = _ratio(_rates(ours), _rates(slow))
    cpu = _ratio(_cpu(ours.crowded if ours else ()), _cpu(shared.crowded if shared else ()))
    slowest = median(map(p99, ours.crowded)) if ours and ours.crowded else None
    more = None
    if ours and direct and ours.requests_per_call is not None and direct.requests_per_call is not None:
        more = sum(ours.requests_per_call.values()) - sum(direct.requests_per_call.values())
    return [
        _verdict(f"{where}: throughput at least 10 x create_proxy", faster, "{:.1f} x", lambda x: x >= 10),
        _verdict(f"{where}: CPU per call at most 0.5 x shared client", cpu, "{:.2f} x", lambda x: x <= 0.5),
        _verdict(f"{where}: p99 at most 40 ms", slowest, "{:.1f} ms", lambda x: x <= 40),
        _verdict(f"HTTP to HTTP, {era}: no more backend requests than direct", more, "{:+.2f}", lambda x: x <= 0),
    ]


def listing_verdicts(rows: Sequence[Row], era: Era) -> list[Verdict]:
    """The target of the warm catalogue."""
    ours = _row(rows, Variant.GATEWAY)
    found = median(map(p50, ours.listings)) if ours and ours.listings else None
    target = f"tools/list of {LISTED_SERVERS} x {LISTED_TOOLS}, {era}: under 30 ms"
    return [_verdict(target, found, "{:.1f} ms", lambda x: x < 30)]


def idle_verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """The target of idle servers. CPU time has to keep to it, too: on a busy machine it is the steadier of the two, and
    with one call at a time it is what the latency consists of."""
    alone, among = rows
    changes = [
        _ratio(_p50s(among.alone), _p50s(alone.alone)),
        _ratio(_cpu(among.alone), _cpu(alone.alone)),
    ]
    target = f"{IDLE_SERVERS} idle servers change a call's latency by less than 10 %"
    known = [100 * (change - 1) for change in changes if change is not None]
    if not known:
        return [Verdict(target, UNKNOWN, None)]
    found = ", ".join(f"{change:+.1f} % {what}" for change, what in zip(known, ("latency", "CPU"), strict=False))
    return [Verdict(target, found, max(known) < 10)]


def title(front: Via, back: Via, era: Era) -> str:
    names = {Via.HTTP: "HTTP", Via.STDIO: "stdio"}
    return f"{names[front]} client, {names[back]} backend, {era} era"


def _verdict(target: str, found: float | None, form: str, met: Callable[[float], bool]) -> Verdict:
    if found is None:
        return Verdict(target, UNKNOWN, None)
    return Verdict(target, form.format(found), met(found))


def _row(rows: Iterable[Row], variant: Variant) -> Row | None:
    return next((row for row in rows if row.variant is variant), None)


def _rates(row: Row | None) -> list[float]:
    return [rate(outcome) for outcome in row.crowded] if row else []


def _cpu(outcomes: Iterable[Outcome]) -> list[float]:
    return [outcome.cpu_ms for outcome in outcomes if outcome.cpu_ms is not None]


def _p50s(outcomes: Iterable[Outcome]) -> list[float]:
    return [outcome.p50_ms for outcome in outcomes]


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """The median of the rounds' own ratios: what else the machine did in a round fell on both."""
    pairs = list(zip(ours, theirs, strict=False))
    return median(mine / other for mine, other in pairs) if pairs and all(theirs) else None


def _times(ratio: float | None) -> str:
    if ratio is None:
        return UNKNOWN
    digits = 0 if ratio >= 100 else 1 if ratio >= 10 else 2 if ratio >= 0.1 else 3
    return f"{ratio:,.{digits}f}"


def _number(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def _spread(values: Iterable[float]) -> str:
    found = list(values)
    if not found:
        return UNKNOWN
    middle = _number(median(found))
    return middle if len(found) == 1 else f"{middle} ({_number(min(found))}-{_number(max(found))})"


def _requests(row: Row) -> str:
    if row.requests_per_call is None:
        return UNKNOWN
    total = sum(row.requests_per_call.values())
    others = [method for method in row.requests_per_call if method != "tools/call"]
    return f"{total:.4g}" + (f" (also {', '.join(others)})" if others else "")


def _memory(row: Row) -> str:
    return UNKNOWN if row.idle_mb is None else f"{_number(row.idle_mb)} to {_number(row.loaded_mb)}"


def _errors(rows: Iterable[Row]) -> str:
    return "".join(f"\n\n{row.variant} failed: {row.error}" for row in rows if row.error)


def _table(head: list[str], lines: Iterable[Sequence[Any]]) -> str:
    ruled = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in ruled)
