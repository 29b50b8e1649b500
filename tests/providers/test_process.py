"""A local process: how it is started, what it sees of us, what is heard of it."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from providers.errors import BackendProtocolError, BackendUnavailable
from providers.process import LineSplitter, child_environment
from providers.resource import McpServerResource
from tests.helpers.processes import eventually
from tests.helpers.raw import failure_of, opened, request, script


def test_a_line_is_split_at_its_newline_and_capped() -> None:
    lines = LineSplitter(4, BackendProtocolError("raw", "too long"))
    assert list(lines.feed(b"ab")) == []
    assert list(lines.feed(b"cd\n\nefgh\ni")) == [b"abcd", b"", b"efgh"]
    assert list(lines.feed(b"jkl\n")) == [b"ijkl"]
    with pytest.raises(BackendProtocolError, match="too long"):
        list(lines.feed(b"mnopq"))


def test_a_line_that_may_be_cut_is_cut() -> None:
    lines = LineSplitter(4)
    assert list(lines.feed(b"abc")) == []
    assert list(lines.feed(b"defg")) == []
    assert list(lines.feed(b"hij\nk\n")) == [b"abcd", b"k"]


@pytest.mark.parametrize(
    ("resource", "problem"),
    [
        ({"command": "no-such-command"}, "command 'no-such-command' was not found. Install it or correct 'command'."),
        ({"command": "cat -n"}, "command 'cat -n' was not found. Install it or correct 'command'. What stands behind"),
        (
            {"command": "{tmp}/not-executable"},
            "no permission to run command '{tmp}/not-executable'. Make it executable",
        ),
        ({"command": "{tmp}"}, "no permission to run command '{tmp}'."),
        ({"command": "{tmp}/no-format"}, "command '{tmp}/no-format' failed (Exec format error). Correct 'command'"),
        ({"command": "cat", "cwd": "{tmp}/nowhere"}, "the directory '{tmp}/nowhere' was not found. Create it"),
        ({"command": "cat", "cwd": "{tmp}/no-format"}, "the directory '{tmp}/no-format' was not found. Create it"),
        ({"command": "cat", "args": ["\ud83d"]}, "surrogates not allowed). Correct 'command', 'args' or 'env'."),
        ({"command": "cat", "args": ["x" * 3_000_000]}, "failed (Argument list too long)."),
    ],
)
async def test_what_cannot_start_says_why_and_what_to_do(
    tmp_path: Path, resource: dict[str, Any], problem: str
) -> None:
    (tmp_path / "not-executable").write_text("")
    (tmp_path / "no-format").write_bytes(b"\x7fELF rubbish")
    (tmp_path / "no-format").chmod(0o755)
    given = {
        key: value.replace("{tmp}", str(tmp_path)) if isinstance(value, str) else value
        for key, value in resource.items()
    }
    with pytest.raises(BackendUnavailable) as caught:
        async with opened(McpServerResource(name="raw", **given)):
            pytest.fail("it started")
    assert str(caught.value).startswith("server 'raw': cannot start: ")
    assert problem.replace("{tmp}", str(tmp_path)) in str(caught.value)
    assert caught.value.not_sent


async def test_arguments_and_directory_reach_the_process_as_they_are(tmp_path: Path) -> None:
    arguments = ("two words", "$HOME", ";", "*", "")
    async with opened(script("raw_echo.py", *arguments, cwd=str(tmp_path))) as (wire, inbox):
        await wire.send(request("where"), {})
        where = (await inbox.next())["result"]
    assert where["args"] == list(arguments)
    assert where["cwd"] == str(anyio.Path(await anyio.Path(tmp_path).resolve()))


async def test_a_process_that_ends_at_once_is_quoted(tmp_path: Path) -> None:
    last = tmp_path / "last.py"
    last.write_text(
        "import sys\n"
        "print('x' * 5000, file=sys.stderr)\n"
        "sys.exit('\\x1b[31mno configuration\\x1b[0m\\x07: bad key s3cret-value')\n"
    )
    resource = McpServerResource(name="raw", command=sys.executable, args=(str(last),), env={"API_KEY": "s3cret-value"})
    async with opened(resource) as (wire, _):
        reason = await failure_of(wire)
    assert reason.startswith("server 'raw': the process ended before answering (exit code 1); its last words: …xxx")
    assert reason.endswith("no configuration: bad key [API_KEY]")
    assert len(reason) < 400


async def test_a_process_that_ends_in_silence_is_told_of_too() -> None:
    async with opened(McpServerResource(name="raw", command="true")) as (wire, _):
        assert "ended before answering (exit code 0); it said nothing" in await failure_of(wire)


async def test_stderr_is_logged_line_by_line_escaped_cut_and_masked(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "apollos.server.raw")
    env = {"TOKEN": "abcdefgh-1", "LONGER": "abcdefgh-12345", "SHORT": "info"}
    async with opened(script("raw_echo.py", env=env)) as (wire, inbox):
        texts = ["info: a\rb\x1b[2J\u202e", "", "z" * 10_000, "abcdefgh-12345 abcdefgh-1", "end"]
        await wire.send(request("say", {"text": "\n".join(texts)}), {})
        await inbox.next()
        logged = [record for record in caplog.records if record.name == "apollos.server.raw"]
        await eventually(lambda: caplog.messages[-1] == "end")
        logged = [record.getMessage() for record in caplog.records if record.name == "apollos.server.raw"]
    assert logged == ["info: a\\rb\\x1b[2J\\u202e", "z" * 4096, "[LONGER] [TOKEN]", "end"]


async def test_a_process_sees_its_own_environment_and_little_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    kept_back = {"APOLLOS_SECRET": "1", "AWS_SECRET_ACCESS_KEY": "2", "UV_PUBLISH_TOKEN": "3", "PYTHONPATH": "4"}
    passed_on = {"UV_CACHE_DIR": "a", "npm_config_cache": "b", "https_proxy": "c", "LC_TIME": "C", "XDG_X": "d"}
    for name, value in {**kept_back, **passed_on}.items():
        monkeypatch.setenv(name, value)
    async with opened(script("raw_echo.py", env={"OWN": "mine", "HOME": "/elsewhere"})) as (wire, inbox):
        await wire.send(request("environment"), {})
        seen = (await inbox.next())["result"]
    assert not seen.keys() & kept_back.keys()
    assert seen.items() >= {**passed_on, "OWN": "mine", "HOME": "/elsewhere", "PATH": os.environ["PATH"]}.items()


def test_nothing_unexpected_is_inherited() -> None:
    environ = dict.fromkeys(["PATH", "HOME", "GITHUB_TOKEN", "UV_PROJECT_ENVIRONMENT", "APOLLOS_STORE"], "x")
    assert child_environment(script("raw_echo.py"), environ) == {"PATH": "x", "HOME": "x"}
