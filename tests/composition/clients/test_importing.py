"""`server.py import`: what it shows, what it adds to servers.toml, and where the secrets go."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from composition.cli import main
from composition.clients import client_commands
from composition.clients.importing import Step, carry_out, plan_import
from composition.clients.kinds import CLIENTS
from composition.clients.servers_writing import add_servers, toml_of
from composition.servers_file import load_configuration
from providers.errors import ConfigurationError

pytestmark = pytest.mark.core

OWN = '# mine\n[gateway]\nname = "Ours"\n\n[servers.notes]  # notes\ncommand = "python3"\nargs = ["notes.py"]\n'
SECRET = "hunter2-hunter2"


class Drawer:
    """A secret store for these tests."""

    def __init__(self, **values: str) -> None:
        self.values = values

    def get(self, name: str) -> str | None:
        return self.values.get(name)

    def set(self, name: str, value: str) -> None:
        self.values[name] = value


@pytest.fixture
def servers_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "servers.toml"
    path.write_text(OWN)
    monkeypatch.setenv("APOLLOS_SERVERS", str(path))
    return path


def client_file(folder: Path, **entries: Any) -> Path:
    path = folder / "claude_desktop_config.json"
    path.write_text(json.dumps({"mcpServers": entries}))
    return path


def python(*args: str, **more: Any) -> dict[str, Any]:
    return {"command": sys.executable, "args": list(args), **more}


def test_without_write_it_shows_and_changes_nothing(
    tmp_path: Path, servers_toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = client_file(tmp_path, Time=python("t.py", env={"API_KEY": SECRET}), bad=3)
    assert main(["import", str(path)]) == 1  # one was not taken
    said = capsys.readouterr()
    assert "time" in said.out and "secret time.API_KEY = ********" in said.out
    assert "bad   not taken: is not an object" in said.out and "Nothing was changed" in said.out
    assert SECRET not in said.out + said.err
    assert servers_toml.read_text() == OWN and not list(tmp_path.glob("*.backup"))


def test_with_write_tables_are_added_and_the_rest_of_the_file_stays(
    tmp_path: Path, servers_toml: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawer = Drawer()
    monkeypatch.setattr(client_commands, "keeper_of", lambda: drawer)
    path = client_file(tmp_path, time=python("t.py", env={"API_KEY": SECRET, "PRICE": "5$ $x"}))
    assert main(["import", str(path), "--write", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["added"] == ["time"] and said["unset"] == []
    text = servers_toml.read_text()
    assert text.startswith(OWN) and SECRET not in text
    assert tomllib.loads(text)["servers"]["time"]["env"] == {
        "API_KEY": "${secret:time.API_KEY}",
        "PRICE": "5$ $$x",
    }
    assert load_configuration(servers_toml).resources["time"].env["PRICE"] == "5$ $x"
    assert drawer.values == {"time.API_KEY": SECRET}
    assert Path(said["backup"]).read_text() == OWN


def test_a_name_that_is_taken_is_told_and_so_is_the_same_server_under_it(
    tmp_path: Path, servers_toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"url": "https://notes.example.com/mcp"}
    both = {"notes": {"command": "python3", "args": ["notes.py", "--utc"]}, "Notes": other}
    assert main(["import", str(client_file(tmp_path, **both)), "--json"]) == 0
    same, stranger = json.loads(capsys.readouterr().out)["servers"]
    assert (same["name"], same["step"]) == ("notes-2", "new")
    assert same["why"].startswith("the name 'notes' is taken; 'notes' is the same one already, with other arguments")
    assert (stranger["name"], stranger["why"]) == ("notes-3", "the name 'notes' is taken")


def test_a_second_import_finds_them_there(tmp_path: Path, servers_toml: Path) -> None:
    path = client_file(tmp_path, time=python("t.py", env={"TOKEN": SECRET}))
    carry_out(plan_import(path, None, servers_toml), Drawer())
    again = plan_import(path, None, servers_toml)
    assert [(each.step, each.why) for each in again.planned] == [(Step.KNOWN, "as time")]


def test_without_a_secret_store_what_is_to_be_set_is_told(tmp_path: Path, servers_toml: Path) -> None:
    path = client_file(tmp_path, time=python("t.py", env={"API_KEY": SECRET}))
    outcome = carry_out(plan_import(path, None, servers_toml), None)
    assert outcome.added == ("time",) and outcome.unset == ("time.API_KEY",)
    assert SECRET not in servers_toml.read_text()


def test_what_a_client_asks_for_is_to_be_set_unless_it_is_there(tmp_path: Path, servers_toml: Path) -> None:
    path = tmp_path / "mcp.json"
    entry = python("t.py", env={"A": "${input:one}", "B": "${input:two}"})
    path.write_text(json.dumps({"servers": {"time": entry}, "inputs": []}))
    plan = plan_import(path, CLIENTS["vscode"], servers_toml)
    assert carry_out(plan, Drawer(**{"time.one": "x"})).unset == ("time.two",)


def test_a_taken_name_gets_a_number(tmp_path: Path, servers_toml: Path) -> None:
    path = client_file(tmp_path, notes=python("other.py"))
    carry_out(plan_import(path, None, servers_toml), None)
    assert set(load_configuration(servers_toml).resources) == {"notes", "notes-2"}


def test_an_entry_that_would_not_load_is_left_out_and_the_others_are_added(tmp_path: Path, servers_toml: Path) -> None:
    path = tmp_path / ".mcp.json"
    entries = {
        "lost": python("${MISSING_VARIABLE}"),
        "ok": python("x.py"),
    }
    path.write_text(json.dumps({"mcpServers": entries}))
    plan = plan_import(path, None, servers_toml, environ={"PATH": "/usr/bin"})
    assert [each.step for each in plan.planned] == [Step.REFUSED, Step.ADD]
    assert "MISSING_VARIABLE" in plan.planned[0].why
    assert carry_out(plan, None, environ={"PATH": "/usr/bin"}).added == ("ok",)


def test_the_gateway_s_own_entry_is_not_imported(tmp_path: Path, servers_toml: Path) -> None:
    own = {"command": "uv", "args": ["run", "--directory", "/somewhere", "server.py"]}
    plan = plan_import(client_file(tmp_path, apollos=own), None, servers_toml)
    assert [each.step for each in plan.planned] == [Step.ITSELF]


def test_a_servers_toml_that_is_not_there_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    new = tmp_path / "new.toml"
    carry_out(plan_import(client_file(tmp_path, time=python("t.py")), None, new), None)
    assert set(load_configuration(new).resources) == {"time"} and new.stat().st_mode & 0o077 == 0


def test_a_broken_servers_toml_is_told_and_left_alone(tmp_path: Path, servers_toml: Path) -> None:
    servers_toml.write_text("[servers.x]\ncommand = \n")
    with pytest.raises(ConfigurationError, match=r"servers\.toml:2"):
        plan_import(client_file(tmp_path, time=python("t.py")), None, servers_toml)


def test_what_would_not_load_is_not_put_in_place(servers_toml: Path) -> None:
    with pytest.raises(ConfigurationError, match="Nothing was changed"):
        add_servers(servers_toml, [toml_of("bad", {"comand": "x"})])
    assert servers_toml.read_text() == OWN and len(list(servers_toml.parent.iterdir())) == 1


def test_a_link_stays_a_link_and_rights_stay(tmp_path: Path) -> None:
    real, link = tmp_path / "real.toml", tmp_path / "link.toml"
    real.write_text(OWN)
    real.chmod(0o640)
    link.symlink_to(real)
    add_servers(link, [toml_of("more", {"command": sys.executable})])
    assert link.is_symlink() and "[servers.more]" in real.read_text() and real.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("text", ['"', "\\", "\n\t\x01\x7f", "é😀", "[x]\n#", "'''", "${A}", "a" * 5000])
def test_any_text_comes_back_from_the_file_as_it_was(text: str) -> None:
    table = {"args": [text], "env": {text or "x": text}, "is_enabled": True, "timeouts": {"call": 1.5}}
    read = tomllib.loads(toml_of("a", table, f"from {text}"))
    assert read == {"servers": {"a": table}}


def test_it_asks_whose_file_it_is_where_none_is_named(
    servers_toml: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(["import"]) == 2
    assert "Name the file" in capsys.readouterr().err
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["import", "--client", "cursor"]) == 2
    assert f"{tmp_path}/.cursor/mcp.json: no such file" in capsys.readouterr().err


def test_export_prints_what_others_read_and_no_secret(servers_toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    servers_toml.write_text(
        OWN + '[servers.docs]\nurl = "https://docs.example.com/mcp"\n'
        'headers = { X-Api-Key = "hunter2", A = "${secret:a}" }\n'
        '[servers.open]\ncommand = "python3"\nargs = ["--token", "hunter2"]\n'
        '[servers.wide]\nurl = "https://x.example/mcp?key=hunter2"\n'
        '[servers.fine]\nurl = "https://x.example/mcp?key=${secret:a}"\n'
        '[servers.box]\ndocker_image = "mcp/time"\n[servers.cash]\ncommand = "python3"\nargs = ["5$$"]\n'
    )
    assert main(["export"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["mcpServers"] == {
        "notes": {"command": "python3", "args": ["notes.py"]},
        "docs": {
            "type": "http",
            "transport": "http",
            "url": "https://docs.example.com/mcp",
            "headers": {"X-Api-Key": "${X_API_KEY}", "A": "${secret:a}"},
        },
        "fine": {"type": "http", "transport": "http", "url": "https://x.example/mcp?key=${secret:a}"},
        "cash": {"command": "python3", "args": ["5$"]},
    }
    assert "box: runs in a container" in said.err and "hunter2" not in said.out + said.err
    assert "open: has a secret in its arguments" in said.err and "wide: has a secret" in said.err


def test_another_account_at_the_same_server_is_another_server(
    tmp_path: Path, servers_toml: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawer = Drawer()
    monkeypatch.setattr(client_commands, "keeper_of", lambda: drawer)
    first = client_file(tmp_path, Work=python("t.py", env={"API_KEY": SECRET, "DB": "a"}))
    assert main(["import", str(first), "--write"]) == 0
    assert main(["import", str(first), "--write"]) == 0
    assert "  Work  already there: as work" in capsys.readouterr().out
    for env in ({"API_KEY": "hunter3-hunter3", "DB": "a"}, {"API_KEY": SECRET, "DB": "b"}):
        again = plan_import(client_file(tmp_path, Home=python("t.py", env=env)), None, servers_toml, keeper=drawer)
        assert [each.step for each in again.planned] == [Step.ADD]


@pytest.mark.parametrize(
    "text", ["${secret:notes.token}", "$${secret:notes.token}", "a${secret:notes.token", "${secret:"]
)
def test_no_entry_names_a_secret_of_the_gateway(text: str, tmp_path: Path, servers_toml: Path) -> None:
    plan = plan_import(client_file(tmp_path, thief=python("t.py", env={"LEVEL": text})), None, servers_toml)
    assert [each.step for each in plan.planned] == [Step.REFUSED] and "secret" in plan.planned[0].why


def test_a_terminal_obeys_no_name_and_signs_that_are_none_are_refused(
    tmp_path: Path, servers_toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"\x1b[31mred": python("a.py"), "\x1b]0;title\x07": 3, "half": python("b.py", env={"\ud800": "x"})}
    assert main(["import", str(client_file(tmp_path, **names))]) == 1
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\x07" not in said and "\\x1b[31mred" in said
    assert "not taken: holds a sign that is none" in said
