"""Entries of real shapes, from each client: what they become, and that no secret of theirs is left in the table."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from composition.clients.jsonc import parse
from composition.clients.kinds import CLIENTS, FASTMCP, client_of
from composition.clients.reading import Entry, read_client_file
from composition.clients.secret_values import has_secret_name, looks_secret
from providers.errors import ConfigurationError

pytestmark = pytest.mark.core

KINDS = {**CLIENTS, "fastmcp": FASTMCP}
GITHUB = "ghp_0123456789abcdefghijABCDEFGHIJ012345"
DENSE = "q7Xk29fLm4Tz8Wp1Rv6Yb3Nc5"


def read(tmp_path: Path, kind: str, *entries: Any, **more: Any) -> list[Entry]:
    client = KINDS[kind]
    path = tmp_path / "client.json"
    path.write_text(json.dumps({client.key: {f"s{n}": entry for n, entry in enumerate(entries)}, **more}))
    return list(read_client_file(path, client).entries)


def table(tmp_path: Path, kind: str, entry: Any, **more: Any) -> dict[str, Any]:
    [read_entry] = read(tmp_path, kind, entry, **more)
    assert read_entry.problem is None, read_entry.problem
    return read_entry.table


@pytest.mark.parametrize(
    ("kind", "entry", "expected"),
    [
        ("claude-desktop", {"command": "uvx", "args": ["x"]}, {"command": "uvx", "args": ["x"]}),
        (
            "claude-desktop",
            {"command": "x", "env": {"A": "${B} $C 5$"}},
            {"command": "x", "env": {"A": "$${B} $$C 5$"}},
        ),
        ("claude-code", {"type": "http", "url": "https://x.example/${V:-mcp}"}, {"url": "https://x.example/${V:-mcp}"}),
        ("claude-code", {"type": "stdio", "command": "x", "args": ["$V"]}, {"command": "x", "args": ["$$V"]}),
        (
            "claude-code",
            {"type": "sse", "url": "https://x.example/s"},
            {"url": "https://x.example/s", "transport_type": "sse"},
        ),
        ("cursor", {"url": "https://x.example/${env:V}"}, {"url": "https://x.example/${V}"}),
        (
            "cursor",
            {"command": "x", "env": {"API_KEY": "${env:MY_KEY}"}},
            {"command": "x", "env": {"API_KEY": "${MY_KEY}"}},
        ),
        ("vscode", {"type": "stdio", "command": "x"}, {"command": "x"}),
        ("windsurf", {"serverUrl": "https://x.example/mcp"}, {"url": "https://x.example/mcp"}),
        ("cline", {"url": "https://x.example/mcp", "type": "streamableHttp"}, {"url": "https://x.example/mcp"}),
        (
            "cline",
            {"command": "x", "disabled": True, "timeout": 60, "autoApprove": ["a"]},
            {"is_enabled": False, "command": "x", "timeouts": {"call": 60}},
        ),
        ("gemini", {"httpUrl": "https://x.example/mcp"}, {"url": "https://x.example/mcp"}),
        ("gemini", {"url": "https://x.example/sse"}, {"url": "https://x.example/sse", "transport_type": "sse"}),
        (
            "gemini",
            {"command": "x", "args": ["$HOME_DIR", "${B}"], "timeout": 5000, "includeTools": ["a"]},
            {"command": "x", "args": ["${HOME_DIR}", "${B}"], "tools": {"include": ["a"]}, "timeouts": {"call": 5.0}},
        ),
        ("zed", {"source": "custom", "command": "x", "args": ["y"]}, {"command": "x", "args": ["y"]}),
        (
            "zed",
            {"command": {"path": "x", "args": ["y"], "env": {"A": "1"}}},
            {"command": "x", "args": ["y"], "env": {"A": "1"}},
        ),
        (
            "fastmcp",
            {"url": "https://x.example/sse", "transport": "sse"},
            {"url": "https://x.example/sse", "transport_type": "sse"},
        ),
        (
            "fastmcp",
            {"command": "x", "env": {"PORT": 8080, "DEBUG": True, "NO": None}, "cwd": "/srv", "description": "d"},
            {"description": "d", "command": "x", "env": {"PORT": "8080", "DEBUG": "true"}, "cwd": "/srv"},
        ),
    ],
)
def test_each_client_s_entry_becomes_a_table(tmp_path: Path, kind: str, entry: Any, expected: dict[str, Any]) -> None:
    assert table(tmp_path, kind, entry) == expected


SECRETS = [
    ("claude-desktop", {"command": "x", "env": {"GITHUB_TOKEN": "@"}}),
    ("claude-code", {"type": "http", "url": "https://x.example/mcp?api_key=@", "headers": {"X": "1"}}),
    ("cursor", {"url": "https://x.example/mcp", "headers": {"Authorization": "Bearer @"}}),
    ("cursor", {"url": "https://u:@@x.example/mcp"}),
    ("gemini", {"httpUrl": "https://x.example", "headers": {"X-Api-Key": "@"}}),
    ("fastmcp", {"url": "https://x.example/mcp", "auth": "@"}),
    ("zed", {"command": "x", "env": {"database_connection_string": "@"}}),
]


@pytest.mark.parametrize(("kind", "entry"), SECRETS)
def test_a_secret_is_taken_out_of_the_table_and_shown_nowhere(
    tmp_path: Path, kind: str, entry: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hidden = json.loads(json.dumps(entry).replace("@", "hunter2", 1))
    [found] = read(tmp_path, kind, hidden)
    assert found.problem is None
    assert list(found.secrets.values()) == ["hunter2"]
    [name] = found.secrets
    assert f"${{secret:{name}}}" in json.dumps(found.table) and name.startswith("s0.")
    assert "hunter2" not in json.dumps(found.table) + repr(found) + caplog.text


BRIDGED = ["-y", "mcp-remote@0.1.2", "https://x.example/mcp", "--header", "Authorization: Bearer ${T}"]


@pytest.mark.parametrize(
    "args",
    [
        ["--api-key", "@"],
        ["--apiKey=@"],
        ["mcp-remote", "https://x.example", "--header", "Authorization: Bearer @"],
        ["run", "-e", "MY_PASSWORD=@", "image"],
        ["https://x.example/?token=@&a=1"],
        [GITHUB],
    ],
)
def test_a_secret_in_the_arguments_is_refused_and_not_shown(tmp_path: Path, args: list[str]) -> None:
    words = [word.replace("@", "hunter2") for word in args]
    [found] = read(tmp_path, "claude-desktop", {"command": "x", "args": words})
    assert "has a secret in its arguments" in str(found.problem)
    assert "hunter2" not in repr(found) and GITHUB not in repr(found) and not found.secrets


def test_a_bridge_to_a_remote_server_is_left_out(tmp_path: Path) -> None:
    entry = {"command": "npx", "args": BRIDGED, "env": {"T": "hunter2"}}
    [found] = read(tmp_path, "claude-desktop", entry)
    assert found.table == {
        "url": "https://x.example/mcp",
        "headers": {"Authorization": "Bearer ${secret:s0.Authorization}"},
    }
    assert found.secrets == {"s0.Authorization": "hunter2"} and "without mcp-remote" in found.notes[0]
    [signing_in] = read(tmp_path, "claude-desktop", {"command": "npx", "args": BRIDGED[:3]})
    assert signing_in.table["command"] == "npx"
    [odd] = read(tmp_path, "claude-desktop", {"command": "npx", "args": [*BRIDGED, "--debug"], "env": {"T": "x"}})
    assert odd.table["command"] == "npx"


@pytest.mark.parametrize(
    "value", [GITHUB, DENSE, "sk-proj-abc", "postgres://me:hunter2@db/x", "eyJhbGciOiJIUzI1NiJ9.e30.x"]
)
def test_a_value_is_a_secret_for_what_it_looks_like(tmp_path: Path, value: str) -> None:
    [found] = read(tmp_path, "claude-desktop", {"command": "x", "env": {"ANYTHING": value}})
    assert set(found.secrets.values()) == {value} and value not in json.dumps(found.table)


@pytest.mark.parametrize(
    "value",
    [
        "info",
        "https://api.example.com/v1/a",
        "/usr/local/share/thing-1.2.3/bin",
        "@modelcontextprotocol/server-x@2026.8.31",
        "my-very-long-project-name-2026",
        "true",
        "8080",
        "127.0.0.1:8080",
        "UTC",
        "Europe/Berlin",
        "user@example.com",
    ],
)
def test_what_is_no_secret_stays(value: str) -> None:
    assert not looks_secret(value)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("GITHUB_TOKEN", True),
        ("apiKey", True),
        ("X-API-Key", True),
        ("DB_PASSWORD", True),
        ("PAT", True),
        ("Cookie", True),
        ("MAX_TOKENS", False),
        ("TOKEN_FILE", False),
        ("AUTH_URL", False),
        ("KEYBOARD", False),
        ("LEVEL", False),
        ("SECRET_NAME", False),
        ("PATH", False),
    ],
)
def test_names_that_tell(name: str, is_one: bool) -> None:
    assert has_secret_name(name) is is_one


def test_what_vs_code_asks_for_becomes_a_default_or_a_secret_to_be_set(tmp_path: Path) -> None:
    inputs = [
        {"type": "promptString", "id": "key", "description": "The key", "password": True},
        {"type": "pickString", "id": "region", "options": ["eu", "us"], "default": "eu"},
    ]
    env = {"API_KEY": "${input:key}", "REGION": "${input:region}", "HOME_": "${userHome}/x"}
    [found] = read(tmp_path, "vscode", {"command": "x", "env": env}, inputs=inputs)
    assert found.table["env"] == {"API_KEY": "${secret:s0.key}", "REGION": "eu", "HOME_": f"{Path.home()}/x"}
    assert found.wanted == ("s0.key",) and found.secrets == {}


def test_the_workspace_is_known_where_the_file_lies_in_one(tmp_path: Path) -> None:
    folder = tmp_path / "project" / ".vscode"
    folder.mkdir(parents=True)
    (folder / "mcp.json").write_text('{"servers": {"a": {"command": "x", "args": ["${workspaceFolder}/b"]}}}')
    [found] = read_client_file(folder / "mcp.json").entries
    assert found.table["args"] == [f"{tmp_path}/project/b"]
    [lost] = read(tmp_path, "vscode", {"command": "x", "args": ["${workspaceFolder}"]})
    assert "folder of a workspace" in str(lost.problem)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (3, "is not an object"),
        ({}, "neither a 'command' nor an address"),
        ({"command": "x", "url": "https://x.example"}, "both a 'command' and an address"),
        ({"command": 3}, "key 'command' must be a text"),
        ({"command": "x", "args": "y"}, "key 'args' must be a list"),
        ({"command": "x", "args": [{"a": GITHUB}]}, "key 'args, item 1' must be a text"),
        ({"command": "x", "env": [GITHUB]}, "key 'env' must be an object"),
        ({"command": "x", "env": {"A": {"b": GITHUB}}}, "key 'env.A' must be a text"),
        ({"url": "ftp://x.example"}, "must begin with http"),
        ({"url": "https://x.example", "type": "websocket"}, "type that the gateway does not speak"),
        ({"url": "https://x.example", "auth": "oauth"}, "OAuth"),
        ({"url": "https://x.example", "headers": {"X-Mcp-UserId": "root"}}, "gateway's own"),
        ({"url": "https://[x", "headers": {}}, "address that is none"),
        ({"command": "x", "env": {"A": "\ud800"}}, "a sign that is none"),
    ],
)
def test_a_bad_entry_says_why_and_takes_no_other_with_it(tmp_path: Path, entry: Any, told: str) -> None:
    good = {"command": "uvx", "args": ["mcp-server-time"]}
    bad, fine = read(tmp_path, "fastmcp", entry, good)
    assert told in str(bad.problem) and GITHUB not in str(bad.problem)
    assert fine.problem is None and fine.table == good


def test_names_are_made_to_fit_and_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps({"mcpServers": {n: {"command": "x"} for n in ("My Server!", "my_server", "time", "é")}}))
    entries = read_client_file(path, taken=["time"]).entries
    assert [entry.name for entry in entries] == ["my-server", "my-server-2", "time-2", "server"]


@pytest.mark.parametrize(
    ("file", "keys", "kind"),
    [
        ("claude_desktop_config.json", {}, "claude-desktop"),
        (".mcp.json", {}, "claude-code"),
        (".claude.json", {}, "claude-code"),
        (".cursor/mcp.json", {}, "cursor"),
        (".gemini/settings.json", {}, "gemini"),
        (".vscode/mcp.json", {"servers": {}}, "vscode"),
        ("zed/settings.json", {"context_servers": {}}, "zed"),
        ("mcp_config.json", {}, "windsurf"),
        ("cline_mcp_settings.json", {}, "cline"),
        ("mcp.json", {"mcpServers": {}}, "fastmcp"),
    ],
)
def test_whose_file_it_is_shows_in_its_name_or_its_keys(file: str, keys: dict[str, Any], kind: str) -> None:
    assert client_of(Path("/home/ada") / file, keys).kind == kind


@pytest.mark.parametrize(
    ("kind", "system", "path"),
    [
        ("claude-desktop", "linux", "/h/.config/Claude/claude_desktop_config.json"),
        ("claude-desktop", "darwin", "/h/Library/Application Support/Claude/claude_desktop_config.json"),
        ("claude-desktop", "win32", "/r/Claude/claude_desktop_config.json"),
        ("claude-code", "darwin", "/h/.claude.json"),
        ("cursor", "win32", "/h/.cursor/mcp.json"),
        ("vscode", "linux", "/h/.config/Code/User/mcp.json"),
        ("vscode", "win32", "/r/Code/User/mcp.json"),
        ("windsurf", "linux", "/h/.codeium/windsurf/mcp_config.json"),
        ("gemini", "linux", "/h/.gemini/settings.json"),
        ("zed", "darwin", "/h/.config/zed/settings.json"),
        ("zed", "win32", "/r/Zed/settings.json"),
    ],
)
def test_each_client_s_file_is_where_its_maker_puts_it(kind: str, system: str, path: str) -> None:
    environ = {"HOME": "/h", "USERPROFILE": "/h", "APPDATA": "/r"}
    assert CLIENTS[kind].path(system, environ) == Path(path)


def test_a_folder_s_servers_of_claude_code_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / ".claude.json"
    path.write_text(json.dumps({"projects": {"/a": {"mcpServers": {"x": {"command": "x"}}}}, "mcpServers": {}}))
    assert [entry.name for entry in read_client_file(path).entries] == ["x"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"[1]", "is not an object"),
        (b'{"mcpServers": []}', "must be an object"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_a_file_that_is_none_is_told(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "mcp.json"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=told) as error:
        read_client_file(path) if content != b'{"mcpServers": []}' else read_client_file(path, FASTMCP)
    assert str(path) in str(error.value)


def test_comments_are_read_where_the_client_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    path.write_text('{// mine\n"mcpServers": {"a": {"command": "x",},},}')
    assert read_client_file(path, CLIENTS["cursor"]).entries
    with pytest.raises(ConfigurationError, match="does not read"):
        read_client_file(path, CLIENTS["claude-desktop"])
    assert parse(path.read_text()).root.value
