"""Catalogs: every field is read, a bad entry costs nobody else, and every server becomes a resource or says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from composition.discovery.catalog import read_catalog
from composition.discovery.catalog_document import Unreadable
from composition.discovery.catalog_search import ranked, words_of
from composition.discovery.catalog_sources import Shelf
from composition.discovery.found import State, fitting_name, told_apart
from providers.resource import NAME_PATTERN, McpServerResource
from tests.helpers.catalogs import CATALOGS, SMALL, shelf_of, summary

pytestmark = pytest.mark.core


def catalog_of(**entries: Any) -> bytes:
    return json.dumps({"registry": entries}).encode()


@pytest.mark.parametrize("file", CATALOGS, ids=lambda file: file.stem)
def test_every_server_becomes_a_resource_or_says_what_stands_in_the_way(file: Path, record_property: Any) -> None:
    servers = shelf_of(file).servers()
    record_property("told", summary(file, servers))
    assert len({server.name for server in servers}) == len(servers)
    for server in servers:
        assert NAME_PATTERN.match(server.name)
        assert "\n" not in server.in_one_line() and "UNKNOWN" not in server.in_one_line()
        filled = {key: value for key, value in server.resource.items() if key != "docker_tools"}  # filled in by calls
        assert "{{" not in str(filled) and "<no value>" not in str(server.resource)
        if server.state is State.RUNNABLE:
            McpServerResource.model_validate({"name": server.name, **server.resource})
        else:
            assert server.problem or server.missing
    assert all(server.state is not State.NOT_RUNNABLE or len(server.in_one_line()) < 250 for server in servers)


def test_all_fields_of_an_entry_are_read() -> None:
    entry = read_catalog(SMALL.read_bytes()).entries["plain"]
    assert (entry.title, entry.description, entry.kind) == ("Plain", "Nothing to set.", "server")
    assert entry.date_added == "2025-06-18T13:07:01+01:00"
    assert [tool.name for tool in entry.tools] == ["say", "list_words"]
    assert entry.metadata.github_stars == 2 and entry.metadata.tags == ["words"]
    login = read_catalog(SMALL.read_bytes()).entries["login"]
    assert login.oauth is not None and login.oauth.providers[0].provider == "login" and login.oauth.scopes == ["read"]
    curl = read_catalog(SMALL.read_bytes()).entries["curl"]
    assert curl.tools[0].container is not None and curl.tools[0].container.command == ["{{args|into}}"]


def test_one_bad_entry_costs_nobody_else() -> None:
    catalog = read_catalog(
        catalog_of(
            fine={
                "image": "example/fine",
                "somethingNew": {"x": 1},
                "tools": None,
                "env": [{"name": "PORT", "value": 80}],
            },
            number=5,
            wrong={"image": ["x"], "env": [{"name": "A B"}], "longLived": "yes", "tools": {}, "command": "x"},
            nul={"image": "a\0b"},
            **{"bad\x1bname": {}, "": {}},
        )
    )
    assert set(catalog.entries) == {"fine"}
    assert catalog.entries["fine"].env[0].value == "80"
    assert catalog.problems["number"] == "it is not a table"
    assert catalog.problems["wrong"] == (
        "'longLived' should be a valid boolean; 'image' should be a valid string; 'tools' should be a valid list; "
        "and 2 more"
    )
    assert catalog.problems["nul"] == "'image' holds a character that cannot be seen"
    assert "its name is empty" in catalog.problems["bad name"]


def test_problems_quote_no_values() -> None:
    catalog = read_catalog(
        catalog_of(leaky={"env": {"TOKEN": "hunter2"}, "secrets": "hunter2", "longLived": "hunter2"})
    )
    assert "hunter2" not in str(catalog.problems)


@pytest.mark.parametrize("content", [b"[]", b"a: 1", b"registry: []", b"registry: x", b"5", b'{"registry": null}'])
def test_what_is_no_catalog_is_refused(content: bytes) -> None:
    with pytest.raises(Unreadable, match="no MCP catalog"):
        read_catalog(content)


def test_what_a_terminal_would_obey_is_gone_from_texts() -> None:
    entry = read_catalog(catalog_of(x={"title": "a\x1b[2Jb\u202e", "description": "c\nd"})).entries["x"]
    assert (entry.title, entry.description) == ("a [2Jb", "c d")


def test_one_name_in_two_catalogs_is_that_of_the_first_and_told() -> None:
    shelf = Shelf()
    shelf.add("one", read_catalog(catalog_of(x={"image": "example/one"})))
    shelf.add("two", read_catalog(catalog_of(x={"image": "example/two"}, y={"image": "example/y"})))
    assert shelf.entries["x"].image == "example/one" and shelf.entries["y"].image == "example/y"
    assert shelf.notes == ["two: 1 of its servers are in an earlier catalog, which holds (x)."]


@pytest.mark.parametrize(
    ("original", "name"),
    [
        ("brave", "brave"),
        ("SQLite", "sqlite"),
        ("youtube_transcript", "youtube-transcript"),
        ("io.github.someone/Server.Name", "io-github-someone-server-name"),
        ("__", "server"),
        ("Größe", "gr-e"),
        ("-a-", "a"),
        ("x" * 100, "x" * 63),
    ],
)
def test_names_are_made_to_fit(original: str, name: str) -> None:
    assert fitting_name(original) == name


def test_names_that_come_out_the_same_are_told_apart() -> None:
    names = told_apart(["a_b", "A-B", "a-b", "a.b", "y" * 70, "y" * 71])
    assert names["a-b"] == "a-b"
    assert sorted(names.values()) == ["a-b", "a-b-2", "a-b-3", "a-b-4", "y" * 61 + "-2", "y" * 63]


def test_many_names_that_come_out_the_same_take_no_time() -> None:
    assert len(set(told_apart([f"x{'!' * number}" for number in range(20_000)]).values())) == 20_000


def test_the_search_finds_names_before_descriptions() -> None:
    servers = shelf_of(SMALL).servers()
    assert ranked(servers, "search")[0].original == "search"
    assert ranked(servers, "list words")[0].original == "plain"  # the name of a tool
    assert ranked(servers, "note")[0].original == "Note_Book"
    assert ranked(servers, "xyz nothing") == ranked(servers, "nothing")
    assert ranked(servers, "xyzzy") == []
    assert len(ranked(servers, "")) == len(servers)


def test_words_are_apart_where_names_are() -> None:
    assert words_of("listTables get_user a-b GitHub") >= {
        "list",
        "tables",
        "get",
        "user",
        "a",
        "b",
        "git",
        "hub",
        "github",
    }
