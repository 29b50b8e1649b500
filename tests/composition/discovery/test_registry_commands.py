"""`server.py registry …` as a person uses it, against a registry on loopback."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web
from anyio.from_thread import start_blocking_portal

from composition.cli import main
from tests.helpers.mcp_registry import Registry, package, registry, server

pytestmark = pytest.mark.core

Run = Callable[..., "Said"]

CLOCK = server(
    "com.example/clock",
    packages=[
        package("pypi", "clock-server", packageArguments=[{"type": "named", "name": "--zone", "isRequired": True}])
    ],
)
FORGE = server(
    "com.example/forge",
    description="Repositories\x1b[2J\nand more",
    packages=[
        package("npm", "forge", environmentVariables=[{"name": "FORGE_TOKEN", "isRequired": True, "isSecret": True}]),
        package("nuget", "Forge"),
    ],
)
BUNDLE = server("com.example/bundle", packages=[package("mcpb", "https://example.com/a.mcpb")])


@pytest.fixture
def one() -> Iterator[Registry]:
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(registry(CLOCK, FORGE, BUNDLE)) as one,
    ):
        yield one


@dataclass
class Said:
    """What a command said."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(one: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `server.py registry` with this registry in its settings."""
    path = tmp_path / "servers.toml"
    path.write_text(f'[gateway]\nmcp_registry = "{one.url}"\nstate_dir = "{tmp_path}/state"\n')
    monkeypatch.setenv("APOLLOS_SERVERS", str(path))

    def run(*arguments: str) -> Said:
        capsys.readouterr()
        code = main(["registry", *arguments])
        return Said(code, *capsys.readouterr())

    return run


def test_search_prints_a_row_for_each_server_and_what_it_needs(run: Run) -> None:
    said = run("search", "com.example")
    rows = said.out.splitlines()
    assert said.code == 0 and rows[0].split() == ["NAME", "VERSION", "KIND", "STATE"]
    assert "needs config zone" in rows[1] and "needs secret forge.FORGE_TOKEN" in rows[2]
    assert "not runnable here: it is an MCP bundle" in rows[3]


def test_search_and_show_speak_json(run: Run) -> None:
    [found] = json.loads((run("search", "clock", "--json")).out)
    assert (found["original"], found["state"], found["missing"]) == ("com.example/clock", "needs something", ["zone"])
    shown = json.loads((run("show", "com.example/forge", "--json")).out)
    assert [each["kind"] for each in shown] == ["npm", "nuget"]


def test_show_says_what_is_needed_and_no_terminal_obeys_it(run: Run) -> None:
    said = run("show", "com.example/forge")
    assert (
        said.code == 0 and "com.example/forge 1.0.0, npm" in said.out and "com.example/forge 1.0.0, nuget" in said.out
    )
    assert "secret  forge.FORGE_TOKEN" in said.out and "\x1b" not in said.out


def test_add_asks_for_what_is_missing_and_then_gives_the_table(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APOLLOS_STORE", "memory://")
    lacking = run("add", "com.example/clock")
    assert lacking.code == 2 and "'clock' needs zone. Give it with: --set zone=…" in lacking.err
    said = run("add", "com.example/clock", "--set", "zone=UTC", "--as", "uhr")
    table = tomllib.loads(said.out)["servers"]["uhr"]
    assert said.code == 0 and table["command"] == "uvx" and table["args"][-1] == "--zone=UTC"


def test_a_secret_s_value_is_not_taken_and_its_name_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APOLLOS_STORE", "memory://")
    refused = run("add", "com.example/forge", "--set", "FORGE_TOKEN=hunter2")
    assert refused.code == 2 and "hunter2" not in refused.out + refused.err
    said = run("add", "com.example/forge", "--as", "schmiede")
    assert "${secret:schmiede.FORGE_TOKEN}" in said.out and "secret set schmiede.FORGE_TOKEN" in said.err


def test_what_does_not_run_or_is_not_there_is_refused(run: Run) -> None:
    bundle = run("add", "com.example/bundle")
    assert bundle.code == 2 and "not runnable here: it is an MCP bundle" in bundle.err
    nowhere = run("show", "com.example/none")
    assert nowhere.code == 1 and "the registry has no server 'com.example/none'" in nowhere.err


def test_without_the_registry_the_copy_serves_and_says_so(run: Run, one: Registry) -> None:
    assert run("show", "com.example/clock").code == 0

    async def away(request: web.Request) -> web.Response:
        return web.Response(status=503)

    one.instead = away
    assert run("show", "com.example/clock").code == 0
    gone = run("search", "forge")
    assert gone.code == 1 and "answered HTTP 503" in gone.err and "Traceback" not in gone.err
