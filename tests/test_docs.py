"""What the documents say is true: paths, links, variables and commands exist, and every example loads.

Each check runs on the real documents and on a small house with a seeded mistake.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from composition.cli import build_parser
from composition.servers_file import load_configuration
from composition.settings import VARIABLES
from providers.errors import ConfigurationError
from tests.helpers import documents, shape
from tests.test_architecture import PLACES

ROOT = Path(__file__).parent.parent
KNOWN_PLACES = (*PLACES, ".ci")
CONFIGURATIONS = (ROOT / "servers.toml", *sorted((ROOT / "examples").glob("*.toml")))
IN_THE_HOUSE = documents.variables_read(*(ROOT / module.path for module in shape.modules(ROOT)))
FOR_TESTS = {"APOLLOS_CI"}

PYTHON_FILE = re.compile(r'^python *= *"([^":]+\.py):', re.M)


def load(toml: str, folder: Path, *, environ: Mapping[str, str] | None = None) -> None:
    """Load a configuration from a folder of its own, in which the Python files that it names exist.

    Raises:
        ConfigurationError: it is wrong; its file is named `servers.toml` and nothing more, as documents do.
    """
    for name in PYTHON_FILE.findall(toml):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    path = folder / "servers.toml"
    path.write_text(toml)
    try:
        load_configuration(path, documents.environment_for(toml) if environ is None else environ)
    except ConfigurationError as error:
        raise ConfigurationError(str(error).replace(f"{folder}/", "")) from None


def test_paths_that_are_named_exist() -> None:
    assert documents.missing_paths(ROOT, KNOWN_PLACES) == []


def test_links_lead_somewhere() -> None:
    assert documents.broken_links(ROOT) == []


def test_variables_that_are_named_are_read() -> None:
    assert documents.unknown_variables(ROOT, {*VARIABLES, *IN_THE_HOUSE, *FOR_TESTS}) == []


def test_variables_that_are_read_are_named() -> None:
    assert documents.undocumented_variables(ROOT, IN_THE_HOUSE) == []


def test_commands_work() -> None:
    assert documents.unknown_commands(ROOT, KNOWN_PLACES, build_parser()) == []


def test_configurations_in_the_documents_load(tmp_path: Path) -> None:
    def load_wrong(toml: str) -> None:
        load(toml, tmp_path, environ={})  # where variables are missing, that is one of the errors shown

    assert documents.failing_blocks(ROOT, "toml", lambda toml: load(toml, tmp_path), load_wrong) == []


def test_json_in_the_documents_is_json() -> None:
    assert documents.broken_json(ROOT) == []


@pytest.mark.parametrize("file", CONFIGURATIONS, ids=lambda file: file.name)
def test_configuration_files_load(file: Path) -> None:
    assert load_configuration(file, documents.environment_for(file.read_text())).resources


def test_the_changelog_has_an_entry_for_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert documents.changes(ROOT / "docs" / "changelog.md", version)


# ---------------------------------------------------------------------------------------- can each check still fail?


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small house whose README names what is there, in each of the ways that are checked."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "providers").mkdir()
    (tmp_path / "providers" / "pool.py").write_text('NAME = "APOLLOS_NAME"')
    (tmp_path / "docs" / "guide.md").write_text("# The guide\n\n## Why, and how?\n")
    (tmp_path / "server.py").touch()
    (tmp_path / "README.md").write_text(
        "# House\n[up](#house) [guide](docs/guide.md#why-and-how) [out](https://example.com/x)\n"
        "`providers/pool.py` `providers/*.py` `pool.py` `server.py:mcp` `/mcp` `path/to/it.py` `.env`\n"
        "APOLLOS_NAME and APOLLOS_*\n"
        "```toml\nfine = 1\n```\n"
        "```sh\nAPOLLOS_NAME=x uv run server.py serve  # over HTTP\ncd elsewhere && python server.py\n"
        "uv run --with x pytest docs\nuv run python -m providers\nfastmcp run server.py:mcp\n```\n"
        "```console\n$ uv run server.py \\\n  serve\nuv run nonsense is output here\n```\n"
        "```toml\nx 1\n```\ngives\n```text\nx.toml:1: bad\n```\n"
    )
    return tmp_path


def small_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="server.py")
    parser.add_argument("command", nargs="?", choices=["serve"])
    return parser


def load_badly(toml: str) -> None:
    try:
        tomllib.loads(toml)
    except tomllib.TOMLDecodeError:
        raise ConfigurationError("x.toml:1: bad") from None


def findings(house: Path) -> list[str]:
    return [
        *documents.missing_paths(house, KNOWN_PLACES),
        *documents.broken_links(house),
        *documents.unknown_variables(house, {"APOLLOS_NAME"}),
        *documents.unknown_commands(house, KNOWN_PLACES, small_parser()),
        *documents.failing_blocks(house, "toml", tomllib.loads, load_badly),
        *documents.broken_json(house),
    ]


def test_the_small_house_is_in_order(house: Path) -> None:
    assert findings(house) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("see `providers/gone.py`", "README.md:2: `providers/gone.py` does not exist"),
        ("see `providers/x*.py`", "`providers/x*.py` does not exist"),
        ("see `gone.py`", "`gone.py` does not exist"),
        ("```\ncode\n```\nsee `gone.toml`", "README.md:5: `gone.toml` does not exist"),
        ("[x](gone.md)", "the link to 'gone.md' leads nowhere"),
        ("[x](docs/guide.md#gone)", "the link to 'docs/guide.md#gone' leads nowhere"),
        ("[x](#gone)", "the link to '#gone' leads nowhere"),
        ("set APOLLOS_NMAE", "nothing reads APOLLOS_NMAE"),
        ("set `APOLLOS_GONE_*`", "nothing reads APOLLOS_GONE_"),
        ("```toml\nx = \n```", "README.md:3: this toml does not load: Invalid value"),
        ("```toml\nx =\n```\n```text\nx.toml:1: odd\n```", "README.md:3: the errors of this toml are not those"),
        ("```toml\nx = 1\n```\n```text\nx.toml:1: odd\n```", "not those shown, but: None"),
        ("```json\n{,}\n```", "this json does not load"),
        ("```sh\nuv run server.py fly\n```", "'uv run server.py fly': server.py: error: argument command"),
        ("```sh\npython server.py --fast\n```", "unrecognized arguments: --fast"),
        ("```sh\nuv run pytset\n```", "'pytset' is no tool of this project"),
        ("```sh\nuv run python -m gone\n```", "there is no module 'gone'"),
        ("```sh\nuv run gone.py\n```", "'gone.py' does not exist"),
        ("```console\n$ cat docs/gone.md\n```", "'docs/gone.md' does not exist"),
    ],
)
def test_a_seeded_mistake_is_found(house: Path, text: str, told: str) -> None:
    (house / "README.md").write_text(f"# House\n{text}\n")
    [finding] = findings(house)
    assert told in finding


def test_a_variable_that_nobody_documents_is_found(house: Path) -> None:
    read = documents.variables_read(house / "providers" / "pool.py")
    assert documents.undocumented_variables(house, read) == []
    assert documents.undocumented_variables(house, {*read, "APOLLOS_X"}) == ["APOLLOS_X is read and not documented"]


def test_a_configuration_with_a_mistake_does_not_load(tmp_path: Path) -> None:
    load('[servers.a]\npython = "here/x.py:mcp"\n[servers.b]\nurl = "https://${HOST}/mcp"\n', tmp_path)
    with pytest.raises(ConfigurationError, match="agrs"):
        load('[servers.a]\ncommand = "x"\nagrs = []\n', tmp_path)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("# Changelog\n", 0),
        ("# Changelog\n\n## 0.1.0\n", 0),
        ("# Changelog\n\n## 0.1.0 - 2026-01-01\n\n- One.\n- Two.\n\n## 0.0.9\n\n- Old.\n", 2),
        ("# Changelog\n\n## Unreleased\n\n* One.\n", 1),
    ],
)
def test_changes_are_those_of_the_version(tmp_path: Path, text: str, count: int) -> None:
    (tmp_path / "changelog.md").write_text(text)
    assert len(documents.changes(tmp_path / "changelog.md", "0.1.0")) == count
