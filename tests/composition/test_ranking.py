"""Finding tools by words: how well, how fast it need not be told, and what backends may put into a tool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from composition.ranking import ToolIndex, rank, words_of
from tests.composition.tool_queries import QUERIES

pytestmark = pytest.mark.core

CATALOG = Path(__file__).parents[3] / "shared" / "data" / "docker-catalog" / "docker-catalog-tools.json"
"""Real tools of a public catalog, where they lie beside the project."""


def tool(description: str = "", *arguments: str, **more: Any) -> dict[str, Any]:
    properties = {name: {"type": "string"} for name in arguments}
    return {"description": description, "inputSchema": {"type": "object", "properties": properties}, **more}


TOOLS: dict[str, dict[str, dict[str, Any]]] = {
    "time": {
        "get_current_time": tool("Get current time in a specific timezone", "timezone"),
        "convert_time": tool("Convert time between timezones", "source_timezone", "time", "target_timezone"),
    },
    "git": {
        "git_status": tool("Shows the working tree status", "repo_path"),
        "git_diff_unstaged": tool("Shows changes in the working directory that are not yet staged", "repo_path"),
        "git_commit": tool("Records changes to the repository", "repo_path", "message"),
        "git_add": tool("Adds file contents to the staging area", "repo_path", "files"),
        "git_log": tool("Shows the commit logs", "repo_path", "max_count"),
        "git_create_branch": tool("Creates a new branch from an optional base branch", "branch_name"),
        "git_checkout": tool("Switches branches", "repo_path", "branch_name"),
    },
    "files": {
        "read_text_file": tool("Read the complete contents of a file from the file system as text.", "path", "head"),
        "write_file": tool("Create a new file or completely overwrite an existing file", "path", "content"),
        "list_directory": tool("Get a detailed listing of all files and directories in a path.", "path"),
        "directoryTree": tool("Get a recursive tree view of files and directories", "path"),
        "move_file": tool("Move or rename files and directories.", "source", "destination"),
        "search_files": tool("Recursively search for files and directories matching a pattern.", "path", "pattern"),
        "get_file_info": tool("Retrieve detailed metadata about a file or directory: size, times.", "path"),
    },
    "memory": {
        "create_entities": tool("Create multiple new entities in the knowledge graph", "entities"),
        "delete_entities": tool("Delete multiple entities and their associated relations", "entityNames"),
        "search_nodes": tool("Search for nodes in the knowledge graph based on a query", "query"),
        "read_graph": tool("Read the entire knowledge graph"),
    },
}
ASKED = (
    ("what time is it in Tokyo", "time_get_current_time"),
    ("convert 9:00 Berlin to New York", "time_convert_time"),
    ("which files did I change", "git_git_diff_unstaged"),
    ("stage files", "git_git_add"),
    ("history of commits", "git_git_log"),
    ("switch to another branch", "git_git_checkout"),
    ("make a branch", "git_git_create_branch"),
    ("rename a file", "files_move_file"),
    ("how large is this file", "files_get_file_info"),
    ("show me a folder", "files_list_directory"),
    ("tree of a directory", "files_directoryTree"),
    ("remove an entity", "memory_delete_entities"),
    ("look something up in the knowledge graph", "memory_search_nodes"),
    ("save text to a file", "files_write_file"),
)


def indexes(tools: dict[str, dict[str, Any]]) -> list[ToolIndex]:
    return [ToolIndex(name, {f"{name}_{tool}": form for tool, form in each.items()}) for name, each in tools.items()]


@pytest.mark.parametrize(("query", "expected"), ASKED)
def test_what_is_asked_for_is_among_the_first_five(query: str, expected: str) -> None:
    assert expected in [found.name for found in rank(indexes(TOOLS), query, 5)]


def _of_the_catalog() -> list[ToolIndex]:
    tools = json.loads(CATALOG.read_text("utf-8"))
    return indexes({server: {form["name"]: _with_schema(form) for form in forms} for server, forms in tools.items()})


def _with_schema(form: dict[str, Any]) -> dict[str, Any]:
    """The catalog lists most arguments in a form of its own."""
    properties = {each["name"]: {"description": each.get("desc", "")} for each in form.get("arguments", ())}
    return {"inputSchema": {"type": "object", "properties": properties}, **form}


Queries = tuple[tuple[str, tuple[str, ...]], ...]
MEASURED: dict[str, tuple[list[ToolIndex], Queries]] = {
    "four servers": (indexes(TOOLS), tuple((query, (expected,)) for query, expected in ASKED)),
    **({"a real catalog": (_of_the_catalog(), QUERIES)} if CATALOG.exists() else {}),
}


@pytest.mark.parametrize("of", MEASURED)
def test_nine_in_ten_are_among_the_first_five(of: str) -> None:
    tools, queries = MEASURED[of]
    lost = [query for query, expected in queries if not {found.name for found in rank(tools, query, 5)} & {*expected}]
    assert 1 - len(lost) / len(queries) >= 0.9, lost


def test_a_word_is_found_in_its_forms_and_within_names() -> None:
    assert words_of("listOpenIssues") == words_of("list open issue") == words_of("Listing_opened-ISSUES")
    assert words_of("the HTTPServer2 für 東京") == ["http", "server", "2", "f", "ü", "r", "東京"]


def test_equals_come_by_name_and_nothing_fits_nothing() -> None:
    same = indexes({"b": {"x": tool("run a job")}, "a": {"x": tool("run a job")}})
    assert [found.name for found in rank(same, "run job", 5)] == ["a_x", "b_x"]
    assert rank(same, "", 5) == rank(same, "the of", 5) == rank(same, "zebra", 5) == rank([], "job", 5) == []


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"description": 7, "title": [], "inputSchema": "x", "annotations": 3},
        {"description": "x" * 10_000_000},
        {"inputSchema": {"properties": {str(number): None for number in range(10_000)}}},
        {"inputSchema": {"properties": []}, "annotations": {"title": None}},
        {"description": "\ud800\x00\u202e"},
    ],
    ids=range(6),
)
def test_whatever_a_server_says_of_a_tool_it_can_be_found_by_its_name(form: dict[str, Any]) -> None:
    assert [found.name for found in rank(indexes({"s": {"odd_tool": form}}), "odd", 5)] == ["s_odd_tool"]
