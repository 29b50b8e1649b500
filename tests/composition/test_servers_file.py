"""servers.toml: what it becomes, every mistake that can be made in it, and how its changes are followed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest
from anyio.streams.memory import MemoryObjectReceiveStream

from composition import servers_file
from composition.servers_file import MAX_FILE_BYTES, Configuration, load_configuration, watch_configuration
from composition.settings import Settings
from providers.errors import ConfigurationError
from providers.resource import Isolation, Timeouts


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "servers.toml"


def load(file: Path, text: str, environ: Mapping[str, str] | None = None) -> Configuration:
    file.write_text(text, "utf-8")
    return load_configuration(file, environ or {})


def problems(file: Path, text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    """All that is wrong, without the file's folder."""
    with pytest.raises(ConfigurationError) as caught:
        load(file, text, environ)
    return [problem.replace(f"{file.parent}/", "") for problem in caught.value.problems]


def test_a_file_becomes_settings_and_resources(file: Path) -> None:
    (file.parent / "tools").mkdir()
    (file.parent / "tools" / "clock.py").touch()
    configuration = load(
        file,
        """
        [gateway]
        name = "Team tools"
        timeouts = { call = 120, list = 1 }

        [servers.time]
        command = "uvx"
        args = ["mcp-server-time"]
        env = { LOG = "info" }
        cwd = "work"
        timeouts = { list = 3 }

        [servers.docs]
        url = "https://docs.example.com/mcp"
        headers = { X-Api-Key = "k" }
        required_roles = ["engineer"]
        isolation = "user"
        is_enabled = false
        tools = { include = ["a"], rename = { a = "b" }, description = { a = "text" } }

        [servers.old]
        transport_type = "sse"
        url = "https://old.example.com/sse"

        [servers.clock]
        python = "tools/clock.py:mcp"
        """,
    )
    found = configuration.resources
    assert configuration.settings == Settings(name="Team tools", timeouts=Timeouts(call=120, list=1))
    assert configuration.path == file
    assert list(found) == ["time", "docs", "old", "clock"]
    assert [resource.transport_type for resource in found.values()] == ["stdio", "streamable_http", "sse", "python"]
    assert {resource.created_by for resource in found.values()} == {"servers.toml"}
    assert found["time"].args == ("mcp-server-time",)
    assert found["time"].cwd == str(file.parent / "work")
    assert found["time"].timeouts == Timeouts(call=120, list=3)
    assert found["docs"].timeouts == Timeouts(call=120, list=1)
    assert found["docs"].isolation is Isolation.USER
    assert not found["docs"].is_enabled
    assert found["docs"].tools.public_name("a") == "b"
    assert found["clock"].python == f"{file.parent}/tools/clock.py:mcp"


@pytest.mark.parametrize("text", ["", "# nothing\n", "\ufeff", "[servers]\n", "[gateway]\n", "\ufeff[servers]\r\n"])
def test_a_file_without_servers_is_fine(file: Path, text: str) -> None:
    assert load(file, text).resources == {}


def test_the_same_may_be_written_in_every_way_of_toml(file: Path) -> None:
    texts = (
        '[servers.x]\ncommand = "c"\nenv.A = "1"\n',
        'servers.x.command = "c"\nservers.x.env.A = "1"\n',
        'servers = { x = { command = "c", env = { A = "1" } } }\n',
        "[servers]\n[servers.x]\ncommand = '''c'''\n[servers.x.env]\n\"A\" = '1'\n",
    )
    first, *others = (load(file, text).resources["x"] for text in texts)
    assert all(first.same_offer(other) for other in others)


# ------------------------------------------------------------------------------------------------------ mistakes
# A text, and what is told about it: parts of the message, with ' … ' between them.

TOP_LEVEL = [
    ("servers = 3", ":1: [servers] must be a table: write [servers.NAME], in single brackets"),
    ('[[servers]]\ncommand = "c"', ":1: [servers] must be a table: write [servers.NAME]"),
    ("\ngateway = 3", ":2: [gateway] must be a table: write [gateway]"),
    ('#\n[server.x]\ncommand = "c"', ":2: [server.x] is unknown. Did you mean [servers.x]? Allowed:"),
    ('[mcpServers.x]\ncommand = "c"', ":1: [mcpServers.x] is unknown. Did you mean [servers.x]?"),
    ('[gatway]\nname = "x"', ":1: [gatway] is unknown. Did you mean [gateway]? Allowed: [gateway] and"),
    ("a." * 1000 + "a = 1", ":1: [a.a] is unknown. Allowed: [gateway] and [servers.NAME]"),
    (f"[{'a.' * 1000}a]", ":1: [a.a] is unknown. Allowed: [gateway] and [servers.NAME]"),
    (f"a = {'{a=' * 100}1{'}' * 100}", ":1: [a.a] is unknown. Allowed: [gateway] and [servers.NAME]"),
    ("[zzz]", ":1: [zzz] is unknown. Allowed: [gateway] and [servers.NAME]"),
    ('command = "c"', ":1: key 'command' is in no table. Write it under [gateway] or [servers.NAME]"),
    ('[servers]\ncommand = "c"', ":2: [servers] key 'command' belongs to one server. Write [servers."),
    ('[servers]\nx = "c"', ":2: [servers] key 'x' must be a table. Write [servers.x] and under it"),
    ('[[servers.x]]\ncommand="c"', ":1: [servers] key 'x' must be a table. Write [servers.x] in single"),
    ('[servers.My_S]\ncommand = "c"', ":1: [servers.My_S] is not a server name; use lower-case letters"),
    ('[servers."a b"]\ncommand = "c"', ':1: [servers."a b"] is not a server name'),
    ('[servers."a\\nb"]\ncommand = "c"', ':1: [servers."a\\nb"] is not a server name'),
    (f'[servers.{"a" * 64}]\ncommand = "c"', ":1: [servers.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
]

SERVER = [  # each stands under [servers.x] on line 1
    ("", ":1: [servers.x] needs 'command' (a local process), 'url' (a remote server), 'docker_image' (a container)"),
    ('command = "c"\nurl = "https://h"', ":1: [servers.x] has 'command' and 'url'. Keep one of them"),
    ('transport_type = "stdio"\nurl = "https://h"', ":1: [servers.x] has transport_type 'stdio', which needs 'comma"),
    ('url = "https://h"\nargs = ["a"]', "[servers.x] has 'args', of no use to a server that is reached by 'url'"),
    ('command = "c"\nheaders = { A = "b" }', "[servers.x] has 'headers', of no use to a server that is reached by"),
    ('comand = "c"', ":2: [servers.x] key 'comand' is unknown. Did you mean 'command'? Allowed: is_enabled, descrip"),
    ('command = "c"\n\nagrs = []', ":4: [servers.x] key 'agrs' is unknown. Did you mean 'args'?"),
    ('URL = "https://h"', ":2: [servers.x] key 'URL' is unknown. Did you mean 'url'?"),
    ('command = "c"\ntype = "stdio"', "key 'type' is unknown. Did you mean 'transport_type'?"),
    ('command = "c"\ninclude = ["a"]', "key 'include' is unknown. Did you mean 'tools.include'?"),
    ('command = "c"\ncall = 5', "key 'call' is unknown. Did you mean 'timeouts.call'?"),
    ('command = "c"\nsub = { command = "d" }', "key 'sub' is unknown. Allowed:  … a name has no dot, write [servers"),
    ('command = "c"\nname = "y"', ":3: [servers.x] key 'name' is unknown. Allowed: is_enabled"),
    ('command = "c"\ncreated_by = "me"', "key 'created_by' is unknown"),
    ('command = "c"\ncreated_at = 2020-01-01', "key 'created_at' is unknown"),
    ('command = "c"\nversion = 3', "key 'version' is unknown. Allowed"),
    ("command = 3", ":2: [servers.x] key 'command' must be a string; found a number. Write it in quotes"),
    ('command = ""', ":2: [servers.x] key 'command' must not be empty"),
    ('command = "a\\u0000b"', "key 'command' must not hold a NUL character"),
    ('command = "sh -c true"', "key 'command' must be the program alone. Write what follows it in args"),
    ('command = "c"\nargs = "--fast"', "key 'args' must be a list of strings; found a string. For example: args = ["),
    ('command = "c"\nargs = ["a", 3]', "key 'args' item 2 must be a string; found a number. Write it in quotes"),
    ('command = "c"\nargs = [\n["a"]]', ":3: [servers.x] key 'args' item 1 must be a string; found a list"),
    ('command = "c"\nenv = ["A=b"]', "key 'env' must be a table of strings; found a list. For example: env = {"),
    ('command = "c"\nenv = { PORT = 80 }', "key 'env.PORT' must be a string; found a number. Write it in quotes"),
    ('command = "c"\nenv = { "A=B" = "c" }', "key 'env' has a variable whose name is empty or holds '='"),
    ('command = "c"\ncwd = true', "key 'cwd' must be a string; found true or false. Write it in quotes"),
    ('command = "c"\ndescription = 2020-01-01', "key 'description' must be a string; found a date or time"),
    ('command = "c"\nis_enabled = "maybe"', "key 'is_enabled' must be true or false; found a string"),
    ('command = "c"\nrequired_roles = "admin"', "key 'required_roles' must be a list of strings; found a string. Fo"),
    ('command = "c"\nisolation = "Sessions"', "key 'isolation' must be one of session, user, shared, call; found 'S"),
    ('url = "https://h"\ntransport_type = "http"', "found 'http'. Did you mean 'streamable_http'?"),
    ('url = "https://h"\ntransport_type = 3', "must be one of stdio, streamable_http, sse, python"),
    ('url = "h.example.com/mcp"', ":2: [servers.x] key 'url' must begin with http:// or https://, name a"),
    ('url = "http://h:99999/"', "key 'url' must begin with http"),
    ('url = "http://h/a b"', "key 'url' must begin with http:// or https://, name a host and hold no spaces"),
    ('url = "https://h"\nheaders = { "A B" = "c" }', "key 'headers' has the name 'A B'. A header's name has letters"),
    ('url = "https://h"\nheaders = { A = "b\\n" }', "key 'headers' has a line break or a NUL in the value of 'A'"),
    ('url = "https://h"\nheaders = { X-Mcp-Roles = "r" }', "key 'headers' has 'X-Mcp-Roles', which is the gateway's"),
    ('url = "https://h"\nheaders = { Accept = "*" }', "key 'headers' has 'Accept', which the gateway sets for each"),
    ('url = "https://h"\nheaders = { A = "b", a = "c" }', "key 'headers' has one header twice"),
    ('python = "tools.py"', "key 'python' must be a file and the name of its FastMCP object: path/to/file.py:object"),
    ('python = "tools.py:1x"', "key 'python' must be a file and the name of its FastMCP object"),
    ('python = "gone.py:mcp"', "key 'python' names a file that is not there. Its path begins at"),
    ('command = "c"\ntools = ["a"]', "key 'tools' must be a table; found a list. For example: tools = {"),
    ('command = "c"\ntools = { includ = [] }', "key 'tools.includ' is unknown. Did you mean 'include'? Allowed: inc"),
    ('command = "c"\ntools.include = "a"', "key 'tools.include' must be a list of strings; found a string. For exam"),
    ('command = "c"\ntools = { include = ["a"], exclude = ["a"] }', "key 'tools' has item 1 of include in exclude t"),
    ('command = "c"\ntools.rename = { a = "z", b = "z" }', "key 'tools' gives 'b' the name that 'a' has. Give each"),
    ('command = "c"\ntools.include = ["z"]\ntools.rename.a = "z"', "gives 'a' the name that item 1 of include has"),
    ('command = "c"\ntools.rename.a = "a b"', "key 'tools.rename' gives 'a' a name that no tool may have"),
    ('command = "c"\ntimeouts = { call = "soon" }', "key 'timeouts.call' must be a number; found a string"),
    ('command = "c"\ntimeouts = { call = 0 }', "key 'timeouts.call' must be greater than 0"),
    ('command = "c"\ntimeouts = { calls = 1 }', "key 'timeouts.calls' is unknown. Did you mean 'call'? Allowed: con"),
    ('command = "c"\n[servers.x.timeouts]\n\ncall = []', ":5: [servers.x] key 'timeouts.call' must be a num"),
    (f'command = "c"\nenv.{"a." * 1000}b = 1', ":3: [servers.x] key 'env.a' must be a string; found a table"),
    (f'command = "c"\n{"k" * 9999} = 1', f":3: [servers.x] key '\"{'k' * 80}…\"' is unknown"),
    ('command = "${NO}"', ":2: [servers.x] key 'command' needs the variable NO, which is not set: set it in"),
    ('url = "https://h"\nheaders = { A = "${NO}" }', "key 'headers.A' needs the variable NO, which is not set: set"),
    ('command = "c"\nargs = ["a", "${NO}"]', "key 'args' item 2 needs the variable NO … write ${NO:-default}"),
    ('command = "c"\nis_enabled = "${NO}"', "key 'is_enabled' needs the variable NO, which is not set"),
    ('command = "$HOME/x"', "key 'command' has a '$' that is no variable. Write ${VAR}, or $$ for the sign itself"),
    ('command = "${A:-${B}}"', "key 'command' has a '$' that is no variable"),
    ('command = "${1}"', "key 'command' has a '$' that is no variable"),
]

SYNTAX = [
    ("[servers.x]\n[servers.x]", ":2: is not valid TOML: Cannot declare … A table is written once"),
    ("[gateway]\nname='a'\nname='b'\n#", ":3: is not valid TOML: … A key is written once in its table"),
    ("a = { b = 1, b = 2 }", ":1: is not valid TOML: … A key is written once in its table"),
    ("\na = yes\n", ":2: is not valid TOML: Invalid value (column 5) … Text stands in quotes"),
    ('a = "C:\\Users"', ":1: is not valid TOML: … a backslash begins an escape"),
    ('a = "C:\\dir"', ":1: is not valid TOML: … a backslash begins an escape"),
    ('a = ["b" "c"]', ":1: is not valid TOML: … A list has commas between its items"),
    ("a = [1,\n2", ":2: is not valid TOML: … A list has commas between its items and ends with ']'"),
    ("a = { b = 1", ":1: is not valid TOML: … An inline table"),
    ('a = "b\n', ":1: is not valid TOML: … Text ends on its line"),
    ("a = 'b", ":1: is not valid TOML: … Text ends on its line, with the quote that began it"),
    ("servers: x", ':1: is not valid TOML: … A line is key = "value", or [servers.NAME]'),
    ("[servers.x y]", ':1: is not valid TOML: … A line is key = "value", or [servers.NAME]'),
    ('{"mcpServers": {}}', ':1: is not valid TOML: … A line is key = "value", or [servers.NAME]'),
    ("a = 1 b = 2", ':1: is not valid TOML: … A line is key = "value"'),
    (f"a = {'[' * 2000}", "is nested too deeply. No server needs more than 3 levels"),
    (f"a = {'9' * 5000}", ": holds a number that is too long. Write a shorter one"),
]


@pytest.mark.parametrize(
    ("text", "told"), [*TOP_LEVEL, *SYNTAX, *((f"[servers.x]\n{text}\n", told) for text, told in SERVER)]
)
def test_each_mistake_is_told_in_one_line(file: Path, text: str, told: str) -> None:
    [problem] = problems(file, text, {"PATH": os.environ["PATH"]})
    assert [part for part in told.split(" … ") if part not in problem] == []
    assert "\n" not in problem


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(file: Path) -> None:
    text = '[servers.b]\nargs = "x"\ncwd = 3\n[servers.a]\nurl = "${NO}"\nfoo = 1\n[gateway]\nbar = 1\n[other]\n'
    found = problems(file, text, {"APOLLOS_IDLE_TIMEOUT": "x"})
    assert [problem.split(" must")[0].split(" is")[0].split(" needs")[0] for problem in found] == [
        "environment variable APOLLOS_IDLE_TIMEOUT",
        "servers.toml:1: [servers.b]",
        "servers.toml:2: [servers.b] key 'args'",
        "servers.toml:3: [servers.b] key 'cwd'",
        "servers.toml:5: [servers.a] key 'url'",
        "servers.toml:6: [servers.a] key 'foo'",
        "servers.toml:8: [gateway] key 'bar'",
        "servers.toml:9: [other]",
    ]


# --------------------------------------------------------------------------------------------------- the file itself


def refusal(path: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_configuration(path, {})
    [problem] = caught.value.problems
    return problem


def test_a_missing_file_says_what_to_do(file: Path) -> None:
    assert refusal(file) == f"{file}: no such file. Write one, or set APOLLOS_SERVERS to where it is"


def test_what_is_no_text_file_is_refused(file: Path) -> None:
    assert "is a directory. Name the file in it, for example" in refusal(file.parent)
    assert "cannot be read (the path is not valid)" in refusal(Path("a\0b"))
    assert "cannot be read (File name too long)" in refusal(file.parent / ("x" * 300))
    os.mkfifo(file)
    assert "is not a regular file" in refusal(file)  # and does not wait for someone to write into it


def test_a_file_that_may_not_be_read_says_so(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    file.touch()
    monkeypatch.setattr(Path, "open", refuse)  # root, who may run this, may read everything
    assert "may not be read. Give this user the right to read it" in refusal(file)


def test_a_file_that_is_not_utf8_is_refused_with_its_line(file: Path) -> None:
    file.write_bytes(b'[gateway]\nname = "\xff"\n')
    assert refusal(file) == f"{file}:2: is not UTF-8 text. Save the file as UTF-8"
    file.write_bytes("[gateway]".encode("utf-16"))
    assert "is not UTF-8 text" in refusal(file)


def test_a_file_is_at_most_1_mib(file: Path) -> None:
    file.write_bytes(b"#" * MAX_FILE_BYTES)
    assert load_configuration(file, {}).resources == {}
    file.write_bytes(b"#" * 10 * MAX_FILE_BYTES)
    assert refusal(file) == f"{file}: is larger than 1 MiB. Is it the right file?"


# ------------------------------------------------------------------------------------------------------------ changes

SERVER_X = '[servers.x]\ncommand = "c"\n'

Changes = AsyncGenerator[Configuration | ConfigurationError, None]
Looks = MemoryObjectReceiveStream[None]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Looks]:
    """Receives once for each time that the file was looked at."""
    send, receive = anyio.create_memory_object_stream[None](math.inf)
    look = servers_file._look

    def look_and_tell(*arguments: Any) -> Any:
        outcome = look(*arguments)
        anyio.from_thread.run_sync(send.send_nowait, None)
        return outcome

    monkeypatch.setattr(servers_file, "_look", look_and_tell)
    with send, receive:
        yield receive


def write(file: Path, text: str) -> None:
    file.write_text(text)


def remove(file: Path) -> None:
    file.unlink()


def link(file: Path, target: Path) -> None:
    file.symlink_to(target)


def replace(file: Path, text: str) -> None:
    """Write as editors do: a new file, renamed over the old one."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


async def next_change(changes: Changes) -> str:
    """The names of the next configuration, or the next error."""
    with anyio.fail_after(20):
        change = await anext(changes)
    return str(change) if isinstance(change, ConfigurationError) else " ".join(change.resources)


async def test_each_change_gives_a_configuration_or_its_error(file: Path) -> None:
    loaded = load(file, SERVER_X)
    async with aclosing(watch_configuration(file, {}, since=loaded.fingerprint)) as changes:
        write(file, SERVER_X.replace("x", "y"))
        assert await next_change(changes) == "y"
        replace(file, SERVER_X.replace("x", "z"))
        assert await next_change(changes) == "z"
        write(file, "[servers.x]")
        assert "servers.toml:1: [servers.x] needs" in await next_change(changes)
        remove(file)
        assert "no such file" in await next_change(changes)
        replace(file, SERVER_X)
        assert await next_change(changes) == "x"


async def test_a_change_that_was_made_before_watching_is_not_missed(file: Path) -> None:
    loaded = load(file, SERVER_X)
    replace(file, SERVER_X.replace("x", "y"))
    async with aclosing(watch_configuration(file, {}, since=loaded.fingerprint)) as changes:
        assert await next_change(changes) == "y"


async def test_the_same_bytes_and_other_files_give_nothing(file: Path, looks: Looks) -> None:
    load(file, SERVER_X)
    async with aclosing(watch_configuration(file, {})) as changes, anyio.create_task_group() as tasks:
        found: list[str] = []

        async def note_the_next() -> None:
            found.append(await next_change(changes))

        tasks.start_soon(note_the_next)
        await looks.receive()
        replace(file, SERVER_X)
        write(file.with_name("other.toml"), "[[")
        for _ in range(2):  # the first may have begun before the writing
            await looks.receive()
        replace(file, SERVER_X.replace("x", "y"))
    assert found == ["y"]


async def test_a_link_is_followed_to_its_file(file: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    target = tmp_path_factory.mktemp("elsewhere") / "real.toml"
    link(file, target)
    loaded = load(file, SERVER_X)
    async with aclosing(watch_configuration(file, {}, since=loaded.fingerprint)) as changes:
        replace(target, SERVER_X.replace("x", "y"))
        assert await next_change(changes) == "y"


async def test_watching_ends_at_once(file: Path, looks: Looks) -> None:
    load(file, SERVER_X)
    async with aclosing(watch_configuration(file, {})) as changes, anyio.create_task_group() as tasks:
        tasks.start_soon(next_change, changes)
        await looks.receive()
        await anyio.wait_all_tasks_blocked()
        began = time.monotonic()
        tasks.cancel_scope.cancel()
    assert time.monotonic() - began < 0.5  # and not when its thread has waited long enough
