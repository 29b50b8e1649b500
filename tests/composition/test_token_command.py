"""`server.py token`: a token is printed once, listed without itself, and revoked; no command line holds one."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import anyio
import pytest

from composition.cli import main
from providers.tokens import TokenFile
from tests.composition.test_auth import status
from tests.helpers.gateway import gateway_process, servers_toml

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[2]
TOKENS = '[gateway.auth]\ntokens = "tokens.json"\n'


def process_at(pid: int) -> str:
    """What everybody on the machine sees of a process."""
    return Path(f"/proc/{pid}/cmdline").read_text()


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "servers.toml"
    file.write_text(TOKENS)
    monkeypatch.setenv("APOLLOS_SERVERS", str(file))
    return file


def test_a_token_is_made_shown_and_revoked(servers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "add", "ann", "--name", "Ann Lee", "--role", "dev", "--role", "ops", "--expires", "90d"]) == 0
    printed = capsys.readouterr()
    token = printed.out.strip()
    assert re.fullmatch(r"apo_[\w-]{43}", token) and printed.out == f"{token}\n"
    [made] = TokenFile(servers.with_name("tokens.json")).read()
    assert (
        f"Token {made.id} of user 'ann' with the roles dev, ops, until 20" in printed.err and token not in printed.err
    )

    assert main(["token", "add", "bob"]) == 0
    assert "with no roles, without an end" in capsys.readouterr().err
    assert main(["token", "list"]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["ID", "USER", "NAME", "ROLES", "CREATED", "EXPIRES"]
    assert first.split()[:5] == [made.id, "ann", "Ann", "Lee", "dev,ops"] and second.endswith("never")
    assert token not in first and made.sha256 not in first

    assert main(["token", "revoke", made.id]) == 0
    assert "'ann' is revoked" in capsys.readouterr().err
    assert main(["token", "revoke", made.id]) == 1
    assert "There is no token" in capsys.readouterr().err
    assert [left.user for left in TokenFile(servers.with_name("tokens.json")).read()] == ["bob"]


@pytest.mark.parametrize("time", ["90", "0d", "-1d", "d", "1y", "9999999w", "1.5h", "9" * 5000 + "d"])
def test_a_time_that_is_none_is_refused(servers: Path, time: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["token", "add", "ann", f"--expires={time}"])
    assert "write for example 12h, 90d or 52w" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["add", "a,b"], ["add", "ann", "--role", "x,mcp.admin"], ["add", ""]])
def test_what_cannot_be_a_user_is_refused(
    servers: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["token", *arguments]) == 2
    assert "A user or a role" in capsys.readouterr().err


def test_without_a_file_of_tokens_it_is_told_how_to_name_one(servers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    servers.write_text("")
    assert main(["token", "list"]) == 2
    assert "[gateway.auth]" in capsys.readouterr().err
    servers.write_text(TOKENS)
    assert main(["token", "list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


async def test_a_gateway_that_serves_takes_the_tokens_of_the_command() -> None:
    """And nothing that anybody may see, a command line or a log, holds one."""
    async with gateway_process(servers_toml({}, auth={"tokens": "tokens.json"}), "--log-level", "debug") as gateway:
        assert await status(gateway.url) == 401
        command = [sys.executable, str(ROOT / "server.py"), "token", "add", "ann", "--role", "dev"]
        made = await anyio.run_process(command, env={**os.environ, "APOLLOS_SERVERS": str(gateway.path)})
        token = made.stdout.decode().strip()
        assert await status(gateway.url, token) == 200
        assert await status(gateway.url, token[:-1] + "!") == 401
        said = (
            gateway.log.read_text()
            + made.stderr.decode()
            + process_at(gateway.pid)
            + gateway.path.with_name("tokens.json").read_text()
        )
        assert token not in said and token[4:-1] not in said
        [known] = TokenFile(gateway.path.with_name("tokens.json")).read()
        TokenFile(gateway.path.with_name("tokens.json")).revoke(known.id)
        assert await status(gateway.url, token) == 401
