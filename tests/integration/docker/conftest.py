"""Containers on a real Docker engine. Without one these tests are skipped, with one line that says so; in CI they fail.

The images are built once, without a registry, by images/build.sh. When a test has ended, nothing of its gateways is
left at the engine.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import DockerException

from providers.engine import find_engine
from providers.errors import ConfigurationError
from providers.ownership import INSTANCE, Instance

IN_CI = "APOLLOS_CI"
HERE = Path(__file__).parent
BUILD_TIMEOUT = 600
DAEMON_PID = HERE.parents[2] / ".cache" / "docker" / "dockerd.pid"
"""Written by images/engine.sh, which CI starts the engine with: only an engine of our own is ever stopped by a test."""


NO_ENGINE = "no Docker engine answers here: the tests of containers are not run"


def is_there() -> bool:
    """Whether an engine answers. We knock first: the SDK would leave a socket open where nobody listens."""
    try:
        with socket.socket(socket.AF_UNIX) as door:
            door.connect(find_engine().socket_path or "")
        client = docker.from_env(timeout=60)
        client.ping()
        client.close()
    except (DockerException, ConfigurationError, OSError):
        return False
    return True


IS_MISSING = not os.environ.get(IN_CI) and not is_there()
collect_ignore_glob = ["test_*.py"] if IS_MISSING else []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if IS_MISSING:
        terminalreporter.write_line(f"SKIPPED: {NO_ENGINE}", yellow=True)


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    """A client of the engine, which has the test images."""
    if not is_there():
        pytest.skip(NO_ENGINE)
    client = docker.from_env(timeout=60)
    built = subprocess.run([HERE / "images" / "build.sh"], capture_output=True, text=True, timeout=BUILD_TIMEOUT)
    if built.returncode:
        pytest.skip(f"the images of the container tests cannot be built: {built.stderr.strip()[-300:]}")
    yield client
    client.close()


@pytest.fixture
def state(engine: Any, tmp_path: Path) -> Iterator[str]:
    """A folder in which the gateways of one test keep what they know of their containers. Afterwards nothing of theirs
    is left at the engine."""
    folder = tmp_path / "state"
    yield str(folder)
    left = [thing for key in folder.glob("*/*/key") for thing in left_of(Instance(key.parent, read_key(key)), engine)]
    assert not left, f"left at the engine: {left}"


def read_key(file: Path) -> bytes:
    return bytes.fromhex(file.read_text())


def left_of(instance: Instance, engine: Any) -> list[str]:
    """What there is of one gateway at the engine, and of its secrets in memory."""
    marks = {"label": f"{INSTANCE}={instance.id}"}
    containers = [f"container {each.name}" for each in engine.containers.list(all=True, filters=marks)]
    networks = [f"network {each.name}" for each in engine.networks.list(filters=marks)]
    secrets = instance.secrets_folder("x").parent
    return [*containers, *networks, *([f"secrets in {secrets}"] if secrets.exists() else [])]


@pytest.fixture
def daemon_pid(engine: Any) -> int:
    """The engine's own process, where it is ours to stop."""
    try:
        pid = int(DAEMON_PID.read_text())
        os.kill(pid, 0)
    except (OSError, ValueError):
        pytest.skip("the Docker engine was not started by images/engine.sh, so no test may stop it")
    return pid
