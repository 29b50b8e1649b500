"""Containers on a real Docker engine. Without one these tests are skipped, with one line that says so; in CI they fail.

The images are built once, without a registry, by images/build.sh. When a test has ended, nothing of its gateways is
left at the engine; when all have, nothing of any. What hangs or ends an engine is done to `own_engine`, and never to
the one that these tests share with whoever works on this machine.
"""

from __future__ import annotations

import gc
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import DockerException

from providers import ownership
from providers.docker import McpContainerManager
from providers.engine import find_engine
from providers.errors import ConfigurationError
from tests.helpers import own_engine as own
from tests.helpers.containers import EVERYTHING, accounted, everything_at, left_of_this_run
from tests.helpers.own_engine import OwnEngine

IN_CI = "APOLLOS_CI"
HERE = Path(__file__).parent
BUILD_TIMEOUT = 600

NO_ENGINE = "no Docker engine answers here: the tests of containers are not run"


def connect() -> Any:
    """A client of the engine that Docker's command line would use here."""
    return docker.from_env(timeout=60, environment={**os.environ, "DOCKER_HOST": find_engine().host})


def is_there() -> bool:
    """Whether an engine answers. We knock first: the SDK would leave a socket open where nobody listens."""
    try:
        if (path := find_engine().socket_path) is not None:
            with socket.socket(socket.AF_UNIX) as door:
                door.connect(path)
        client = connect()
        client.ping()
        client.close()
    except (DockerException, ConfigurationError, OSError):
        return False
    return True


def not_to_be_run() -> set[str]:
    """The files whose tests cannot be run here; one test in another file is told as skipped for all of them."""
    if os.environ.get(IN_CI):
        return set()
    if not is_there():
        return {file.name for file in HERE.glob("test_*.py")} - {"test_engine_is_here.py"}
    return {"test_engine.py", "test_endpoints.py"} if own.problem() else set()


collect_ignore = sorted(not_to_be_run())


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    """A client of the engine, which has the test images. When all tests have ended, nothing of them is left there."""
    if not is_there():
        pytest.skip(NO_ENGINE)
    client = connect()
    built = subprocess.run([HERE / "images" / "build.sh"], capture_output=True, text=True, timeout=BUILD_TIMEOUT)
    if built.returncode:
        pytest.skip(f"the images of the container tests cannot be built: {built.stderr.strip()[-300:]}")
    before = everything_at(client)
    yield client
    left = set(left_of_this_run(client))
    if os.environ.get(IN_CI):  # there the engine is ours alone
        left |= everything_at(client) - before
    client.close()
    assert not left, f"left at the engine after all tests: {sorted(left)}"


@pytest.fixture
def state(engine: Any, tmp_path: Path) -> Iterator[str]:
    """A folder in which the gateways of one test keep what they know of their containers. Afterwards nothing of theirs
    is left at the engine."""
    with accounted(tmp_path / "state", engine) as folder:
        yield folder


@pytest.fixture
async def manager(state: str, tmp_path: Path) -> AsyncIterator[McpContainerManager]:
    """A container manager with an identity of its own."""
    instance = ownership.claim(Path(state), tmp_path / "servers.toml")
    manager = McpContainerManager(instance, allowed_paths=[str(tmp_path)])
    yield manager
    await manager.reconcile(adopt=lambda _: False, everything=True)
    manager.close()
    instance.release()


@pytest.fixture(scope="session")
def own_engine_of_all(engine: Any) -> Iterator[OwnEngine]:
    if why := own.problem():
        pytest.skip(f"no Docker engine of the tests' own can be started here: {why}")
    with own.own_engine() as started:
        started.load(EVERYTHING)
        yield started


@pytest.fixture
def own_engine(own_engine_of_all: OwnEngine) -> Iterator[OwnEngine]:
    """An engine that a test may hang, kill and start again. It has the image of the everything server."""
    own_engine_of_all.ensure()
    yield own_engine_of_all
    gc.collect()  # what the SDK left open is told here, and not in whichever test comes next
    own_engine_of_all.ensure()


@pytest.fixture
def own_client(own_engine: OwnEngine) -> Iterator[Any]:
    with own_engine.client() as client:
        yield client


@pytest.fixture
def own_state(own_engine: OwnEngine, tmp_path: Path) -> Iterator[str]:
    """As `state`, for gateways that use `own_engine`."""
    with own_engine.client() as client, accounted(tmp_path / "state", client) as folder:
        yield folder
