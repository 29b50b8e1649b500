"""Containers on a real Docker engine. Without one these tests are skipped, with one line that says so; in CI they fail.

The images are built once, without a registry, by images/build.sh. When all tests have ended, nothing of ours is left at
the engine: no container, no network, no volume.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import DockerException

HERE = Path(__file__).parent
EVERYTHING, TIME = "apollos-test/everything", "apollos-test/time"
BUILD_TIMEOUT = 600
DAEMON_PID = HERE.parents[2] / ".cache" / "docker" / "dockerd.pid"
"""Written by images/engine.sh, which CI starts the engine with: only an engine of our own is ever stopped by a test."""


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    """A client of the engine, which has the test images."""
    try:
        client = docker.from_env(timeout=60)
        client.ping()
    except DockerException:
        pytest.skip("no Docker engine answers here: the tests of containers are not run")
    built = subprocess.run([HERE / "images" / "build.sh"], capture_output=True, text=True, timeout=BUILD_TIMEOUT)
    if built.returncode:
        pytest.skip(f"the images of the container tests cannot be built: {built.stderr.strip()[-300:]}")
    before = left(client)
    yield client
    after = [thing for thing in left(client) if thing not in before]
    client.close()
    assert not after, f"left at the engine: {after}"


def left(client: Any) -> list[str]:
    """What there is of ours at the engine, by kind and name."""
    marks = {"label": "apollos.mcp.instance"}
    containers = [f"container {each.name}" for each in client.containers.list(all=True, filters=marks)]
    networks = [f"network {each.name}" for each in client.networks.list(filters=marks)]
    return [*containers, *networks, *(f"volume {each.name}" for each in client.volumes.list())]


@pytest.fixture
def state(tmp_path: Path) -> str:
    """A folder in which the gateways of one test keep what they know of their containers."""
    return str(tmp_path / "state")


@pytest.fixture
def daemon_pid(engine: Any) -> int:
    """The engine's own process, where it is ours to stop."""
    try:
        pid = int(DAEMON_PID.read_text())
        os.kill(pid, 0)
    except (OSError, ValueError):
        pytest.skip("the Docker engine was not started by images/engine.sh, so no test may stop it")
    return pid
