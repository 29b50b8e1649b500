"""`tools` and `call`, as processes: with a gateway of their own, and with one that runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from composition.cost import tokens_of
from tests.helpers.gateway import ROOT, gateway_over_http, in_process, servers_toml
from tests.helpers.people import token, tokens


def run(folder: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    places = {"APOLLOS_SERVERS": str(folder / "servers.toml"), "APOLLOS_STATE_DIR": str(folder / "state")}
    command = [sys.executable, str(ROOT / "server.py"), *words]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | places | environ, timeout=60, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "servers.toml").write_text(
        servers_toml({"one": in_process("everything.py"), "two": in_process("everything.py")})
    )
    return tmp_path


def answer(folder: Path, *words: str) -> Any:
    return json.loads(run(folder, *words, "--json").stdout)


def test_tools_are_listed_searched_and_weighed(folder: Path) -> None:
    forms = answer(folder, "tools")
    assert {form["name"].partition("_")[0] for form in forms} == {"one", "two"}
    assert {form["name"].partition("_")[0] for form in answer(folder, "tools", "--server", "two")} == {"two"}
    assert answer(folder, "tools", "--search", "echo a text")[0]["name"] == "one_echo"
    cost = answer(folder, "tools", "--cost")
    assert cost["tokens"] == sum(tokens_of(form) for form in forms) > cost["tokensWithSearch"] > 0
    assert cost["servers"]["one"]["tools"] * 2 == len(forms)
    shown = run(folder, "tools", "--search", "echo").stdout.splitlines()
    assert shown[0].split()[0] == "one_echo"


def test_a_tool_is_called_with_what_it_wants(folder: Path) -> None:
    assert "hello=world" in run(folder, "call", "one_echo", "text=hello=world").stdout
    assert run(folder, "call", "one_add", "a=2", "b=40").stdout.strip() == "42"
    wrong = run(folder, "call", "one_add", "a=two", "b=1")
    assert wrong.returncode == 2 and "'a' has to be JSON" in wrong.stderr
    assert run(folder, "call", "one_add", "a").returncode == 2
    failed = run(folder, "call", "one_fail", "message=no")
    assert failed.returncode == 1 and "no" in failed.stdout
    assert run(folder, "call", "one_absent").returncode == 1


async def test_a_gateway_that_runs_is_asked_as_the_tokens_user(folder: Path) -> None:
    toml = servers_toml({"mine": in_process("everything.py", required_roles=["engineer"])})
    async with gateway_over_http(toml, auth=tokens()) as served:

        def ask(user: str) -> subprocess.CompletedProcess[str]:
            return run(folder, "tools", "--json", "--gateway", served.url, APOLLOS_TOKEN=token(user))

        assert "mine_echo" in (await anyio.to_thread.run_sync(ask, "ada")).stdout
        assert json.loads((await anyio.to_thread.run_sync(ask, "bob")).stdout) == []
        stranger = await anyio.to_thread.run_sync(lambda: run(folder, "tools", "--gateway", served.url))
        assert stranger.returncode == 1 and "APOLLOS_TOKEN" in stranger.stderr and "Traceback" not in stranger.stderr


def test_a_gateway_that_cannot_be_asked_is_told_in_a_line(folder: Path) -> None:
    for command in (["tools"], ["call", "one_echo", "text=x"]):
        away = run(folder, *command, "--gateway", "http://127.0.0.1:1/mcp")
        assert away.returncode == 1 and "the gateway at http://127.0.0.1:1 cannot be asked" in away.stderr
        wrong = run(folder, *command, "--gateway", "somewhere")
        assert wrong.returncode == 2 and "--gateway" in wrong.stderr
        lost = run(folder, *command, "--gateway", "http://127.0.0.1:1", "--token-file", str(folder / "none"))
        assert lost.returncode == 2 and "--token-file" in lost.stderr
        assert "Traceback" not in away.stderr + wrong.stderr + lost.stderr
