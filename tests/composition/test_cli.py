"""The command line as a person uses it: what it prints where, its exit codes, and what it says to each mistake."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from composition.cli import build_parser
from composition.gateway import VERSION
from composition.starting import servers_path
from providers.lines import MODERN
from tests.helpers.ports import dead_port

pytestmark = pytest.mark.core

ROOT = Path(__file__).parent.parent.parent
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "by hand", "version": "1"},
    },
}
GOOD = '[servers.notes]\npython = "{root}/examples/notes.py:mcp"\n'


def run(
    *arguments: str, servers: str | Path | None = None, stdin: str = "", **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run `server.py`; `servers` is the text or the path of its servers.toml."""
    more = {"APOLLOS_SERVERS": str(servers)} if servers is not None else {}
    return subprocess.run(
        [sys.executable, str(ROOT / "server.py"), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **more, **environ},
        check=False,
    )


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "servers.toml"
    path.write_text(GOOD.format(root=ROOT))
    return path


def test_help_names_every_command() -> None:
    said = run("--help")
    assert said.returncode == 0
    assert all(command in said.stdout for command in ("serve", "check", "config", "APOLLOS_SERVERS"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["serve", "--port", "99999"], "'99999' is not a port; use a number from 0 to 65535"),
        (["serve", "--port", "http"], "'http' is not a port"),
        (["serve", "--prot", "1"], "unrecognized arguments: --prot"),
        (["config"], "HOST"),
        (["config", "netscape"], "invalid choice: 'netscape' (choose from"),
        (["--log-level", "loud", "check"], "invalid choice: 'loud'"),
        (["check", "time"], "unrecognized arguments: time\n"),
        (["add", "time", "--command", "uvx", "its-own"], "arguments: its-own. Are they the server's own? Put --"),
    ],
)
def test_a_wrong_word_is_answered_with_what_is_allowed(arguments: list[str], words: str, good: Path) -> None:
    said = run(*arguments, servers=good)
    assert said.returncode == 2 and said.stdout == ""
    assert words in said.stderr.replace("choose from claude-desktop", "choose from 'claude-desktop'")


@pytest.mark.parametrize("command", [[], ["serve", "--port", "0"], ["check"]], ids=["stdio", "serve", "check"])
def test_a_wrong_file_ends_it_with_everything_that_is_wrong(command: list[str], tmp_path: Path) -> None:
    path = tmp_path / "servers.toml"
    path.write_text('[servers.One]\ncommand = "x"\n\n[servers.two]\ncomand = "y"\n')
    said = run(*command, servers=path)
    assert said.returncode == 2 and said.stdout == ""
    assert "servers.toml:1: " in said.stderr and "servers.toml:5: " in said.stderr
    assert "Did you mean 'command'?" in said.stderr and "Traceback" not in said.stderr


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    said = run("check", servers=tmp_path / "none.toml")
    assert said.returncode == 2
    assert "no such file. Write one, or set APOLLOS_SERVERS" in said.stderr


def test_a_public_address_without_authentication_is_refused(good: Path) -> None:
    said = run("serve", "--host", "0.0.0.0", "--port", "0", servers=good)
    assert said.returncode == 2 and "without authentication" in said.stderr


def test_a_taken_port_is_named(good: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = run("serve", "--port", str(taken.getsockname()[1]), servers=good)
    assert said.returncode == 2
    assert "cannot listen on 127.0.0.1 port" in said.stderr and "--port" in said.stderr


def test_check_prints_a_row_for_each_server_and_succeeds_if_all_answer(good: Path) -> None:
    good.write_text(good.read_text() + '[servers.off]\ncommand = "x"\nis_enabled = false\n')
    said = run("check", servers=good)
    rows = [line.split() for line in said.stdout.splitlines()]
    assert rows[0] == ["NAME", "TRANSPORT", "STATE", "TOOLS", "MS", "ERROR"]
    assert rows[1][:3] == ["off", "stdio", "disabled"]
    assert rows[2][:4] == ["notes", "python", "ok", "3"]
    assert said.returncode == 0 and "\033" not in said.stdout


def test_check_fails_if_one_server_fails_and_says_why(good: Path) -> None:
    with dead_port() as port:
        good.write_text(good.read_text() + f'[servers.gone]\nurl = "http://127.0.0.1:{port}/mcp"\n')
        said = run("check", servers=good)
    assert said.returncode == 1
    assert re.search(r"^gone +streamable_http +failed .*refused", said.stdout, re.MULTILINE)
    assert re.search(r"^notes +python +ok", said.stdout, re.MULTILINE)


def test_a_file_without_containers_has_none_to_name(good: Path) -> None:
    said = run("logs", "notes", servers=good)
    assert said.returncode == 2 and said.stderr.endswith("It has none\n")


def test_it_says_its_version() -> None:
    assert run("--version").stdout == f"Apollos MCP Gateway {VERSION}\n"


@pytest.mark.parametrize("command", [["list"], ["check"], ["export"], ["tools", "--cost"], ["--help"]])
@pytest.mark.parametrize("is_buffered", [True, False])
def test_a_reader_who_goes_early_is_told_nothing(command: list[str], is_buffered: bool, good: Path) -> None:
    """As in `list | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, str(ROOT / "server.py"), *command],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env={**os.environ, "APOLLOS_SERVERS": str(good), "PYTHONUNBUFFERED": "" if is_buffered else "1"},
        check=False,
    )
    os.close(writing)
    assert "Traceback" not in ended.stderr and "BrokenPipe" not in ended.stderr


def test_ctrl_c_while_the_modules_are_read_ends_it_without_a_word(tmp_path: Path, good: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'composition.starting':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    said = run("list", servers=good, PYTHONPATH=str(tmp_path))
    assert (said.returncode, said.stdout, said.stderr) == (-signal.SIGINT, "", "")


def test_over_stdio_nothing_but_mcp_goes_to_stdout(good: Path) -> None:
    listing = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
    ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    lines = "".join(json.dumps(each) + "\n" for each in (INITIALIZE, ready))
    with subprocess.Popen(
        [sys.executable, str(ROOT / "server.py"), "--log-level", "debug"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "APOLLOS_SERVERS": str(good)},
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(lines)
        process.stdin.flush()
        first = json.loads(process.stdout.readline())
        process.stdin.write(json.dumps(listing) + "\n")
        process.stdin.flush()
        answers = [json.loads(process.stdout.readline())]
        process.stdin.close()
        answers += [json.loads(line) for line in process.stdout]
        assert process.wait(timeout=20) == 0
    assert not MODERN or "- notes: " in first["result"]["instructions"]  # 3.4 sends none
    tools = next(answer["result"]["tools"] for answer in answers if answer.get("id") == 2)
    assert {tool["name"] for tool in tools} == {"notes_write", "notes_read", "notes_titles"}


def test_the_printed_entry_starts_this_gateway(good: Path) -> None:
    said = run("config", "claude-desktop", servers=good)
    assert said.returncode == 0 and "claude_desktop_config.json" in said.stderr
    entry = json.loads(said.stdout)["mcpServers"]["apollos"]
    assert Path(entry["command"]).is_absolute() and entry["env"] == {"APOLLOS_SERVERS": str(good)}
    assert "server.py" in entry["args"][-1]


def test_the_file_beside_server_py_is_used_unless_another_is_named() -> None:
    assert servers_path({}) == ROOT / "servers.toml"
    assert servers_path({"APOLLOS_SERVERS": "/elsewhere/my.toml"}) == Path("/elsewhere/my.toml")


def test_without_a_command_it_speaks_stdio() -> None:
    assert build_parser().parse_args([]).command is None
