"""What one user's flood costs another, and what the audit costs a call.

    python -m benchmarks.neighbours [--seconds 5] [--rounds 3]

One gateway process with two users. Ada calls 40 times a second, alone and then while Eve sends calls on 64 connections
as fast as they are answered; Eve's process yields to Ada's, so that what is measured is the gateway and not the fight
of two clients for a core. Then the same gateway under as many calls of 16 sessions as it takes, with the audit off, on
and strict. The processes of the gateway and of Eve are this module, too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream
from fastmcp.server.auth.providers.jwt import StaticTokenVerifier

from benchmarks.answers import Era
from benchmarks.fronts import Backend, Via
from benchmarks.processes import EVENT_LOOP, Cores, cpu_seconds, helper, running, share_cores
from benchmarks.sessions import HttpSession, WrongAnswer, check_call
from composition.gateway import SERVE_MAX_CONNECTIONS, Gateway
from composition.http import address_of, bind, serve
from composition.servers_file import load_configuration

UNLIMITED = "max_requests_per_second = 1e9\nmax_calls_per_user = 1000000\n"
TOOL = "bench_echo"
CALLS_PER_SECOND, FLOODERS, SESSIONS = 40, 64, 16
_MAX_LINE = 1 << 16


# ----------------------------------------------------------------------------------------------- the other processes


async def serve_gateway(path: Path) -> None:
    """The gateway for Ada and Eve; prints its address."""
    users = {user: {"client_id": "bench", "sub": user, "iss": "bench"} for user in ("ada", "eve")}
    configuration = load_configuration(path)
    gateway = Gateway(configuration, max_connections=SERVE_MAX_CONNECTIONS, auth=StaticTokenVerifier(users))

    async def tell() -> None:
        print(json.dumps(address_of(listener)), flush=True)

    with bind("127.0.0.1", 0, has_auth=True) as listener:
        await serve(gateway, listener, tell)


async def flood(url: str) -> None:
    """Eve: calls on many connections, each as soon as the last was answered, refused or not; until she is ended."""
    os.nice(19)

    async def go_on() -> None:
        session = HttpSession(Era.HANDSHAKE, url, "eve")
        while True:
            try:
                await session.begin()
                while True:
                    await session.prepare()
                    await session.exchange("tools/call", {"name": TOOL, "arguments": {"text": "x"}})
            except (WrongAnswer, OSError):
                continue

    async with anyio.create_task_group() as tasks:
        for _ in range(FLOODERS):
            tasks.start_soon(go_on)


# ------------------------------------------------------------------------------------------------------ measurements


@dataclass(frozen=True)
class Bench:
    backend: str
    cores: Cores
    folder: Path
    seconds: float


@asynccontextmanager
async def gateway(bench: Bench, *settings: str) -> AsyncIterator[tuple[str, Process]]:
    """A gateway with these lines in `[gateway]`: its address, and its process."""
    path = bench.folder / "servers.toml"
    server = f'[servers.bench]\nurl = "{bench.backend}"\nrequired_roles = ["*"]\n'
    path.write_text("[gateway]\n" + "\n".join(settings) + "\n" + server)
    argv = [sys.executable, "-m", "benchmarks.neighbours", "--serve", str(path)]
    log = bench.folder / "stderr.log"
    async with running(argv, bench.cores.front, stdout=subprocess.PIPE, log=log) as process:
        assert process.stdout is not None
        with anyio.fail_after(60):
            url = json.loads(await BufferedByteReceiveStream(process.stdout).receive_until(b"\n", _MAX_LINE))
        yield url, process


async def paced(url: str, seconds: float) -> list[float]:
    """Ada's latencies in milliseconds. Every answer is checked."""
    session, took = HttpSession(Era.HANDSHAKE, url, "ada"), list[float]()
    await session.begin()
    for number in range(int(seconds * CALLS_PER_SECOND)):
        await session.prepare()
        began = time.perf_counter()
        text = f"call {number}"
        request_id, answer = await session.exchange("tools/call", {"name": TOOL, "arguments": {"text": text}})
        took.append((time.perf_counter() - began) * 1000)
        check_call(answer, request_id, text)
        await asyncio.sleep(max(0.0, 1 / CALLS_PER_SECOND - took[-1] / 1000))
    session.close()
    return took


async def beside_a_flood(bench: Bench, url: str) -> list[float]:
    argv = [sys.executable, "-m", "benchmarks.neighbours", "--flood", url]
    async with running(argv, bench.cores.load):
        await asyncio.sleep(2)  # until Eve's sessions are there and her burst is used up
        return await paced(url, bench.seconds)


async def crowded(url: str, process: Process, seconds: float) -> tuple[float, float]:
    """Calls a second of many sessions, and the gateway's CPU time for each in milliseconds."""
    calls, until = 0, time.perf_counter() + seconds
    sessions = [HttpSession(Era.HANDSHAKE, url, "ada") for _ in range(SESSIONS)]
    for session in sessions:
        await session.begin()
    before = cpu_seconds(process.pid) or 0.0

    async def go_on(session: HttpSession) -> None:
        nonlocal calls
        while time.perf_counter() < until:
            await session.prepare()
            request_id, answer = await session.exchange("tools/call", {"name": TOOL, "arguments": {"text": "x"}})
            check_call(answer, request_id, "x")
            calls += 1

    async with anyio.create_task_group() as tasks:
        for session in sessions:
            tasks.start_soon(go_on, session)
    cpu = (cpu_seconds(process.pid) or 0.0) - before
    for session in sessions:
        session.close()
    return calls / seconds, cpu * 1000 / max(1, calls)


# ------------------------------------------------------------------------------------------------------------ report


def quantiles(took: list[float]) -> tuple[float, float]:
    return statistics.median(took), statistics.quantiles(took, n=100)[98]


async def report_flood(bench: Bench, rounds: int) -> None:
    print("| Ada, 40 calls a second | p50 ms | p99 ms | p99 to alone |\n| --- | ---: | ---: | ---: |", flush=True)
    for name, settings in (("default limits", ""), ("no limits", UNLIMITED)):
        async with gateway(bench, settings) as (url, _):
            await paced(url, 1)
            alone, beside = [], []
            for _ in range(rounds):
                alone.append(quantiles(await paced(url, bench.seconds)))
                beside.append(quantiles(await beside_a_flood(bench, url)))
        ratio = statistics.median(b[1] / a[1] for a, b in zip(alone, beside, strict=True))
        for what, found in ((f"alone, {name}", alone), (f"beside the flood, {name}", beside)):
            p50, p99 = (statistics.median(each[index] for each in found) for index in (0, 1))
            print(f"| {what} | {p50:.2f} | {p99:.2f} | {f'{ratio:.2f}' if found is beside else '-'} |", flush=True)


async def report_audit(bench: Bench, rounds: int) -> None:
    print("\n| audit | calls/s, 16 | CPU ms/call |\n| --- | ---: | ---: |", flush=True)
    found: dict[str, list[tuple[float, float]]] = {mode: [] for mode in ("off", "on", "strict")}
    for _ in range(rounds):
        for mode, numbers in found.items():
            file = bench.folder / f"{mode}.jsonl"
            settings = (UNLIMITED, f'audit = "{mode}"', f'audit_file = "{file}"')
            async with gateway(bench, *settings) as (url, process):
                await crowded(url, process, 1)
                numbers.append(await crowded(url, process, bench.seconds))
    for mode, numbers in found.items():
        rate, cpu = (statistics.median(each[index] for each in numbers) for index in (0, 1))
        print(f"| {mode} | {rate:,.0f} | {cpu:.2f} |", flush=True)


async def run(seconds: float, rounds: int) -> None:
    cores = share_cores()
    if cores.load:
        os.sched_setaffinity(0, cores.load)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        async with helper("http_backend", cores.load) as backend:
            port = (await backend.read())["port"]
            url = Backend("bench", Era.HANDSHAKE).entry(Via.HTTP, port, cores)["url"]
            bench = Bench(url, cores, Path(folder), seconds)
            await report_flood(bench, rounds)
            await report_audit(bench, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement (default: %(default)g)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--flood", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        anyio.run(serve_gateway, options.serve, backend_options=EVENT_LOOP)
    elif options.flood:
        anyio.run(flood, options.flood, backend_options=EVENT_LOOP)
    else:
        anyio.run(run, options.seconds, options.rounds)


if __name__ == "__main__":
    main()
