"""The gateway's settings: from `[gateway]`, from the environment, with variables filled in; and their document."""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from composition.servers_file import Configuration, load_configuration
from composition.settings import VARIABLES, AuthSettings, Settings, read_settings
from composition.tables import Problem, did_you_mean, key_lines
from providers.errors import ConfigurationError
from providers.reach import CONTAINER_KEYS
from providers.resource import McpServerResource, Timeouts, ToolRules, TransportType

DOCUMENT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text("utf-8")


BOOKKEEPING = {"name", "created_by", "created_at", "updated_at", "version"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "servers.toml"


def load(file: Path, text: str, environ: Mapping[str, str] | None = None) -> Configuration:
    file.write_text(text, "utf-8")
    return load_configuration(file, environ or {})


def problems(file: Path, text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(file, text, environ)
    return [problem.replace(f"{file.parent}/", "") for problem in caught.value.problems]


# -------------------------------------------------------------------------------------------------------- environment


def test_without_anything_the_defaults_stand() -> None:
    assert read_settings({}, {}) == (Settings(), [])


def test_each_setting_has_a_variable_that_wins_over_the_file() -> None:
    table = {"name": "File", "idle_timeout": 1, "timeouts": {"call": 1, "list": 1}}
    environ = {"APOLLOS_NAME": "Team", "APOLLOS_MAX_CONNECTIONS": "7", "APOLLOS_TIMEOUTS_CALL": "1.5"}
    settings, found = read_settings(table, environ)
    assert found == []
    assert settings == Settings(name="Team", max_connections=7, idle_timeout=1, timeouts=Timeouts(call=1.5, list=1))
    assert set(VARIABLES.values()) == {
        *((name,) for name in Settings.model_fields if name not in ("timeouts", "auth")),
        *(("timeouts", name) for name in Timeouts.model_fields),
        *(("auth", name) for name in AuthSettings.model_fields),
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[gateway]\nnmae = "x"', ":2: [gateway] key 'nmae' is unknown. Did you mean 'name'? Allowed: name,"),
        ('[gateway]\nname = ""', ":2: [gateway] key 'name' must not be empty"),
        ("[gateway]\nmax_connections = 0", ":2: [gateway] key 'max_connections' must be greater than 0"),
        ("[gateway]\nmax_connections = 1.5", "[gateway] key 'max_connections' must be a whole number; found a number"),
        ("[gateway]\nmax_connections = true", "key 'max_connections' must be a whole number; found true or false"),
        ("[gateway]\nidle_timeout = true", "[gateway] key 'idle_timeout' must be a number; found true or false"),
        ("[gateway]\nidle_timeout = -1", "[gateway] key 'idle_timeout' must be greater than 0"),
        ("[gateway]\ntimeouts = { call = inf }", "[gateway] key 'timeouts.call' must be a finite number"),
        ("[gateway.timeouts]\n\ncal = 3", ":3: [gateway] key 'timeouts.cal' is unknown. Did you mean 'call'?"),
        ("[gateway]\ntimeouts = 5", ":2: [gateway] key 'timeouts' must be a table; found a number. For exam"),
        (
            '[gateway]\nstore = "mongo://u:p4ss@h"',
            "[gateway] key 'store' must begin with memory://, sqlite://, redis:// or rediss://",
        ),
    ],
)
def test_a_mistake_under_gateway_is_told_with_its_line(file: Path, text: str, told: str) -> None:
    [problem] = problems(file, text)
    assert told in problem
    assert "p4ss" not in problem


def test_a_variable_that_is_empty_or_unknown_is_ignored() -> None:
    environ = {"APOLLOS_NAME": "", "APOLLOS_SERVERS": "x", "APOLLOS_USER_ID": "x", "APOLLOS_NMAE": "x"}
    assert read_settings({}, environ) == (Settings(), [])


def test_a_variable_with_a_bad_value_is_named_and_its_value_is_not() -> None:
    environ = {"APOLLOS_STORE": "mongo://u:hunter2@h", "APOLLOS_TIMEOUTS_CALL": "hunter2"}
    settings, found = read_settings({"timeouts": {"list": 3}, "nmae": "x"}, environ)
    assert settings == Settings()
    assert Problem(None, "environment variable APOLLOS_TIMEOUTS_CALL must be a number") in found
    assert [problem.text.split(" must")[0].split(" is")[0] for problem in found if problem.key is None] == [
        "environment variable APOLLOS_STORE",
        "environment variable APOLLOS_TIMEOUTS_CALL",
    ]
    assert "hunter2" not in str(found)


def test_what_a_variable_overrides_need_not_be_right() -> None:
    settings, found = read_settings({"store": "${NO}", "name": 3}, {"APOLLOS_STORE": "memory://", "APOLLOS_NAME": "x"})
    assert (settings.name, found) == ("x", [])


def test_a_table_of_the_wrong_kind_is_told_although_a_variable_points_into_it() -> None:
    [problem] = read_settings({"timeouts": 5}, {"APOLLOS_TIMEOUTS_CALL": "5"})[1]
    assert (problem.key, problem.text[:15]) == (("timeouts",), "must be a table")


def test_the_closest_word_is_offered() -> None:
    assert did_you_mean("comand", ["args", "command"]) == " Did you mean 'command'?"
    assert did_you_mean("ARGS", ["args", "command"]) == " Did you mean 'args'?"
    assert did_you_mean("xyz", ["args", "command"]) == ""
    assert did_you_mean("args" * 100_000, ["args"]) == ""


# ---------------------------------------------------------------------------------------------------------- variables


def test_variables_are_filled_in_everywhere(file: Path) -> None:
    text = """
    [gateway]
    name = "${TEAM:-No} team"
    max_connections = "${MOST}"
    [servers.x]
    command = "${RUNNER}"
    args = ["--key=${KEY}", "$$5", "^a$", "${EMPTY}", "${EMPTY:-full}"]
    env = { "${KEY}" = "${KEY}" }
    is_enabled = "${ON:-true}"
    timeouts = { call = "${CALL:-60}" }
    """
    environ = {"RUNNER": "uvx", "KEY": "k$1", "EMPTY": "", "MOST": "7"}
    configuration = load(file, text, environ)
    resource = configuration.resources["x"]
    assert (configuration.settings.name, configuration.settings.max_connections) == ("No team", 7)
    assert resource.command == "uvx"
    assert resource.args == ("--key=k$1", "$5", "^a$", "", "full")
    assert resource.env == {"${KEY}": "k$1"}
    assert resource.is_enabled
    assert resource.timeouts.call == 60


def test_each_missing_variable_is_named_once(file: Path) -> None:
    found = problems(file, '[servers.x]\ncommand = "${A}${B}${A}$C$D"\nurl = "https://h"', {})
    assert [problem.split(": ", 1)[1].split(",")[0][:50] for problem in found] == [
        "[servers.x] has 'command' and 'url'. Keep one of t",
        "[servers.x] key 'command' needs the variable A",
        "[servers.x] key 'command' needs the variable B",
        "[servers.x] key 'command' has a '$' that is no var",
    ]


def test_a_disabled_server_keeps_its_variables_and_needs_none(file: Path) -> None:
    text = """
    [servers.docs]
    is_enabled = "${ON:-false}"
    url = "${URL}/mcp"
    headers = { A = "${KEY}" }
    isolation = "${HOW}"
    timeouts = { call = "${CALL}" }
    [servers.own]
    is_enabled = false
    python = "${FILE}"
    [servers.gone]
    is_enabled = false
    python = "gone.py:mcp"
    cwd = "${DIR}"
    """
    [problem] = problems(file, text, {"KEY": "secret"})
    assert "[servers.gone] has 'cwd', of no use" in problem
    resources = load(file, text.replace("cwd", "description"), {"KEY": "secret"}).resources
    assert not any(resource.is_enabled for resource in resources.values())
    assert (resources["docs"].url, resources["docs"].headers) == ("${URL}/mcp", {"A": "${KEY}"})
    assert (resources["docs"].transport_type, resources["docs"].timeouts) == (TransportType.STREAMABLE_HTTP, Timeouts())


def test_what_is_wrong_with_a_disabled_server_itself_is_told(file: Path) -> None:
    assert "key 'url' must begin with" in problems(file, '[servers.x]\nis_enabled = false\nurl = "ftp://h"')[0]


def test_no_message_holds_a_value(file: Path) -> None:
    text = """
    [gateway]
    store = "${S}"
    max_connections = "${S}"
    timeouts = { call = "${S}" }
    [servers.x]
    command = "${S}"
    url = "${S}"
    headers = { A = "${S}\\n", "X Y" = "hunter2" }
    args = "${S}"
    env = { A = ["hunter2"], "B=" = "hunter2" }
    transport_type = "${S}"
    isolation = "${S}"
    python = "${S}"
    tools = { include = ["${S}"], exclude = ["${S}"], rename = { a = "${S}", b = "${S}" } }
    required_roles = "${S}"
    is_enabled = "${S}"
    cwd = ["hunter2"]
    """
    found = problems(file, text, {"S": "hunter2 $x", "APOLLOS_NAME": "", "APOLLOS_IDLE_TIMEOUT": "hunter2"})
    assert len(found) >= 14
    assert not [problem for problem in found if "hunter2" in problem]


# -------------------------------------------------------------------------------------------------------------- lines

ODD_VALUES = (
    '"text"',
    "'C:\\dir # no comment'",
    '"[servers.fake] \\" key = 1"',
    "[1, 2]",
    "{ inner = 1, other.deep = 'x' }",
    '[ # a comment with ] and "\n  "a]",\n\n  """b""", # ]\n]',
    '"""\n[servers.fake]\nkey = 1\n"""',
    "'''\nkey = 1 ]\n\\'''",
    '"""a \\"""" # c',
    "1979-05-27 07:32:00",
    "[[1], [{ a = ']' }]]",
)
ODD_SIGNS = "[]{}=\"'\\\n\r,.#\0é$"
ODD_KEYS = ("plain", "a-b", '"quo ted"', "'lit.eral'", 'dot . "ted.key"', '"esc\\u0041\\"]"')


def odd_document(seed: int) -> tuple[str, dict[tuple[str, ...], int]]:
    """A document of odd statements, and the line of each of its tables and keys."""
    chance = random.Random(seed)
    lines: dict[tuple[str, ...], int] = {}
    text = ""
    table: tuple[str, ...] = ()
    for number in range(chance.randint(1, 30)):
        text += chance.choice(["", "\n", "# key = 1\n", "  \t# [a]\n"])
        line = text.count("\n") + 1
        name = f"n{number}"
        key = chance.choice(ODD_KEYS)
        if chance.random() < 0.3:
            statement = chance.choice([f"[{name}.{key}]", f"[[{name}.{key}]] # c", f" [ {name} . {key} ]"])
            written: Any = tomllib.loads(statement)
            table = ()
        else:
            statement = f"{name}.{key} = {chance.choice(ODD_VALUES)}"
            written = tomllib.loads(statement)
        prefix = table
        path: tuple[str, ...] = prefix
        while isinstance(written, dict) and len(written) == 1:
            [(part, written)] = written.items()
            path = (*path, part)
            lines[path] = line
            written = written[0] if statement.lstrip().startswith("[[") and isinstance(written, list) else written
        if statement.lstrip().startswith("["):
            table = path
        text += statement + "\n"
    return (text.replace("\n", "\r\n") if chance.random() < 0.3 else text), lines


@pytest.mark.parametrize("seed", range(200))
def test_every_table_and_key_has_its_line(seed: int) -> None:
    text, lines = odd_document(seed)
    tomllib.loads(text)
    found = key_lines(text)
    assert {path: found.get(path) for path in lines} == lines


@pytest.mark.parametrize("seed", range(100))
def test_no_text_breaks_the_search_for_lines(seed: int) -> None:
    chance = random.Random(seed)
    text = list(odd_document(seed)[0])
    for _ in range(20):
        text[chance.randrange(len(text))] = chance.choice(ODD_SIGNS)
        text.insert(chance.randrange(len(text)), chance.choice(ODD_SIGNS))
    assert all(1 <= line <= text.count("\n") + 1 for line in key_lines("".join(text)).values())


def test_past_a_statement_of_more_than_500_lines_nothing_has_a_line() -> None:
    assert key_lines("a = 1\nb = [\n" + "1,\n" * 600 + "]\nc = 1") == {("a",): 1}


# ----------------------------------------------------------------------------------------------------------- document


def rows(heading: str) -> dict[str, list[str]]:
    """The table under a heading of the document: the cells of each key."""
    [section] = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", DOCUMENT, re.S | re.M)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {key.strip("`"): rest for key, *rest in cells[2:]}


def as_documented(model: type[BaseModel], key: str) -> str:
    default = model.model_fields[key].get_default(call_default_factory=True)
    if key == "transport_type":
        return "from the key"
    match default:
        case None:
            return "none"
        case bool():
            return f"`{str(default).lower()}`"
        case str():
            return f'`"{default}"`'
        case int() | float():
            return f"`{default:g}`"
        case tuple():
            return "`[]`"
        case _:
            return "`{}`"


@pytest.mark.parametrize(
    ("heading", "model", "left_out"),
    [
        ("`[gateway]`", Settings, set()),
        ("`[servers.NAME]`", McpServerResource, {*BOOKKEEPING, *CONTAINER_KEYS}),
        ("Containers", McpServerResource, set(McpServerResource.model_fields) - set(CONTAINER_KEYS)),
        ("Tools", ToolRules, set()),
        ("Timeouts", Timeouts, set()),
        ("`[gateway.auth]`", AuthSettings, set()),
    ],
)
def test_the_document_names_each_key_with_its_default(heading: str, model: type[BaseModel], left_out: set[str]) -> None:
    keys = [key for key in model.model_fields if key not in left_out]
    assert {key: cells[1] for key, cells in rows(heading).items()} == {key: as_documented(model, key) for key in keys}


def test_the_document_names_each_variable() -> None:
    named: dict[tuple[str, ...], str] = {(key,): cells[2] for key, cells in rows("`[gateway]`").items()}
    named |= {("timeouts", key): cells[2] for key, cells in rows("Timeouts").items()}
    named |= {("auth", key): cells[2] for key, cells in rows("`[gateway.auth]`").items()}
    del named["timeouts",], named["auth",]
    assert named == {key: f"`{name}`" for name, key in VARIABLES.items()}
