"""Tools that are programs of an image, each call a container: run at a real engine, and gone after each call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastmcp import Client

from providers.container_tool_wire import MAX_OUTPUT
from tests.helpers.containers import TIME, ours, times_made, until
from tests.helpers.gateway import LEGACY, client, gateway_over_http, patient_toml

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("engine")]

SCRIPT = {"type": "string", "description": "Python"}
WORDS = {"type": "array", "items": {"type": "string"}}


def runs(*properties: str, **more: Any) -> dict[str, Any]:
    """A tool that runs Python with words."""
    known = {"script": SCRIPT, "words": WORDS, **{name: {"type": "string"} for name in properties}}
    parameters = {"type": "object", "properties": known, "required": ["script"]}
    return {"args": ["-c", "{{script}}", "{{words|into}}"], "parameters": parameters, **more}


def python(**more: Any) -> dict[str, Any]:
    return {
        "docker_image": TIME,
        "docker_command": ["python3"],
        "pull": "never",
        "docker_tools": {"run": runs(description="Runs Python.")},
        **more,
    }


@asynccontextmanager
async def programs(state: str, table: dict[str, Any], **options: Any) -> AsyncIterator[Client[Any]]:
    toml = patient_toml({"py": table}, state_dir=state, **options)
    async with gateway_over_http(toml) as served, client(served.url, LEGACY) as caller:
        yield caller


async def call(caller: Client[Any], script: str, *words: str, **arguments: Any) -> tuple[bool, str]:
    """Whether it failed, and what it says."""
    given = {"script": script, **({"words": list(words)} if words else {}), **arguments}
    result = await caller.call_tool("py_run", given, raise_on_error=False)
    return result.is_error, result.content[0].text if result.content else ""


async def test_each_call_is_a_container_of_its_own_that_is_gone_after_it(state: str, engine: Any) -> None:
    write = "import os, sys; print(os.listdir('/tmp'), sys.argv[1:], os.environ['MODE']); open('/tmp/mine', 'w')"
    async with programs(state, python(env={"MODE": "calm"})) as caller:
        [tool] = await caller.list_tools()
        assert (tool.name, tool.description) == ("py_run", "Runs Python.")
        assert times_made(engine, "py") == 0
        for _ in range(2):
            assert await call(caller, write, "a b", "$HOME; id", "") == (False, "[] ['a b', '$HOME; id', ''] calm\n")
        await until(lambda: not ours(engine, "py"))
        assert times_made(engine, "py") == 2


async def test_it_is_as_hardened_as_any_container(state: str) -> None:
    look = "import os, socket; print(os.getuid(), [name for _, name in socket.if_nameindex()])\nopen('/x', 'w')"
    async with programs(state, python()) as caller:
        is_error, told = await call(caller, look)
        assert is_error and told.startswith("65534 ['lo']\n") and "Read-only file system" in told


async def test_a_program_that_fails_is_a_tools_error_with_all_that_it_wrote(
    state: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with programs(state, python()) as caller:
        fail = "import sys; print('so far'); sys.exit('no: hunter2-in-stderr')"
        assert await call(caller, fail) == (True, "so far\nno: hunter2-in-stderr\nIt ended with exit code 1.")
        assert await call(caller, "import sys; print('told', file=sys.stderr)") == (False, "told\n")
        is_error, told = await call(caller, "input()")
        assert is_error and "EOFError" in told  # there is nothing on its stdin
        is_error, told = await call(caller, "import os; os.abort()")
        assert is_error and told == "It ended with exit code 134."
        wrong = await caller.call_tool("py_run", {"words": []}, raise_on_error=False)
        assert wrong.is_error and wrong.content[0].text == "The argument 'script' is missing."
    assert "hunter2" not in caplog.text  # what it says is its caller's alone


async def test_one_that_writes_without_end_is_ended(state: str, engine: Any) -> None:
    async with programs(state, python()) as caller:
        for stream in ("stdout", "stderr"):
            flood = f"import sys\nwhile True: sys.{stream}.write('x' * 65536)"
            is_error, told = await call(caller, flood)
            assert is_error and told.endswith(f"It wrote more than {MAX_OUTPUT:,} bytes, and was ended.")
            assert len(told) < MAX_OUTPUT + 200
        await until(lambda: not ours(engine, "py"))


async def test_one_that_wrote_too_much_and_waits_is_ended(state: str) -> None:
    async with programs(state, python()) as caller:
        with anyio.fail_after(30):
            much = f"import time; print('x' * {MAX_OUTPUT}, flush=True); time.sleep(3600)"
            assert (await call(caller, much))[1].endswith("and was ended.")


async def test_an_answer_is_never_larger_than_clients_take(state: str) -> None:
    """A client of the SDK takes no event of more than 1 MiB, and JSON writes a NUL as six bytes."""
    async with programs(state, python()) as caller:
        write = f"import sys; [(s.buffer.write(b'\\0' * {MAX_OUTPUT}), s.flush()) for s in (sys.stdout, sys.stderr)]"
        for end in ("", "; sys.exit(1)"):
            is_error, told = await call(caller, write + end)
            assert is_error and told.startswith("\0") and told.endswith("The rest does not fit into an answer.")
        assert await call(caller, f"print('\u00e9' * {MAX_OUTPUT // 2 - 1})") == (
            False,
            "é" * (MAX_OUTPUT // 2 - 1) + "\n",
        )


async def test_a_schema_is_shown_as_it_was_written(state: str) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$$defs/b"}}, "$defs": {"b": {"type": "string"}}}
    async with programs(state, python(docker_tools={"run": {"parameters": schema}})) as caller:
        [tool] = await caller.list_tools()
        assert tool.model_dump(by_alias=True)["inputSchema"]["properties"] == {"a": {"$ref": "#/$defs/b"}}


async def test_a_call_that_is_given_up_ends_its_container(state: str, engine: Any) -> None:
    async with programs(state, python()) as caller:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, caller, "import time; time.sleep(3600)")
            await until(lambda: [each.status for each in ours(engine, "py")] == ["running"])
            tasks.cancel_scope.cancel()
        await until(lambda: not ours(engine, "py"))
        assert await call(caller, "print(1)") == (False, "1\n")


async def test_a_call_has_a_deadline(state: str, engine: Any) -> None:
    async with programs(state, python(timeouts={"call_max": 3, "call": 60})) as caller:
        is_error, told = await call(caller, "import time; time.sleep(3600)")
        assert is_error and "3 s" in told
        await until(lambda: not ours(engine, "py"))


async def test_a_call_mounts_what_the_operator_allows_and_nothing_else(state: str, tmp_path: Path) -> None:
    for folder in ("allowed", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(folder)
        (tmp_path / folder).chmod(0o777)
    (tmp_path / "allowed" / "way-out").symlink_to(tmp_path / "other")
    allowed, read = str(tmp_path / "allowed"), "import sys; print(open(sys.argv[1] + '/a.txt').read())"
    tool = runs("folder", volumes=["{{folder}}:/data"])
    table = python(docker_tools={"run": tool})
    async with programs(state, table, docker_allowed_paths=[allowed]) as caller:
        assert await call(caller, read, "/data", folder=allowed) == (False, "allowed\n")
        assert (await call(caller, read, "/data"))[0]
        write = "open('/data/new', 'w')"
        assert "Read-only file system" in (await call(caller, write, folder=allowed))[1]
        for folder in (str(tmp_path / "other"), f"{allowed}/way-out", f"{allowed}/..", "/etc", "/", "/var/run"):
            is_error, told = await call(caller, read, "/data", folder=folder)
            assert is_error and "other\n" not in told, folder
        for folder in ("volume", f"{allowed}:/data:rw", "../x", "~"):
            assert await call(caller, read, "/data", folder=folder) == (
                *(True, "The call must have an absolute path without ':' and '..' as 'folder'."),
            )


async def test_an_image_that_is_not_there_is_told_by_the_call_that_needs_it(state: str) -> None:
    tools = {"run": runs(), "other": runs(image="apollos-test/not-there")}
    async with programs(state, python(docker_tools=tools)) as caller:
        assert len(await caller.list_tools()) == 2
        result = await caller.call_tool("py_other", {"script": ""}, raise_on_error=False)
        assert result.is_error and "docker pull apollos-test/not-there" in result.content[0].text
        assert await call(caller, "print(1)") == (False, "1\n")


async def test_more_calls_at_once_than_containers_wait_for_each_other(state: str, engine: Any) -> None:
    done: list[tuple[bool, str]] = []
    async with programs(state, python(), max_containers=2) as caller:
        async with anyio.create_task_group() as tasks:

            async def one(number: int) -> None:
                done.append(await call(caller, f"print({number})"))

            for number in range(6):
                tasks.start_soon(one, number)
        assert sorted(done) == [(False, f"{number}\n") for number in range(6)]
        await until(lambda: not ours(engine, "py"))
