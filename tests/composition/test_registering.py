"""The commands for servers as a person uses them: what they ask for, what they print, where secrets go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from composition import registering
from composition.cli import parse
from composition.gateway_address import address_of
from providers.errors import ConfigurationError
from tests.helpers.fake_api import TOKEN, FakeApi, fake_api, problem
from tests.helpers.ports import dead_port

pytestmark = pytest.mark.core

ROOT = Path(__file__).parent.parent.parent
SECRET = "s3cret-value"


def fields(*arguments: str) -> dict[str, Any]:
    """What was given of what `add` asks for."""
    found = registering.fields_of(parse(["add", *arguments]))
    return {key: value for key, value in found.items() if value not in (None, (), {})}


# ------------------------------------------------------------------------------------------------------- what is asked


def test_a_local_server_has_its_arguments_behind_two_dashes() -> None:
    assert fields(
        "time", "--command", "uvx", "--role", "a", "--role", "b", "--", "mcp-server-time", "--json", "--"
    ) == {
        "name": "time",
        "command": "uvx",
        "args": ("mcp-server-time", "--json", "--"),
        "required_roles": ("a", "b"),
    }


def test_a_remote_server_and_a_container() -> None:
    said = fields("docs", "--url", "https://x.example", "--header", "X-Key=a=b", "--description", "Docs", "--disabled")
    assert said == {
        "name": "docs",
        "url": "https://x.example",
        "headers": {"X-Key": "a=b"},
        "description": "Docs",
        "is_enabled": False,
    }
    image = fields("box", "--image", "mcp/x:1", "--port", "8000/tcp", "--isolation", "user", "--transport", "sse")
    assert image == {
        "name": "box",
        "docker_image": "mcp/x:1",
        "docker_ports": ("8000/tcp",),
        "isolation": "user",
        "transport_type": "sse",
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["add", "x"],
        ["add", "x", "--url", "https://x", "--command", "y"],
        ["add", "--command", "y"],
        ["add", "x", "--command", "y", "z"],
        ["list", "--", "x"],
        ["show"],
        ["add", "x", "--command", "y", "--isolation", "none"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(arguments)
    assert end.value.code == 2 and "usage" in capsys.readouterr().err


def test_a_remote_server_takes_no_arguments() -> None:
    with pytest.raises(ConfigurationError, match="takes no arguments"):
        fields("x", "--url", "https://x.example", "--", "y")


def test_a_command_is_the_program_alone_as_in_servers_toml() -> None:
    with pytest.raises(ConfigurationError, match=r"must be the program alone\. Write what follows it behind --"):
        fields("t", "--command", f"{sys.executable} {SECRET}")
    assert fields("t", "--command", "not-there with words")["command"] == "not-there with words"


def test_values_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCS_KEY", SECRET)
    monkeypatch.setenv("X_API_KEY", "other")
    said = fields("x", "--image", "i", "--env", "DOCS_KEY", "--env", "LEVEL=", "--header", "X-Api-Key")
    assert said["env"] == {"DOCS_KEY": SECRET, "LEVEL": ""} and said["headers"] == {"X-Api-Key": "other"}


@pytest.mark.parametrize(
    ("given", "text"),
    [(["NOT_SET_HERE"], "NOT_SET_HERE is not set"), (["A=1", "A=2"], "stands twice"), (["A=-"], "stdin ended")],
)
def test_a_value_that_is_missing_is_named(given: list[str], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: PTH123, SIM115 - closed with the patch
    with sys.stdin, pytest.raises(ConfigurationError, match=text):
        registering.pairs("--env", given, lambda name: name)


def test_a_header_written_as_for_curl_is_refused_without_being_repeated() -> None:
    with pytest.raises(ConfigurationError, match="Write NAME=VALUE") as refusal:
        registering.pairs("--header", [f"Authorization: Bearer {SECRET}=="], str)
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/mcp", "http://h:1/mcp/"])
def test_a_gateway_is_named_by_the_address_that_clients_use_too(url: str) -> None:
    assert address_of(url) == "http://h:1"


@pytest.mark.parametrize(
    "url", ["h:1", "ftp://h", "http://", "http://h:99999", f"http://me:{SECRET}@h", "http://h/?a=b"]
)
def test_an_address_that_is_none_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        address_of(url)
    assert SECRET not in str(refusal.value)


# ---------------------------------------------------------------------------------------------------------- as it runs


async def run(*arguments: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `server.py`."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("APOLLOS_")}
    done = await anyio.run_process(
        [sys.executable, str(ROOT / "server.py"), *arguments], input=stdin.encode(), check=False, env={**own, **environ}
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with fake_api() as running:
        running.adapters["files"] = {"name": "files", "command": "x", "source": "servers.toml", "version": 1}
        yield running


async def test_a_server_is_added_shown_switched_and_removed_at_a_running_gateway(api: FakeApi) -> None:
    known = {"APOLLOS_GATEWAY": f"{api.url}/mcp", "APOLLOS_TOKEN": TOKEN}
    words = ("add", "time", "--image", "mcp/time:1", "--env", "KEY=-", "--env", "LEVEL", "--", "--utc")
    added = await run(*words, stdin=f"{SECRET}\n", LEVEL="info", **known)
    assert (added.returncode, added.stdout) == (0, "added time\n"), added.stderr
    assert api.sent == [
        {
            "name": "time",
            "imageName": "mcp/time",
            "imageVersion": "1",
            "args": ["--utc"],
            "environmentVariables": {"KEY": SECRET, "LEVEL": "info"},
        }
    ]
    off = await run("disable", "time", **known)
    assert (off.returncode, off.stdout) == (0, "disabled time\n")
    assert api.asked[-1] == ("PATCH", "/adapters/time", "application/merge-patch+json", '"1"')
    listed = await run("list", **known)
    assert [line.split() for line in listed.stdout.splitlines()] == [
        ["NAME", "TRANSPORT", "ENABLED", "ROLES", "SOURCE", "REACHED", "BY"],
        ["files", "-", "yes", "-", "servers.toml", "x"],
        ["time", "-", "no", "-", "api", "mcp/time:1"],
    ]
    shown = await run("show", "time", "--json", **known)
    assert json.loads(shown.stdout) == api.adapters["time"]
    gone = await run("remove", "time", **known)
    assert (gone.returncode, list(api.adapters)) == (0, ["files"])


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["add", "files", "--command", "x"], 1, "This name is taken."),
        (["add", "x", "--url", "no"], 2, "url: must begin with http://"),
        (["show", "nothing"], 1, "there is no server 'nothing'"),
        (["remove", "files"], 1, "stands in servers.toml"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
async def test_a_refusal_is_told_in_words(api: FakeApi, arguments: list[str], code: int, text: str) -> None:
    done = await run(*arguments, "--gateway", api.url, APOLLOS_TOKEN=TOKEN)
    assert (done.returncode, done.stdout) == (code, "") and text in done.stderr


async def test_what_is_not_this_users_to_set_is_told_itself(api: FakeApi) -> None:
    api.refusal = problem(403, "… 'errors' lists them.", [{"key": "command", "text": "is for operators"}])
    done = await run("add", "x", "--command", "y", "--gateway", api.url, APOLLOS_TOKEN=TOKEN)
    assert (done.returncode, done.stderr) == (1, "the gateway refused this:\ncommand: is for operators\n")


async def test_who_was_faster_is_not_overwritten(api: FakeApi) -> None:
    api.is_overtaken = True
    done = await run("enable", "files", "--gateway", api.url, APOLLOS_TOKEN=TOKEN)
    assert done.returncode == 1 and "changed since you read it" in done.stderr


async def test_a_token_comes_from_a_file_and_is_never_said(api: FakeApi, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert (await run("list", "--gateway", api.url, "--token-file", str(file))).returncode == 0
    file.write_text(SECRET)
    wrong = await run("list", "--gateway", api.url, "--token-file", str(file))
    assert wrong.returncode == 1 and "does not take this token" in wrong.stderr and SECRET not in wrong.stderr
    file.write_text(f"{SECRET} and more")
    broken = await run("list", "--gateway", api.url, "--token-file", str(file))
    assert broken.returncode == 2 and SECRET not in broken.stderr
    missing = await run("list", "--gateway", api.url, "--token-file", str(tmp_path / "none"))
    assert missing.returncode == 2 and "cannot be read" in missing.stderr


async def test_what_a_gateway_says_cannot_command_a_terminal(api: FakeApi) -> None:
    api.adapters["evil"] = {"name": "evil", "description": "a\x1b]0;b\x07\r\nNAME", "source": "api", "version": 1}
    for words in (("list",), ("show", "evil"), ("show", "evil", "--json")):
        done = await run(*words, "--gateway", api.url, APOLLOS_TOKEN=TOKEN)
        assert done.returncode == 0 and "\x1b" not in done.stdout and "\r" not in done.stdout


async def test_a_gateway_that_is_not_there() -> None:
    with dead_port() as port:
        done = await run("list", "--gateway", f"http://127.0.0.1:{port}")
    assert done.returncode == 1 and "Does it run?" in done.stderr


async def test_without_a_gateway_servers_of_the_file_are_shown_and_the_rest_needs_a_store(tmp_path: Path) -> None:
    path = tmp_path / "servers.toml"
    path.write_text(
        f'[gateway]\nstore = "memory://"\n[servers.time]\ncommand = "{sys.executable}"\nenv = {{ A = "{SECRET}" }}'
    )
    known = {"APOLLOS_SERVERS": str(path)}
    listed = await run("list", "--json", **known)
    (shown,) = json.loads(listed.stdout)
    assert shown["source"] == "servers.toml" and SECRET not in listed.stdout
    assert datetime.fromisoformat(shown["createdAt"]).timestamp() == pytest.approx(path.stat().st_mtime, abs=0.001)
    page = (await run("show", "time", **known)).stdout.splitlines()
    assert page and not [line for line in page if line.startswith("version")]
    removed = await run("remove", "time", **known)
    assert removed.returncode == 1 and "Edit that file" in removed.stderr
    added = await run("add", "x", "--command", "y", **known)
    assert added.returncode == 2 and "--gateway" in added.stderr
