"""`tools` and `call`, as processes: with a gateway of their own, and with one that runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from composition.cost import tokens_of
from providers.lines import MODERN
from tests.helpers.adding import add, called, shop
from tests.helpers.gateway import LATEST, ROOT, gateway_over_http, in_process, servers_toml
from tests.helpers.people import token, tokens
from tests.helpers.processes import eventually, is_running
from tests.helpers.site import Site, serving


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


# ---------------------------------------------------------------------------------------------- one server, no other


def marking(folder: Path) -> dict[str, Any]:
    """A server whose start leaves a mark, and comes to nothing."""
    return {"command": "sh", "args": ["-c", f"touch '{folder / 'mark'}'; exit 3"]}


@pytest.fixture
def two(tmp_path: Path) -> str:
    """A good server, and one whose start is seen."""
    toml = servers_toml({"good": in_process("everything.py"), "marking": marking(tmp_path)})
    (tmp_path / "servers.toml").write_text(toml)
    return toml


def quiet(folder: Path, *words: str, **environ: str) -> str:
    """What a command says that has started no other server, and has nothing to warn of."""
    done = run(folder, *words, **environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (folder / "mark").exists()
    return done.stdout.strip()


@pytest.mark.core
def test_a_call_starts_its_own_server_alone(tmp_path: Path, two: str) -> None:
    assert quiet(tmp_path, "call", "good_add", "a=2", "b=40") == "42"
    forms = json.loads(quiet(tmp_path, "tools", "--server", "good", "--json"))
    assert "good_add" in {form["name"] for form in forms}
    broken = run(tmp_path, "call", "marking_anything")
    assert broken.returncode == 1 and "server 'marking'" in broken.stderr and (tmp_path / "mark").exists()
    assert "Traceback" not in broken.stderr


@pytest.mark.core
def test_a_server_that_is_not_there_is_told_with_the_closest_name(tmp_path: Path, two: str) -> None:
    for command in (["call", "godo_add"], ["tools", "--server", "godo"]):
        wrong = run(tmp_path, *command)
        assert wrong.returncode == 1
        assert wrong.stderr == "there is no server 'godo'. Did you mean 'good'?\n"
    wrong = run(tmp_path, "call", "good_ad")
    assert wrong.returncode == 1 and "Did you mean 'good_add'?" in wrong.stderr
    assert not (tmp_path / "mark").exists()
    (tmp_path / "servers.toml").write_text(servers_toml({"off": in_process("everything.py", is_enabled=False)}))
    assert "server 'off' is switched off" in run(tmp_path, "call", "off_add").stderr


def test_the_gateways_own_tools_are_called_too(tmp_path: Path) -> None:
    (tmp_path / "servers.toml").write_text(servers_toml({"one": in_process("everything.py")}, dynamic=True))
    listed = json.loads(quiet(tmp_path, "call", "gateway_list_servers"))
    assert [each["name"] for each in listed["servers"]] == ["one"]
    assert "one_add" in quiet(tmp_path, "call", "gateway_find_tools", "query=add two numbers", "limit=1")
    absent = run(tmp_path, "call", "gateway_find_tools", "query=x", APOLLOS_DYNAMIC="false")
    assert absent.returncode == 1 and "there is no server 'gateway'" in absent.stderr


@pytest.mark.core
async def test_a_gateway_that_runs_is_asked_for_one_server(tmp_path: Path, two: str) -> None:
    async with gateway_over_http(two) as served:

        async def ask(*words: str) -> str:
            return await anyio.to_thread.run_sync(lambda: quiet(tmp_path, *words, "--gateway", served.url))

        assert await ask("call", "good_add", "a=2", "b=40") == "42"
        assert "good_add" in await ask("tools", "--server", "good")
        for words in (["call", "godo_add"], ["tools", "--server", "../x"]):
            wrong = await anyio.to_thread.run_sync(partial(run, tmp_path, *words, "--gateway", served.url))
            assert wrong.returncode == 1 and f"there is no server '{words[-1].removesuffix('_add')}'" in wrong.stderr
        assert not (tmp_path / "mark").exists()


@pytest.mark.core
async def test_what_a_tool_wants_is_known_also_where_tools_are_shown_by_search_alone(tmp_path: Path, two: str) -> None:
    async with gateway_over_http(f'[gateway]\ntools = "search"\n{two.removeprefix("[gateway]")}') as served:

        async def ask(*words: str) -> str:
            return await anyio.to_thread.run_sync(lambda: quiet(tmp_path, *words, "--gateway", served.url))

        assert await ask("call", "good_add", "a=2", "b=40") == "42"
        assert "Add two numbers." in await ask("call", "gateway_describe_tool", "name=good_add")


@pytest.mark.skipif(not MODERN, reason="FastMCP 3.4 knows no clients of 2026-07-28")
async def test_what_a_client_without_a_session_has_added_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no address of its own."""
    async with (
        shop(tmp_path, monkeypatch, dynamic_allow=["pypi:mcp-server-*"]) as gateway,
        gateway.client("bob", LATEST) as bob,
    ):
        name, url = called(await add(bob, "echo")), gateway.served.url
        words = ("call", f"{name}_add", "a=2", "b=40", "--gateway", url)
        assert await anyio.to_thread.run_sync(lambda: quiet(tmp_path, *words, APOLLOS_TOKEN=token("bob"))) == "42"
        hidden = await anyio.to_thread.run_sync(lambda: run(tmp_path, *words, APOLLOS_TOKEN=token("ada")))
        assert hidden.returncode == 1 and f"there is no server '{name}'" in hidden.stderr


@pytest.mark.core
async def test_why_a_server_of_a_gateway_that_runs_shows_nothing_is_told(tmp_path: Path, two: str) -> None:
    async with gateway_over_http(two) as served:
        broken = await anyio.to_thread.run_sync(partial(run, tmp_path, "call", "marking_x", "--gateway", served.url))
        assert broken.returncode == 1 and "server 'marking'" in broken.stderr and "Traceback" not in broken.stderr


async def test_a_gateway_that_runs_is_asked_as_the_tokens_user(folder: Path) -> None:
    toml = servers_toml({"mine": in_process("everything.py", required_roles=["engineer"])})
    async with gateway_over_http(toml, auth=tokens()) as served:

        def ask(user: str) -> subprocess.CompletedProcess[str]:
            return run(folder, "tools", "--json", "--gateway", served.url, APOLLOS_TOKEN=token(user))

        assert "mine_echo" in (await anyio.to_thread.run_sync(ask, "ada")).stdout
        assert json.loads((await anyio.to_thread.run_sync(ask, "bob")).stdout) == []
        empty = await anyio.to_thread.run_sync(
            lambda: run(folder, "tools", "--gateway", served.url, APOLLOS_TOKEN=token("bob"))
        )
        assert empty.returncode == 1 and "Servers may still be starting" in empty.stderr


@pytest.mark.core
async def test_who_asks_again_waits_for_no_server(tmp_path: Path) -> None:
    """A server that stays whatever it is told, as one in the middle of its start may."""
    mark = tmp_path / "mark"
    code = f"""import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open({str(mark)!r}, "w").write(f"{{os.getpid()}}\\n")
time.sleep(600)"""
    slow = {"command": sys.executable, "args": ["-c", code], "timeouts": {"shutdown": 100}}
    (tmp_path / "servers.toml").write_text(servers_toml({"slow": slow}))
    command = [sys.executable, str(ROOT / "server.py"), "call", "slow_x"]
    places = {"APOLLOS_SERVERS": str(tmp_path / "servers.toml"), "APOLLOS_STATE_DIR": str(tmp_path / "state")}
    async with await anyio.open_process(command, stderr=subprocess.DEVNULL, env=os.environ | places) as process:

        def is_gone() -> bool:
            if process.returncode is None:
                process.send_signal(signal.SIGINT)
            return process.returncode is not None

        await eventually(lambda: mark.exists() and mark.read_text().endswith("\n"), within=30)
        await eventually(is_gone, within=30)
        assert process.returncode == 128 + signal.SIGINT
    await eventually(lambda: not is_running(int(mark.read_text())), within=30)


@pytest.mark.core
@pytest.mark.parametrize("words", [["tools"], ["call", "mine_echo", "text=x"], ["tools", "--server", "mine"]], ids=str)
async def test_a_gateway_that_lets_nobody_in_says_what_it_wants(folder: Path, words: list[str]) -> None:
    async with gateway_over_http(servers_toml({"mine": in_process("everything.py")}), auth=tokens()) as served:

        async def told(**environ: str) -> str:
            done = await anyio.to_thread.run_sync(lambda: run(folder, *words, "--gateway", served.url, **environ))
            assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
            return done.stderr

        without, wrong = await told(), await told(APOLLOS_TOKEN="wrong-one")
        assert "wants a token. Put yours into APOLLOS_TOKEN" in without and "--token-file" in without
        assert "does not take this token" in wrong and "--token-file" in wrong and "wrong-one" not in wrong
        assert "Does it run?" not in without + wrong


@pytest.mark.parametrize(("status", "text"), [(403, "does not let this token in (403)"), (404, "Is it a gateway")])
async def test_what_else_answers_there_is_told(folder: Path, status: int, text: str) -> None:
    async with serving(Site()) as site:
        site.status, url = status, site.url.rpartition("/")[0]
        done = await anyio.to_thread.run_sync(lambda: run(folder, "tools", "--gateway", url))
    assert done.returncode == 1 and text in done.stderr and "Traceback" not in done.stderr


def test_a_gateway_that_cannot_be_asked_is_told_in_a_line(folder: Path) -> None:
    for command in (["tools"], ["call", "one_echo", "text=x"]):
        away = run(folder, *command, "--gateway", "http://127.0.0.1:1/mcp")
        assert away.returncode == 1 and "the gateway at http://127.0.0.1:1 cannot be reached" in away.stderr
        wrong = run(folder, *command, "--gateway", "somewhere")
        assert wrong.returncode == 2 and "--gateway" in wrong.stderr
        lost = run(folder, *command, "--gateway", "http://127.0.0.1:1", "--token-file", str(folder / "none"))
        assert lost.returncode == 2 and "--token-file" in lost.stderr
        assert "Traceback" not in away.stderr + wrong.stderr + lost.stderr
