"""What a container costs a call: one server as a local process and in a container, through the gateway's own wires.

    python -m benchmarks.containers

It needs a Docker engine and the images of the container tests (`tests/integration/docker/images/engine.sh start`). The
two are measured in turns, so that whatever else the machine does hits both.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio

from composition.gateway import Gateway
from composition.servers_file import load_configuration
from providers.caller import Caller
from providers.lease import lease

SERVERS = """
[gateway]
state_dir = "{folder}/state"
[servers.process]
command = "{python}"
args = ["{everything}"]
[servers.container]
docker_image = "apollos-test/everything"
pull = "never"
[servers.shared-http]
docker_image = "apollos-test/everything"
args = ["http", "8000"]
docker_ports = ["8000/tcp"]
isolation = "shared"
pull = "never"
"""
ROUNDS, CALLS, SESSIONS = 10, 200, 50


@asynccontextmanager
async def running_gateway() -> AsyncIterator[Gateway]:
    everything = Path(__file__).parent.parent / "tests" / "servers" / "everything.py"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "servers.toml"
        path.write_text(SERVERS.format(folder=folder, python=sys.executable, everything=everything))
        gateway = Gateway(load_configuration(path))
        await gateway.start()
        try:
            yield gateway
        finally:
            await gateway.stop()


async def milliseconds(work: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await work()
    return (time.perf_counter() - began) * 1000


def caller_of(gateway: Gateway, session: str) -> Caller:
    return Caller(gateway.operator, session)


async def compare_calls(gateway: Gateway) -> dict[str, list[float]]:
    """Calls on an open session, in turns."""
    took: dict[str, list[float]] = {"process": [], "container": []}
    async with AsyncExitStack() as stack:
        held = {
            name: await stack.enter_async_context(
                lease(gateway.pool, gateway.registry.mounts[name].target, caller_of(gateway, "session:a"))
            )
            for name in took
        }
        call = {"name": "echo", "arguments": {"text": "x"}}
        for _ in range(ROUNDS):
            for name, times in took.items():
                times += [await milliseconds(lambda: held[name].request("tools/call", call)) for _ in range(CALLS)]  # noqa: B023
    return took


async def first_calls(gateway: Gateway) -> list[float]:
    """The first call of a new client session on a shared container that runs already."""
    target = gateway.registry.mounts["shared-http"].target

    async def use(session: str) -> None:
        async with lease(gateway.pool, target, caller_of(gateway, session)) as held:
            await held.request("tools/call", {"name": "echo", "arguments": {"text": "x"}})

    await use("session:warm")
    return [await milliseconds(lambda: use(f"session:{number}")) for number in range(SESSIONS)]  # noqa: B023


async def main() -> None:
    async with running_gateway() as gateway:
        took = await compare_calls(gateway)
        warm = await first_calls(gateway)
        for name, times in {**took, "first call, shared and warm": warm}.items():
            ranked = sorted(times)
            middle, high = statistics.median(ranked), ranked[int(len(ranked) * 0.95)]
            print(f"{name:30} median {middle:6.2f} ms   p95 {high:6.2f} ms")


if __name__ == "__main__":
    anyio.run(main)
