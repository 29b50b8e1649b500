"""Real third-party servers, each as the command that stands in servers.toml.

They come from PyPI by `uvx` (versions in `uvx.txt`) and from npm (versions in `npm/package.json`). What is missing
is fetched once; where that is not possible the tests are skipped with the reason, and in CI they fail.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
from pathlib import Path

import pytest

from tests.helpers.processes import ServerCommand

HERE = Path(__file__).parent
NPM = HERE / "npm"
NPM_OPTIONS = ("--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1")

FETCH_TIMEOUT = 180
"""Seconds for fetching one package, or all of npm's."""


@pytest.fixture(scope="session")
def time_server() -> ServerCommand:
    """mcp-server-time: tools `get_current_time` and `convert_time`."""
    return uvx("mcp-server-time", "--local-timezone", "UTC")


@pytest.fixture(scope="session")
def git_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one commit, by somebody, with the message `first`."""
    folder = tmp_path_factory.mktemp("repository")
    somebody = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.com", "-c", "commit.gpgsign=false")
    fetch("git", "init", "--quiet", str(folder))
    fetch("git", "-C", str(folder), *somebody, "commit", "--quiet", "--allow-empty", "--message", "first")
    return folder


@pytest.fixture(scope="session")
def git_server(git_repository: Path) -> ServerCommand:
    """mcp-server-git on a repository of its own: twelve tools, among them `git_log` and `git_status`."""
    return uvx("mcp-server-git", "--repository", str(git_repository))


@pytest.fixture(scope="session")
def everything_server(npm_servers: Path) -> ServerCommand:
    """The reference server that does all of MCP: progress, sampling, elicitation, roots, logging, subscriptions."""
    return ServerCommand(str(npm_servers / "mcp-server-everything"), [])


@pytest.fixture
def filesystem_server(npm_servers: Path, tmp_path: Path) -> ServerCommand:
    """The filesystem server on `tmp_path`: `read_text_file`, `write_file` and more; it asks for roots at start."""
    return ServerCommand(str(npm_servers / "mcp-server-filesystem"), [str(tmp_path.resolve())])


@pytest.fixture
def memory_server(npm_servers: Path, tmp_path: Path) -> ServerCommand:
    """The knowledge graph in a file of its own: `create_entities`, `read_graph` and more."""
    memory = {"MEMORY_FILE_PATH": str(tmp_path / "memory.jsonl")}
    return ServerCommand(str(npm_servers / "mcp-server-memory"), [], memory)


@pytest.fixture(scope="session")
def npm_servers() -> Path:
    """The folder of the npm servers' commands, installed on first use. They are started without npx: it adds a
    second or two to each start, and a process in between."""
    with (NPM / "package.json").open() as wanted:
        fcntl.flock(wanted, fcntl.LOCK_EX)  # two test runs at once install once
        if not installed(json.load(wanted)["dependencies"]):
            fetch("npm", "install", *NPM_OPTIONS, cwd=NPM)
    return NPM / "node_modules" / ".bin"


def installed(dependencies: dict[str, str]) -> bool:
    """Whether just these versions are there; npm notes in a hidden file what it installed."""
    noted = NPM / "node_modules" / ".package-lock.json"
    packages = json.loads(noted.read_text())["packages"] if noted.exists() else {}
    return all(
        packages.get(f"node_modules/{name}", {}).get("version") == version for name, version in dependencies.items()
    )


def uvx(package: str, *args: str) -> ServerCommand:
    """The command of a server from PyPI, fetched now unless it is here already: no test waits for the network."""
    pins = (HERE / "uvx.txt").read_text().split()
    pinned = next(pin for pin in pins if pin.startswith(f"{package}@"))
    if run("uvx", "--offline", pinned, "--help") is not None:
        fetch("uvx", pinned, "--help")
    return ServerCommand("uvx", ["--offline", pinned, *args])


def fetch(*command: str, cwd: Path | None = None) -> None:
    """Run a command that needs the network, or a program that may be missing; skip if it fails."""
    if problem := run(*command, cwd=cwd):
        pytest.skip(f"'{' '.join(command)}' {problem}")


def run(*command: str, cwd: Path | None = None) -> str | None:
    """Run a command; what went wrong, if something did."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=FETCH_TIMEOUT)
    except FileNotFoundError:
        return "was not found: it is not installed"
    except subprocess.TimeoutExpired:
        return f"took longer than {FETCH_TIMEOUT} s: is the network there?"
    return f"failed: {done.stderr.strip()[-300:]}" if done.returncode else None
