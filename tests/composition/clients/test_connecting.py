"""`server.py connect` and `disconnect`: the gateway goes into a client's file, and out without a trace."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from composition.cli import main
from composition.clients.connecting import BACKUP, RECORD, connect, disconnect
from composition.clients.gateway_entry import gateway_entry
from composition.clients.importing import carry_out, plan_import
from composition.clients.jsonc import parse
from composition.clients.kinds import CLIENTS
from providers.errors import ConfigurationError

pytestmark = pytest.mark.core

KINDS = list(CLIENTS)
SECRET = "hunter2-hunter2"


@pytest.fixture
def servers_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "servers.toml"
    path.write_text('[servers.notes]\ncommand = "python3"\n')
    monkeypatch.setenv("APOLLOS_SERVERS", str(path))
    return path


def text_of(kind: str) -> str:
    """A client's file as its owner wrote it, with comments where the client reads them."""
    client = CLIENTS[kind]
    note = " // works" if client.comments else ""
    entry = json.dumps({"command": sys.executable, "args": ["t.py"], "env": {"API_KEY": SECRET}})
    both = f'        "time": {entry},{note}\n        "web": {{"url": "https://x.example/mcp"}}\n'
    return f'{{\n    "theme": "dark",\n    "{client.key}": {{\n{both}    }}\n}}\n'


def servers(kind: str, path: Path) -> dict[str, object]:
    return dict(parse(path.read_text()).root.value[CLIENTS[kind].key])


@pytest.mark.parametrize("kind", KINDS)
def test_connecting_adds_one_entry_and_disconnecting_leaves_no_trace(
    kind: str, tmp_path: Path, servers_toml: Path
) -> None:
    path = tmp_path / "client.json"
    path.write_text(text_of(kind))
    path.chmod(0o640)
    change = connect(CLIENTS[kind], path, servers_toml)
    assert change.is_change and change.kept == ("time", "web")
    added = servers(kind, path)
    assert added["apollos"] == gateway_entry(CLIENTS[kind])
    assert set(added) == {"time", "web", "apollos"}
    assert path.stat().st_mode & 0o777 == 0o640
    before = path.read_text()
    assert not connect(CLIENTS[kind], path, servers_toml).is_change and path.read_text() == before
    assert disconnect(CLIENTS[kind], path).is_change
    assert path.read_text() == text_of(kind)
    assert {each.name for each in tmp_path.iterdir()} == {"client.json", "servers.toml"}
    assert not disconnect(CLIENTS[kind], path).is_change


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_not_there_is_made_and_goes_again(kind: str, tmp_path: Path, servers_toml: Path) -> None:
    path = tmp_path / "deep" / "client.json"
    connect(CLIENTS[kind], path, servers_toml)
    json.loads(path.read_text())
    assert list(servers(kind, path)) == ["apollos"]
    disconnect(CLIENTS[kind], path)
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_import_then_connect_moves_and_disconnect_puts_back(kind: str, tmp_path: Path, servers_toml: Path) -> None:
    path = tmp_path / "client.json"
    path.write_text(text_of(kind))
    carry_out(plan_import(path, CLIENTS[kind], servers_toml), None)
    change = connect(CLIENTS[kind], path, servers_toml, move=True)
    assert change.names == ("time", "web") and list(servers(kind, path)) == ["apollos"]
    for kept in (path.with_name(path.name + BACKUP), path.with_name(path.name + RECORD)):
        assert kept.stat().st_mode & 0o077 == 0
    assert not connect(CLIENTS[kind], path, servers_toml, move=True).is_change
    assert disconnect(CLIENTS[kind], path).names == ("time", "web")
    assert path.read_text() == text_of(kind)


def test_what_the_gateway_does_not_have_is_not_moved(tmp_path: Path, servers_toml: Path) -> None:
    path = tmp_path / "client.json"
    path.write_text(text_of("cursor"))
    change = connect(CLIENTS["cursor"], path, servers_toml, move=True)
    assert change.names == () and change.kept == ("time", "web")


def test_an_edit_in_between_is_kept_and_what_was_moved_comes_back(tmp_path: Path, servers_toml: Path) -> None:
    path, client = tmp_path / "client.json", CLIENTS["cursor"]
    path.write_text(text_of("cursor"))
    carry_out(plan_import(path, client, servers_toml), None)
    connect(client, path, servers_toml, move=True)
    path.write_text(path.read_text().replace('"dark"', '"light"').replace("{", "{ // better", 1))
    connect(client, path, servers_toml, move=True)
    disconnect(client, path)
    after = parse(path.read_text()).root.value
    assert after == {**parse(text_of("cursor")).root.value, "theme": "light"} and "// better" in path.read_text()
    assert path.with_name(path.name + BACKUP).exists() and not path.with_name(path.name + RECORD).exists()


def test_a_server_of_somebody_else_under_our_name_is_left_alone(tmp_path: Path, servers_toml: Path) -> None:
    path = tmp_path / "client.json"
    path.write_text('{"mcpServers": {"apollos": {"command": "other"}}}')
    before = path.read_text()
    with pytest.raises(ConfigurationError, match="not this gateway"):
        connect(CLIENTS["cursor"], path, servers_toml)
    assert not disconnect(CLIENTS["cursor"], path).is_change and path.read_text() == before


@pytest.mark.parametrize("text", ["[]", '{"mcpServers": []}', "{", '{"mcpServers": {"a": 1, "a": 2}}'])
def test_a_file_that_cannot_be_edited_is_told_and_left_alone(text: str, tmp_path: Path, servers_toml: Path) -> None:
    path = tmp_path / "client.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError):
        connect(CLIENTS["cursor"], path, servers_toml)
    assert path.read_text() == text and {each.name for each in tmp_path.iterdir()} == {"client.json", "servers.toml"}


def test_a_lost_record_is_no_reason_to_lose_the_gateway_s_way_out(tmp_path: Path, servers_toml: Path) -> None:
    path, client = tmp_path / "client.json", CLIENTS["cursor"]
    path.write_text(text_of("cursor"))
    connect(client, path, servers_toml)
    path.with_name(path.name + RECORD).unlink()
    disconnect(client, path)
    assert parse(path.read_text()).root.value == parse(text_of("cursor")).root.value


def test_the_commands_say_what_they_did_and_no_secret(
    tmp_path: Path, servers_toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "claude_desktop_config.json"
    path.write_text(text_of("claude-desktop"))
    assert main(["import", str(path), "--write"]) == 0
    assert main(["connect", "claude-desktop", "--path", str(path), "--move"]) == 0
    assert main(["connect", "claude-desktop", "--path", str(path), "--json"]) == 0
    assert main(["disconnect", "claude-desktop", "--path", str(path)]) == 0
    said = capsys.readouterr()
    assert "Moved to the gateway: time, web." in said.out and "Put back: time, web." in said.out
    assert "Back again: server.py disconnect claude-desktop" in said.out
    assert SECRET not in said.out + said.err
    assert path.read_text() == text_of("claude-desktop")


def test_the_usual_place_is_below_the_user_s_home(
    tmp_path: Path, servers_toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["connect", "cursor"]) == 0
    assert (tmp_path / ".cursor" / "mcp.json").exists()
    assert main(["disconnect", "cursor"]) == 0


def test_without_the_copy_the_entries_are_put_back(tmp_path: Path, servers_toml: Path) -> None:
    path = tmp_path / "client.json"
    path.write_text('{"mcpServers": {"mine": {"command": "python3"}}}')
    connect(CLIENTS["cursor"], path, servers_toml, move=True)
    (tmp_path / (path.name + BACKUP)).unlink()
    assert disconnect(CLIENTS["cursor"], path).names == ("mine",)
    assert servers("cursor", path) == {"mine": {"command": "python3"}}
    assert not (tmp_path / (path.name + RECORD)).exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_gone_leaves_its_owner_the_copy_and_no_record(
    kind: str, tmp_path: Path, servers_toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, copy = tmp_path / "client.json", tmp_path / ("client.json" + BACKUP)
    path.write_text(text_of(kind))
    carry_out(plan_import(path, CLIENTS[kind], servers_toml), None)
    connect(CLIENTS[kind], path, servers_toml, move=True)
    path.unlink()
    assert main(["disconnect", kind, "--path", str(path)]) == 0
    assert f"That file is gone. What it held is in {copy}." in capsys.readouterr().out
    assert copy.read_text() == text_of(kind) and not path.exists() and not path.with_name(path.name + RECORD).exists()
    assert not disconnect(CLIENTS[kind], path).left
    path.write_text("{}")
    connect(CLIENTS[kind], path, servers_toml)
    assert disconnect(CLIENTS[kind], path).names == () and path.read_text() == "{}"


def test_a_file_that_we_made_and_that_is_gone_leaves_nothing(tmp_path: Path, servers_toml: Path) -> None:
    path = tmp_path / "deep" / "client.json"
    connect(CLIENTS["cursor"], path, servers_toml)
    path.unlink()
    assert not disconnect(CLIENTS["cursor"], path).left
    assert not list(path.parent.iterdir())


def test_what_only_the_record_holds_of_a_file_that_is_gone_stays(tmp_path: Path, servers_toml: Path) -> None:
    path = tmp_path / "client.json"
    path.write_text('{"mcpServers": {"mine": {"command": "python3"}}}')
    connect(CLIENTS["cursor"], path, servers_toml, move=True)
    (tmp_path / (path.name + BACKUP)).unlink()
    path.unlink()
    assert disconnect(CLIENTS["cursor"], path).left == (path.with_name(path.name + RECORD),)
    path.write_text("{}")
    assert disconnect(CLIENTS["cursor"], path).names == ("mine",)


def test_a_record_that_somebody_broke_is_told(tmp_path: Path, servers_toml: Path) -> None:
    path = tmp_path / "client.json"
    path.write_text("{}")
    (tmp_path / (path.name + RECORD)).write_text('{"moved": {"mine": 5}}')
    with pytest.raises(ConfigurationError, match="remove the record"):
        disconnect(CLIENTS["cursor"], path)


@pytest.mark.parametrize("args", [None, 5, "server.py", {}])
def test_an_entry_of_our_name_that_is_no_gateway_is_left_alone(
    args: object, tmp_path: Path, servers_toml: Path
) -> None:
    path = tmp_path / "client.json"
    path.write_text(json.dumps({"mcpServers": {"apollos": {"command": "x", "args": args}}}))
    with pytest.raises(ConfigurationError, match="not this gateway"):
        connect(CLIENTS["cursor"], path, servers_toml)


def test_an_entry_with_another_accounts_secret_stays(tmp_path: Path, servers_toml: Path) -> None:
    class Drawer:
        def get(self, name: str) -> str | None:
            return SECRET

        def set(self, name: str, value: str) -> None:
            raise AssertionError

    key = "${secret:notes.API_KEY}"
    servers_toml.write_text(f'[servers.notes]\ncommand = "python3"\nenv = {{ API_KEY = "{key}" }}\n')
    path = tmp_path / "client.json"
    same, other = ({"command": "python3", "env": {"API_KEY": each}} for each in (SECRET, "hunter3-hunter3"))
    path.write_text(json.dumps({"mcpServers": {"same": same, "other": other}}))
    change = connect(CLIENTS["cursor"], path, servers_toml, move=True, keeper=Drawer())
    assert change.names == ("same",) and change.kept == ("other",)


def test_the_files_rights_stay_whatever_the_umask_is(tmp_path: Path, servers_toml: Path) -> None:
    path = tmp_path / "client.json"
    path.write_text("{}")
    path.chmod(0o666)
    connect(CLIENTS["cursor"], path, servers_toml)
    assert path.stat().st_mode & 0o777 == 0o666
    assert (tmp_path / (path.name + BACKUP)).stat().st_mode & 0o777 == 0o600


def test_what_the_client_writes_meanwhile_is_not_overwritten(tmp_path: Path, servers_toml: Path) -> None:
    path = tmp_path / "client.json"

    class Drawer:
        def get(self, name: str) -> str | None:
            path.write_text('{"theme": "new"}')
            return None

        def set(self, name: str, value: str) -> None:
            raise AssertionError

    servers_toml.write_text('[servers.notes]\ncommand = "python3"\nenv = { API_KEY = "${secret:notes.API_KEY}" }\n')
    path.write_text('{"mcpServers": {"mine": {"command": "python3"}}}')
    with pytest.raises(ConfigurationError, match="run this again"):
        connect(CLIENTS["cursor"], path, servers_toml, move=True, keeper=Drawer())
    assert json.loads(path.read_text()) == {"theme": "new"}
    assert not list(tmp_path.glob("*.apollos-*"))
