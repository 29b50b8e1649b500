"""docs/team.md: its ten minutes, step by step, as the page has them: two users, a server by curl, a second replica."""

from __future__ import annotations

import re
import shutil
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

from tests.helpers.gateway import ROOT, gateway_process
from tests.helpers.ports import free_port
from tests.helpers.redis_server import redis_server

PAGE = (ROOT / "docs" / "team.md").read_text()
[TOML] = re.findall(r"^```toml\n(.*?)^```", PAGE.partition("**2.")[0], re.M | re.S)
MAKE_USERS, LOOK, ADD = re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S)

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed, which the page uses"),
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed"),
]


class Person:
    """Somebody who follows the page, with a gateway at another port."""

    def __init__(self, toml: Path, port: int) -> None:
        self.environ = {"APOLLOS_SERVERS": str(toml), "XDG_STATE_HOME": str(toml.parent / "state"), "TMPDIR": "/tmp"}
        self.port, self.folder = port, toml.parent

    async def does(self, script: str) -> str:
        script = script.replace("uv run server.py", f'"{sys.executable}" server.py').replace("8808", str(self.port))
        script = script.replace("export APOLLOS_SERVERS=team.toml\n", "")
        remembered = f"{self.folder}/variables"
        begin, end = f"touch {remembered}; . {remembered}", f"set | grep -E '^(ANN|BOB|OPS)=' >{remembered}"
        whole = f"set -euo pipefail; {begin}\n{script}\n{end}"
        done = await anyio.run_process(
            ["bash", "-c", whole], cwd=ROOT, check=False, env={"PATH": "/usr/local/bin:/usr/bin:/bin", **self.environ}
        )
        assert done.returncode == 0, (done.stdout + done.stderr).decode()
        return done.stdout.decode()

    async def sees(self, user: str) -> set[str]:
        return {line.partition("_")[0] for line in (await self.does(_line_with(user))).splitlines() if "_" in line}


def _line_with(user: str) -> str:
    return next(line for line in LOOK.splitlines() if f"${user}" in line)


async def test_a_newcomer_has_users_a_new_server_and_a_second_replica(tmp_path: Path) -> None:
    with redis_server() as redis:
        store = {"APOLLOS_STORE": redis.url}
        first, second = free_port(), free_port()
        team = tmp_path / "team.toml"
        team.write_text(TOML)
        person = Person(team, first)
        await person.does(MAKE_USERS)
        async with AsyncExitStack() as running:
            for port in (first, second):
                toml = TOML.replace('"tokens.json"', f'"{tmp_path}/tokens.json"')
                replica = {"APOLLOS_REPLICA_URL": f"http://127.0.0.1:{port}"}
                await running.enter_async_context(gateway_process(toml, env={**store, **replica}, port=port))
            assert await _until(person, "ANN", {"time", "git"})
            assert await _until(person, "BOB", {"time"})
            await person.does(ADD)
            other = Person(team, second)
            assert await _until(other, "BOB", {"time", "clock"})
            assert await _until(person, "BOB", {"time", "clock"})
            assert await person.sees("ANN") == {"time", "git"}


async def _until(person: Person, user: str, expected: set[str]) -> bool:
    """A list waits two seconds for a server that starts; on a machine that is busy it takes longer."""
    with anyio.fail_after(90):
        while await person.sees(user) != expected:  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(0.05)
    return True
