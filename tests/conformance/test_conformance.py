"""The official conformance suite against the reference server, directly and through the gateway.

Through the gateway the server is mounted under its namespace, which a small relay takes away again, as the suite asks
for fixed names; or the server is asked for alone, and nothing stands between the suite and the gateway. Each run is
made once, when the first of its tests asks for it; each scenario is a test.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.conformance import suite
from tests.conformance.expected import FAILURES, SCENARIOS, WAYS
from tests.conformance.relay import relay
from tests.conformance.suite import Outcome
from tests.helpers.clients import NEWEST, connect_http
from tests.helpers.gateway import alone, gateway_process, patient_toml, remote
from tests.helpers.processes import START_TIMEOUT, http_server

pytestmark = pytest.mark.timeout(600)  # the first test fetches the suite and the server

REFERENCE = Path(suite.__file__).with_name("reference.py")
NAMESPACE = "up"

Runs = Callable[[str, str], dict[str, Outcome]]


@asynccontextmanager
async def reached(way: str) -> AsyncIterator[str]:
    """The URL at which the suite finds the reference server."""
    folder = str(suite.reference_server())
    if way == "stdio":
        async with behind_the_gateway({"command": sys.executable, "args": [str(REFERENCE), folder, "stdio"]}) as url:
            yield url
        return
    async with http_server(str(REFERENCE), folder, "http") as server:
        if way == "direct":
            yield server.url
        else:
            behind = alone_at_the_gateway if way == "alone" else behind_the_gateway
            async with behind(remote(server.url)) as url:
                yield url


@asynccontextmanager
async def behind_the_gateway(table: dict[str, Any]) -> AsyncIterator[str]:
    async with gateway_process(patient_toml({NAMESPACE: table})) as gateway, relay(gateway.url, NAMESPACE) as url:
        await warm_up(gateway.url, f"{NAMESPACE}_")
        yield url


@asynccontextmanager
async def alone_at_the_gateway(table: dict[str, Any]) -> AsyncIterator[str]:
    async with gateway_process(patient_toml({NAMESPACE: table})) as gateway:
        url = alone(gateway.url, NAMESPACE)
        await warm_up(url)
        yield url


async def warm_up(url: str, prefix: str = "") -> None:
    """The suite waits 600 ms for the answer to a call of a client that can be asked something, and for such a client
    the gateway starts a process of its own: it is started now."""
    async with connect_http(url, NEWEST, capabilities={"elicitation": {}}) as one:
        one.patience = START_TIMEOUT
        await one.call(f"{prefix}test_simple_text")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs the suite, once for each way and version."""
    made: dict[tuple[str, str], dict[str, Outcome]] = {}

    async def run(way: str, version: str) -> dict[str, Outcome]:
        async with reached(way) as url:
            return await suite.run(url, version, tmp_path_factory.mktemp(f"{way}-{version}"))

    def outcomes(way: str, version: str) -> dict[str, Outcome]:
        suite.node(), suite.reference_server()
        if (way, version) not in made:
            made[way, version] = anyio.run(run, way, version)
        return made[way, version]

    return outcomes


CELLS = [(way, version, scenario) for way in WAYS for version, names in SCENARIOS.items() for scenario in names]


@pytest.mark.parametrize(("way", "version", "scenario"), CELLS, ids=lambda part: str(part))
def test_a_scenario_passes(way: str, version: str, scenario: str, runs: Runs) -> None:
    outcome = runs(way, version).get(scenario, Outcome(0, ("did not come to its end",)))
    reason = FAILURES.get((way, version), {}).get(scenario)
    if reason is None:
        assert outcome, str(outcome)
    else:
        assert not outcome, f"passes, so it is to be taken from the list of expected failures: {reason}"


@pytest.mark.parametrize("version", SCENARIOS)
def test_no_scenario_of_the_suite_is_left_out(version: str) -> None:
    suite.node()
    assert sorted(anyio.run(suite.scenarios, version)) == sorted(SCENARIOS[version])


def test_expected_failures_are_of_scenarios_that_there_are() -> None:
    for (way, version), reasons in FAILURES.items():
        assert way in WAYS
        assert set(reasons) <= set(SCENARIOS[version])
        assert all(len(reason) > 20 for reason in reasons.values()), "each has its reason"
