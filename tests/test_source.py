"""The linter, the formatter and the type checker run as tests, so that `uv run pytest` checks everything."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PINNED = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[^ \\;]+)[^\n]*\\\n +--hash=sha256:[0-9a-f]{64}", re.M)


def run(*command: str) -> None:
    """Run a tool of Python's on the whole tree; what it complains about is what the test says."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_has_nothing_to_say() -> None:
    run("ruff", "check", ".")


def test_everything_is_formatted() -> None:
    run("ruff", "format", "--check", ".")


@pytest.mark.timeout(600)  # the first time, FastMCP and all that it imports are read too
def test_mypy_has_nothing_to_say() -> None:
    run("mypy")


def test_requirements_pin_what_the_project_depends_on() -> None:
    """Made as its first lines say; a dependency that was changed afterwards is not pinned, or to a wrong version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {pin["name"]: pin["version"] for pin in PINNED.finditer((ROOT / "requirements.txt").read_text())}
    for dependency in map(Requirement, project["dependencies"]):
        version = pinned.get(canonicalize_name(dependency.name), "nothing")
        assert version != "nothing" and version in dependency.specifier, f"{dependency}: pinned to {version}"


def test_requirements_name_no_index() -> None:
    assert "://" not in (ROOT / "requirements.txt").read_text()
