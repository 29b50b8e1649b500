"""What a person sees while the gateway connects: a line for each server, as soon as it answers."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from composition.gateway import Gateway
from composition.report import Report, Table, connect_all
from composition.servers_file import load_configuration
from providers.resource import McpServerResource
from tests.helpers.gateway import local, servers_toml
from tests.helpers.processes import eventually

pytestmark = pytest.mark.core

RECORDS = [
    McpServerResource(name="time", command="uvx"),
    McpServerResource(name="documentation", url="https://docs.example/mcp"),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(*reports: Report, out: io.StringIO | None = None) -> str:
    out = out or io.StringIO()
    table = Table(out, RECORDS)
    table.header()
    for report in reports:
        table.add(report)
    return out.getvalue()


def test_the_table_is_aligned_for_names_that_are_known_beforehand() -> None:
    assert printed(
        Report("time", "stdio", "ok", 2, 41.4),
        Report("documentation", "streamable_http", "failed", None, 1204.9, "refused the connection."),
        Report("off", "stdio", "disabled"),
    ) == (
        "NAME           TRANSPORT        STATE     TOOLS      MS  ERROR\n"
        "time           stdio            ok            2      41\n"
        "documentation  streamable_http  failed        -    1205  refused the connection.\n"
        "off            stdio            disabled      -       -\n"
    )


def test_without_servers_there_is_a_header() -> None:
    out = io.StringIO()
    Table(out, []).header()
    assert out.getvalue() == "NAME  TRANSPORT  STATE     TOOLS      MS  ERROR\n"


def test_only_a_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    report = Report("time", "stdio", "ok", 2, 41.0)
    assert "\033" not in printed(report)
    assert printed(report, out=Terminal()).splitlines()[1].startswith("\033[32m")
    assert printed(Report("time", "stdio", "failed"), out=Terminal()).splitlines()[1].startswith("\033[31m")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in printed(report, out=Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "\033" not in printed(report, out=Terminal())


async def test_each_server_is_reported_as_it_answers_and_the_slowest_last(tmp_path: Path) -> None:
    servers = {
        "hung": local("hang.py", "init-hang", timeouts={"first_start": 1.5}),
        "absent": {"command": "no-such-program-at-all"},
        "works": local("hang.py", "proper"),
        "off": local("hang.py", "proper", is_enabled=False),
    }
    path = tmp_path / "servers.toml"
    path.write_text(servers_toml(servers))
    gateway = Gateway(load_configuration(path))
    await gateway.start()
    reports: list[Report] = []
    try:
        await connect_all(gateway, reports.append)
    finally:
        await gateway.stop()
    assert [report.name for report in reports] == ["off", *sorted(["works", "absent"], key=order(reports)), "hung"]
    by_name = {report.name: report for report in reports}
    assert {name: report.state for name, report in by_name.items()} == {
        "off": "disabled",
        "works": "ok",
        "absent": "failed",
        "hung": "failed",
    }
    assert by_name["works"].tools == 1 and by_name["works"].transport == "stdio" and by_name["works"].error == ""
    assert "no-such-program-at-all" in by_name["absent"].error and "server '" not in by_name["absent"].error
    assert "did not finish 'initialize' within 1.5 s" in by_name["hung"].error
    assert by_name["hung"].milliseconds is not None and by_name["hung"].milliseconds >= 1400


async def test_the_reason_stands_alone_also_for_a_server_that_failed_before(tmp_path: Path) -> None:
    path = tmp_path / "servers.toml"
    path.write_text(servers_toml({"absent": {"command": "no-such-program-at-all"}}))
    gateway = Gateway(load_configuration(path))
    await gateway.start()
    reports: list[Report] = []
    try:
        for _ in range(4):
            await connect_all(gateway, reports.append)
    finally:
        await gateway.stop()
    assert len({report.error for report in reports}) == 1 and "tried again" not in reports[-1].error


async def test_a_server_that_the_end_of_the_gateway_interrupts_is_not_reported(tmp_path: Path) -> None:
    path = tmp_path / "servers.toml"
    path.write_text(servers_toml({"hung": local("hang.py", "init-hang")}))
    gateway = Gateway(load_configuration(path))
    await gateway.start()
    reports: list[Report] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connect_all, gateway, reports.append)
        await eventually(lambda: bool(gateway.pool.connections("hung")))
        await gateway.drain()
        await gateway.stop()
    assert reports == []


def order(reports: list[Report]) -> Callable[[str], int]:
    """By place in what was reported."""
    return [report.name for report in reports].index


async def test_a_line_that_cannot_be_printed_ends_the_asking(tmp_path: Path) -> None:
    """As when who reads the table has gone: `check | head -1`."""

    def nobody_reads(report: Report) -> None:
        raise BrokenPipeError

    path = tmp_path / "servers.toml"
    path.write_text(servers_toml({"hung": local("hang.py", "init-hang"), "works": local("hang.py", "proper")}))
    gateway = Gateway(load_configuration(path))
    await gateway.start()
    began = anyio.current_time()
    try:
        with pytest.raises(ExceptionGroup):
            await connect_all(gateway, nobody_reads)
    finally:
        await gateway.stop()
    assert anyio.current_time() - began < 5
