"""Containers through the REST API: made by an operator, called, looked at, restarted, and what they wrote."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from tests.helpers.api import OPEN_LOOPBACK, Rest, rest_api
from tests.helpers.containers import EVERYTHING, data, ours
from tests.helpers.gateway import LEGACY, client
from tests.helpers.people import token

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("engine")]
SECRET = "secret-of-the-environment"


def body(name: str, **more: Any) -> dict[str, Any]:
    deadlines = {"firstStart": 60, "initialize": 40, "list": 60}
    return {
        "name": name,
        "imageName": EVERYTHING,
        "pull": "never",
        "requiredRoles": ["guest"],
        "environmentVariables": {"TOKEN": SECRET},
        "timeouts": deadlines,
        **more,
    }


async def lines_with(rest: Rest, name: str, text: str) -> list[str]:
    with anyio.fail_after(20):
        while True:
            reply = await rest("GET", f"/adapters/{name}/logs?tail=50")
            assert reply.status == 200, reply.text
            if found := [line for line in reply.text.splitlines() if text in line]:
                return found
            await anyio.sleep(0.05)


@pytest.mark.parametrize("kind", ["stdio", "http"])
async def test_a_container_lives_through_the_api(kind: str, state: str, engine: Any) -> None:
    more = {"dockerPorts": ["8000/tcp"], "args": ["http", "8000"], "isolation": "shared"} if kind == "http" else {}
    async with rest_api({}, state_dir=state, allowed_networks=OPEN_LOOPBACK) as rest:
        made = await rest("POST", "/adapters", body("every", **more))
        assert (made.status, made.json["imageName"]) == (201, EVERYTHING)
        async with client(rest.served.url, LEGACY, auth=token("ada")) as ada:
            await data(ada, "every_say", text=f"hello {SECRET}", times=2)
            assert len(await lines_with(rest, "every", "hello [TOKEN]")) == 2
            assert SECRET not in (await rest("GET", "/adapters/every/logs")).text
            assert (await rest("GET", "/adapters/every/logs?tail=1")).text.count("\n") == 1
            assert (await rest("GET", "/adapters/every/logs", user="bob")).status == 403
            status = (await rest("GET", "/adapters/every/status")).json
            assert (status["readyReplicas"], status["image"]) == (1, EVERYTHING)
            assert status["container"]["state"]
            (before,) = ours(engine, "every")
            assert (await rest("POST", "/adapters/every/restart")).status == 200
            await data(ada, "every_say", text="again", times=1)
            assert before.id not in {each.id for each in ours(engine, "every") if each.status == "running"}
            assert (await rest("DELETE", "/adapters/every")).status == 204


async def test_logs_are_followed_until_the_right_to_is_gone(state: str) -> None:
    async with rest_api({}, state_dir=state) as rest:
        await rest("POST", "/adapters", body("every"))
        async with client(rest.served.url, LEGACY, auth=token("ada")) as ada:
            await data(ada, "every_say", text="first", times=1)
            followed: list[str] = []

            async def follow() -> None:
                reply = await rest("GET", "/adapters/every/logs?follow=true")
                followed.append(reply.text)

            with anyio.fail_after(30):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(follow)
                    await lines_with(rest, "every", "first")
                    await data(ada, "every_say", text="second", times=1)
                    await lines_with(rest, "every", "second")
                    assert (await rest("DELETE", "/adapters/every")).status == 204
        assert "first" in followed[0]


async def test_volumes_are_looked_at(state: str) -> None:
    async with rest_api({}, state_dir=state) as rest:
        for volume in ("/etc:/data", "./here:/data", "/var/run/docker.sock:/sock"):
            reply = await rest("POST", "/adapters", body("every", dockerVolumes=[volume]))
            assert (reply.status, reply.wrong) == (400, ["dockerVolumes.0"])
