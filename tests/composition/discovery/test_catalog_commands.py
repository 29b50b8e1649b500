"""`catalog search`, `show` and `add`, as a person and as a program has them."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from composition.cli import main
from composition.servers_file import load_configuration
from tests.helpers.catalogs import SMALL
from tests.helpers.gateway import servers_toml

pytestmark = pytest.mark.core


class Desk:
    """A person at the command line, with a servers.toml of his own."""

    def __init__(self, folder: Path, captured: pytest.CaptureFixture[str]) -> None:
        self.folder, self._captured = folder, captured

    def run(self, *words: str) -> tuple[int, str, str]:
        code = main(["catalog", *words])
        shown = self._captured.readouterr()
        return code, shown.out, shown.err

    def json(self, *words: str) -> Any:
        code, out, _ = self.run(*words, "--json")
        assert code == 0
        return json.loads(out)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Desk:
    servers = tmp_path / "servers.toml"
    servers.write_text(servers_toml({"taken": {"command": "x"}}, state_dir=str(tmp_path / "s"), catalogs=[str(SMALL)]))
    monkeypatch.setenv("APOLLOS_SERVERS", str(servers))
    return Desk(tmp_path, capsys)


def test_a_search_prints_a_table(desk: Desk) -> None:
    code, out, err = desk.run("search", "search")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["NAME", "KIND", "STATE", "DESCRIPTION"]
    assert out.splitlines()[1].split(maxsplit=2) == ["search", "container", "needs something  Searches the web."]


def test_a_search_that_finds_more_or_nothing_says_so(desk: Desk) -> None:
    assert desk.run("search", "--limit", "2")[2] == "8 more. Use --limit, or more words.\n"
    code, _, err = desk.run("search", "xyzzy")
    assert (code, err) == (1, "No server has these words. Try fewer.\n")


def test_a_program_gets_json(desk: Desk) -> None:
    (found,) = desk.json("search", "notes")
    assert (found["name"], found["original"], found["state"]) == ("note-book", "Note_Book", "needs something")
    shown = desk.json("show", "search")
    assert shown["needs"][0]["name"] == "search.api_key" and shown["resource"]["docker_image"] == "example/search"


def test_show_says_what_a_server_needs_and_becomes(desk: Desk) -> None:
    _, out, _ = desk.run("show", "Note_Book", "--set", "share=/srv/x")
    assert "needs secret note-book.notes.token, config page.url or feed.url" in out
    (level,) = [line.split() for line in out.splitlines() if " level " in line]
    assert level == ["config", "level", "string", "default", '"info"']
    assert 'docker_volumes = ["apollos-mcp-note-book_notes-data:/data:rw", "/srv/x:/share"]' in out
    assert "The gateway cannot hold it to that." in out


def test_without_a_store_add_yields_a_table_that_loads(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APOLLOS_STORE", "memory://")
    folder = desk.folder / "shared"
    folder.mkdir()
    monkeypatch.setenv("APOLLOS_DOCKER_ALLOWED_PATHS", str(folder))
    code, out, _ = desk.run("add", "folders", "--set", f"paths={folder}", "--role", "engineer", "--as", "files")
    assert code == 0
    toml = f'[gateway]\ndocker_allowed_paths = ["{folder}"]\n{out}'
    file = desk.folder / "other.toml"
    file.write_text(toml)
    resource = load_configuration(file).resources["files"]
    assert resource.args == (str(folder),) and resource.required_roles == ("engineer",)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/etc", "no container may see that"),
        ("/srv/elsewhere", "below none of docker_allowed_paths"),
        ("{folder}", "no container may see that"),
    ],
)
def test_a_folder_that_the_start_would_refuse_is_refused_at_once(desk: Desk, path: str, why: str) -> None:
    """The last is where servers.toml is."""
    code, out, err = desk.run("add", "folders", "--set", f"paths={path.format(folder=desk.folder)}")
    assert (code, out) == (2, "") and err.startswith("docker_volumes item 1: leads to") and why in err


def test_signs_of_an_entry_stay_signs_in_the_table(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APOLLOS_STORE", "memory://")
    catalog = desk.folder / "catalog.json"
    env = [{"name": "A", "value": 'p$5"\\{"x": "${KEY}"}'}]
    catalog.write_text(json.dumps({"registry": {"x": {"image": "example/x", "env": env}}}))
    _, out, err = desk.run("add", "x", "--catalog", str(catalog))
    assert tomllib.loads(out)["servers"]["x"]["env"] == {"A": 'p$$5"\\{"x": "${secret:x.key}"}'}
    assert "secret set x.key" in err


def test_a_server_that_lacks_something_is_not_added(desk: Desk) -> None:
    code, out, err = desk.run("add", "folders")
    assert (code, out) == (2, "")
    assert err == "'folders' needs paths. Give it with: --set paths=…\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["wrong"], "'wrong' is not runnable here: its entry in the catalog is wrong: 'env' should be a valid list."),
        (["plain", "--as", "taken"], "There is a server 'taken' already. Give this one another name: --as NAME"),
        (["plain", "--as", "No_Name"], "'name' is not a server name"),
        (["plain", "--set", "x=1"], "'x' is nothing that this server asks for."),
    ],
)
def test_what_cannot_be_added_says_why(desk: Desk, words: list[str], told: str) -> None:
    code, out, err = desk.run("add", *words)
    assert (code, out) == (2, "") and told in err


def test_a_name_that_is_not_there_is_no_mistake_in_what_was_written(desk: Desk) -> None:
    for word in ("show", "add"):
        code, out, err = desk.run(word, "nowhere")
        assert (code, out) == (1, "")
        assert err == "No catalog has a server 'nowhere'. `server.py catalog search` shows what there is.\n"


def test_a_value_without_a_key_is_not_repeated(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["catalog", "add", "plain", "--set", "hunter2"])
    assert "hunter2" not in capsys.readouterr().err


def test_a_catalog_that_cannot_be_read_costs_the_others_nothing(desk: Desk) -> None:
    pipe, broken = desk.folder / "folder", desk.folder / "broken.yaml"
    pipe.mkdir()
    broken.write_text("a: [")
    places = [str(pipe), str(broken), str(desk.folder / "none"), str(SMALL)]
    code, out, err = desk.run("search", "plain", *(word for place in places for word in ("--catalog", place)))
    assert code == 0 and "plain" in out
    assert f"{broken}: It is not YAML (line 2)" in err and f"{places[2]}: It cannot be read: no such file" in err
    code, _, err = desk.run("search", "--catalog", str(broken))
    assert code == 2 and "It is not YAML" in err


def test_what_a_catalog_says_is_obeyed_by_no_terminal(desk: Desk) -> None:
    catalog = desk.folder / "catalog.json"
    entry = {"image": "example/x", "title": "a\x1b[2J", "description": "b\x9b2J", "tools": [{"name": "\x1b]0;c\x07"}]}
    catalog.write_text(json.dumps({"registry": {"x": entry, "y\x1b[2J": {}}}))
    for words in (["search"], ["show", "x"], ["add", "x"]):
        _, out, err = desk.run(*words, "--catalog", str(catalog))
        assert not {"\x1b", "\x07", "\x9b"} & set(out + err)


def test_a_secret_that_a_new_server_finds_already_set_is_told(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = desk.folder / "catalog.json"
    entry = {"image": "example/x", "title": "a", "secrets": [{"name": "my.server-token", "env": "T"}]}
    catalog.write_text(json.dumps({"registry": {"my": entry}}))
    monkeypatch.setenv("APOLLOS_SECRET_MY__SERVER_TOKEN", "set before")
    _, out, err = desk.run("add", "my", "--catalog", str(catalog))
    assert "It gets the secret my.server-token, which is set already" in err and "set before" not in out + err


def test_tables_fit_into_a_terminal_and_are_whole_in_a_pipe(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    whole = desk.run("search")[1]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert max(map(len, whole.splitlines())) > 70 == max(map(len, desk.run("search")[1].splitlines()))
