"""What a person sees of the servers while `serve` and `check` connect to them: a line each, as soon as it answers."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import TextIO

import anyio

from composition.gateway import Gateway, GatewayState
from composition.mount import Mount
from providers.errors import BackendResting
from providers.hardening import relaxations
from providers.resource import McpServerResource, TransportType

_GREEN, _RED, _DIM, _PLAIN = "\033[32m", "\033[31m", "\033[2m", "\033[0m"
_HEADER = ("NAME", "TRANSPORT", "STATE", "TOOLS", "MS", "ERROR")


@dataclass(frozen=True, slots=True)
class Report:
    """How it went with one server. `state` is `ok`, `failed` or `disabled`; times in milliseconds."""

    name: str
    transport: str
    state: str
    tools: int | None = None
    milliseconds: float | None = None
    error: str = ""


async def connect_all(gateway: Gateway, tell: Callable[[Report], None]) -> None:
    """Connect to every enabled server at once and tell of each as it answers; of disabled ones first. Each has its own
    deadlines. Only as many processes start at a time as there are processors: clients that are there already come
    first."""
    for resource in gateway.store.snapshot.values():
        if not resource.is_enabled:
            tell(Report(resource.name, str(resource.transport_type), "disabled"))
    starts = anyio.CapacityLimiter(max(2, os.cpu_count() or 2))
    async with anyio.create_task_group() as tasks:
        for mount in list(gateway.registry.mounts.values()):
            is_process = mount.resource.transport_type is TransportType.STDIO
            tasks.start_soon(_connect, gateway, mount, tell, starts if is_process else nullcontext())


async def _connect(
    gateway: Gateway, mount: Mount, tell: Callable[[Report], None], turn: AbstractAsyncContextManager[None]
) -> None:
    async with turn:
        began, caller = anyio.current_time(), gateway.operator_caller()
        listing = await mount.catalogue.get(caller)
        took = (anyio.current_time() - began) * 1000
    name, transport = mount.resource.name, str(mount.resource.transport_type)
    if listing is not None:
        relaxed = f"relaxed: {', '.join(asked)}" if (asked := relaxations(mount.resource)) else ""
        tell(Report(name, transport, "ok", len(mount.offer(listing).tools), took, relaxed))
        return
    error = mount.catalogue.error(caller)
    if gateway.state is not GatewayState.RUNNING:
        return  # it failed because the gateway ends, which says nothing about it
    problem = "gave no answer."
    if error is not None:
        problem = error.reason if isinstance(error, BackendResting) else error.problem
    tell(Report(name, transport, "failed", None, took, problem))


class Table:
    """Rows printed as they come, in columns wide enough for what is known beforehand; in colour on a terminal only."""

    def __init__(self, out: TextIO, resources: list[McpServerResource]) -> None:
        self._out = out
        self._is_coloured = out.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._widths = (
            max([len(_HEADER[0]), *(len(resource.name) for resource in resources)]),
            max([len(_HEADER[1]), *(len(str(resource.transport_type)) for resource in resources)]),
            len("disabled"),
            5,
            6,
        )

    def header(self) -> None:
        self._print(self._row(_HEADER))

    def add(self, report: Report) -> None:
        cells = (
            report.name,
            report.transport,
            report.state,
            "-" if report.tools is None else str(report.tools),
            "-" if report.milliseconds is None else f"{report.milliseconds:.0f}",
            report.error,
        )
        colour = {"ok": _GREEN, "failed": _RED}.get(report.state, _DIM)
        row = self._row(cells)
        self._print(f"{colour}{row}{_PLAIN}" if self._is_coloured else row)

    def _row(self, cells: tuple[str, ...]) -> str:
        *columns, error = cells
        aligned = [
            cell.rjust(width) if index > 2 else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(columns, self._widths, strict=True))
        ]
        return "  ".join([*aligned, error]).rstrip()

    def _print(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()
