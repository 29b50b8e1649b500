"""`[gateway] dynamic = true`: a model finds, adds, uses and removes servers, for its session alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from providers.lines import MODERN
from tests.helpers.adding import NO, YES, add, called, changes, names, problem, shop
from tests.helpers.clients import HANDSHAKE, NEWEST, HandClient, Refused
from tests.helpers.processes import eventually

pytestmark = pytest.mark.timeout(120)
core = pytest.mark.core  # but for what FastMCP 3.4 has no clients for

VERSIONS = (HANDSHAKE, NEWEST) if MODERN else (HANDSHAKE,)
ALLOWED = {"dynamic_allow": ["pypi:mcp-server-*"]}
Patch = pytest.MonkeyPatch


@core
async def test_a_server_is_found_added_used_and_removed(tmp_path: Path, monkeypatch: Patch) -> None:
    async with (
        shop(tmp_path, monkeypatch, **ALLOWED) as gateway,
        gateway.client("bob", HANDSHAKE) as bob,
        gateway.client("ada", HANDSHAKE) as ada,
        gateway.client("bob", HANDSHAKE) as same_user,
    ):
        others = (ada, same_user)
        for one in (bob, *others):
            assert await names(one) == ["all", "gateway"]
        found = await bob.call("gateway_find_servers", query="echo")
        assert "com.example/echo" in [each["name"] for each in found["structuredContent"]["servers"]]
        described = await bob.call("gateway_describe_server", name="com.example/echo", source="registry")
        assert described["structuredContent"]["ways"][0]["approval"] == "not needed"

        name = called(await add(bob, "echo"))
        assert name.startswith("echo-")
        await bob.until(lambda: changes(bob) == 1)
        assert await names(bob) == sorted(["all", name, "gateway"])
        answer = await bob.call(f"{name}_echo", text="hello")
        assert "hello" in answer["content"][0]["text"]
        through = await bob.call("gateway_call_tool", name=f"{name}_echo", arguments={"text": "hello"})
        assert through == answer
        for one in others:
            await looks_absent(one, name)
        async with gateway.client("ada", HANDSHAKE) as late:
            assert name not in str(late.welcome)
        for user in ("bob", "ada"):
            assert await gateway.status_alone(user, name) == 404

        assert not (await bob.call("gateway_remove_server", name=name)).get("isError")
        await bob.until(lambda: changes(bob) == 2)
        assert await names(bob) == ["all", "gateway"]
        await looks_absent(bob, name)
        for one in others:
            await one.request("ping")
            assert changes(one) == 0


async def looks_absent(one: HandClient, name: str) -> None:
    """Nothing tells a server from one that does not exist."""
    absent = f"{name[:-1]}{'0' if name[-1] != '0' else '1'}"
    assert await names(one) == ["all", "gateway"]
    for method, key, text in (
        ("tools/call", "name", "{}_echo"),
        ("prompts/get", "name", "{}_greet"),
        ("resources/read", "uri", "file://{}/x"),
        *([("resources/subscribe", "uri", "file://{}/x")] if MODERN and one.era == HANDSHAKE else []),
    ):
        told = [await refusal(one, method, {key: text.format(each)}) for each in (name, absent)]
        assert told[0] == told[1].replace(absent, name)
    if MODERN:
        asked = {"ref": {"type": "ref/prompt", "name": f"{name}_greet"}, "argument": {"name": "name", "value": ""}}
        assert (await one.request("completion/complete", asked))["completion"]["values"] == []
    for tool in ("gateway_describe_tool", "gateway_call_tool"):
        told = [problem(await one.call(tool, name=f"{each}_echo")) for each in (name, absent)]
        assert told[0] == told[1].replace(absent, name)
    told = [problem(await one.call("gateway_remove_server", name=each)) for each in (name, absent)]
    assert told[0] == told[1].replace(absent, name)
    listed = await one.call("gateway_list_servers")
    assert [each["name"] for each in listed["structuredContent"]["servers"]] == ["all"]


async def refusal(one: HandClient, method: str, params: dict[str, str]) -> str:
    try:
        return str(await one.request(method, params))
    except Refused as error:
        return str(error.error)


@core
async def test_it_goes_with_its_session(tmp_path: Path, monkeypatch: Patch) -> None:
    async with shop(tmp_path, monkeypatch, **ALLOWED) as gateway:
        registry = gateway.served.gateway.registry
        async with gateway.client("bob", HANDSHAKE) as bob:
            name = called(await add(bob, "echo"))
            assert name in registry.mounts and registry.resource(name) is not None
        await eventually(lambda: set(registry.mounts) == {"all"})
        assert registry.resource(name) is None


@pytest.mark.skipif(not MODERN, reason="FastMCP 3.4 knows no clients of 2026-07-28")
async def test_one_of_a_client_without_a_session_is_its_users_and_goes_when_unused(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    async with (
        shop(tmp_path, monkeypatch, session_timeout=4.0, **ALLOWED) as gateway,
        gateway.client("bob", NEWEST) as bob,
        gateway.client("bob", NEWEST) as bobs_other,
        gateway.client("ada", NEWEST) as ada,
        bob.listening(toolsListChanged=True),
        ada.listening(toolsListChanged=True),
    ):
        name = called(await add(bob, "echo"))
        await bob.until(lambda: changes(bob) == 1)
        for one in (bob, bobs_other):
            assert name in await names(one)
        assert not (await bob.call(f"{name}_echo", text="hello")).get("isError")
        await looks_absent(ada, name)
        await eventually(lambda: name not in gateway.served.gateway.registry.mounts, within=20)
        await bob.until(lambda: changes(bob) == 2)
        assert changes(ada) == 0


@core
async def test_what_fails_on_the_way_leaves_nothing(tmp_path: Path, monkeypatch: Patch) -> None:
    async with (
        shop(tmp_path, monkeypatch, **ALLOWED) as gateway,
        gateway.client("bob", HANDSHAKE) as bob,
    ):
        assert "could not be used" in problem(await add(bob, "broken"))
        assert "no server 'com.example/nothing'" in problem(await add(bob, "nothing"))
        assert "WHERE (A place.)" in problem(await add(bob, "placed"))
        assert "may not hold" in problem(await add(bob, "placed", config={"WHERE": "${secret:all.key}"}))
        assert "its address" in problem(await add(bob, "inside"))
        address = await bob.call("gateway_add_server", name="http://169.254.169.254/mcp", source="url")
        assert "public internet" in problem(address)
        assert "'called'" in problem(await add(bob, "echo", called="gateway"))
        assert changes(bob) == 0
        assert set(gateway.served.gateway.registry.mounts) == {"all"}
        assert await names(bob) == ["all", "gateway"]


@core
async def test_a_session_has_so_many_servers_at_most(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr("composition.adding.MAX_SERVERS", 1)
    async with (
        shop(tmp_path, monkeypatch, **ALLOWED) as gateway,
        gateway.client("bob", HANDSHAKE) as bob,
        gateway.client("cyd", HANDSHAKE) as cyd,
    ):
        called(await add(bob, "echo"))
        assert "the most there may be" in problem(await add(bob, "echo"))
        called(await add(cyd, "echo"))


# ------------------------------------------------------------------------------------------------ who may add what


@core
@pytest.mark.parametrize("era", VERSIONS)
async def test_an_operator_approves_what_no_pattern_allows(era: str, tmp_path: Path, monkeypatch: Patch) -> None:
    async with shop(tmp_path, monkeypatch) as gateway, gateway.client("ada", era) as ada:
        ada.answers["elicitation/create"] = NO
        assert "It was not approved" in problem(await add(ada, "echo"))
        assert "mcp-server-echo" in ada.asked[0]["params"]["message"]
        ada.answers["elicitation/create"] = {"action": "accept", "content": {"approve": False}}
        assert "It was not approved" in problem(await add(ada, "echo"))
        assert await names(ada) == ["all", "gateway"]
        ada.answers["elicitation/create"] = YES
        assert called(await add(ada, "echo")) == "echo"
        assert "hello" in str(await ada.call("echo_echo", text="hello"))


@core
@pytest.mark.parametrize("era", VERSIONS)
async def test_nobody_is_asked_who_cannot_be(era: str, tmp_path: Path, monkeypatch: Patch) -> None:
    async with shop(tmp_path, monkeypatch) as gateway, gateway.client("ada", era, capabilities={}) as ada:
        assert "does not let the gateway ask" in problem(await add(ada, "echo"))
        assert await names(ada) == ["all", "gateway"]


@core
async def test_others_add_only_what_a_pattern_allows(tmp_path: Path, monkeypatch: Patch) -> None:
    async with (
        shop(tmp_path, monkeypatch, dynamic_allow=["pypi:mcp-server-e*", "pypi:mcp-server-steered"]) as gateway,
        gateway.client("bob", HANDSHAKE) as bob,
    ):
        called(await add(bob, "echo"))
        assert "not yours to add" in problem(await add(bob, "keyed"))
        assert "not yours to add" in problem(await add(bob, "steered"))
        assert not bob.asked


# ------------------------------------------------------------------------------------------------ secrets, values


@core
@pytest.mark.parametrize("era", VERSIONS)
async def test_a_secret_comes_from_the_user_and_is_never_shown(era: str, tmp_path: Path, monkeypatch: Patch) -> None:
    async with (
        shop(tmp_path, monkeypatch, dynamic_secrets=True, **ALLOWED) as gateway,
        gateway.client("bob", era) as bob,
    ):
        secrets = gateway.served.gateway.secrets
        bob.answers["elicitation/create"] = NO
        assert "They were not given" in problem(await add(bob, "keyed"))

        def give(params: dict[str, object]) -> dict[str, object]:
            fields = params["requestedSchema"]["properties"]  # type: ignore[index]
            return {"action": "accept", "content": dict.fromkeys(fields, "hunter2")}

        bob.answers["elicitation/create"] = give
        answer = await add(bob, "keyed")
        name = called(answer)
        resource = gateway.served.gateway.registry.resource(name)
        assert resource is not None and resource.per_user
        assert [secret for secret, _, source in secrets.names() if source == "memory"] == [f"{name}.API_KEY"]
        changed = await bob.call("gateway_configure_server", name=name, secrets=[f"{name}.API_KEY"])
        listed = await bob.call("gateway_list_servers")
        assert "hunter2" not in str([answer, changed, listed])
        assert not (await bob.call(f"{name}_echo", text="hello")).get("isError")
        await bob.call("gateway_remove_server", name=name)
        assert not [each for each in secrets.names() if each[2] == "memory"]


@core
async def test_nobody_is_asked_for_a_secret_unless_the_operator_wants_it(tmp_path: Path, monkeypatch: Patch) -> None:
    async with shop(tmp_path, monkeypatch, **ALLOWED) as gateway, gateway.client("bob", HANDSHAKE) as bob:
        assert "server.py secret set" in problem(await add(bob, "keyed"))
        assert not bob.asked and await names(bob) == ["all", "gateway"]


@core
async def test_it_is_configured_anew_or_stays_as_it_was(tmp_path: Path, monkeypatch: Patch) -> None:
    async with shop(tmp_path, monkeypatch, **ALLOWED) as gateway, gateway.client("bob", HANDSHAKE) as bob:
        registry = gateway.served.gateway.registry
        name = called(await add(bob, "placed", config={"WHERE": "here"}))
        answer = await bob.call("gateway_configure_server", name=name, config={"WHERE": "there"})
        assert answer["structuredContent"] == {"name": name, "changed": ["WHERE"]}
        assert registry.mounts[name].resource.env == {"WHERE": "there"}
        (tmp_path / "bin" / "uvx").write_text("#!/bin/sh\nexit 1\n")
        told = problem(await bob.call("gateway_configure_server", name=name, config={"WHERE": "nowhere"}))
        assert "It stays as it was" in told
        assert registry.mounts[name].resource.env == {"WHERE": "there"}
        assert "There is no server" in problem(await bob.call("gateway_configure_server", name="all"))


@core
async def test_with_the_scope_gateway_it_is_kept_as_its_users(tmp_path: Path, monkeypatch: Patch) -> None:
    store = f"sqlite://{tmp_path / 'servers.db'}"
    async with (
        shop(tmp_path, monkeypatch, dynamic_scope="gateway", store=store, **ALLOWED) as gateway,
        gateway.client("bob", HANDSHAKE) as bob,
        gateway.client("bob", HANDSHAKE) as bobs_other,
        gateway.client("cyd", HANDSHAKE) as cyd,
    ):
        name = called(await add(bob, "echo"))
        assert name in await names(bob) and name in await names(bobs_other)
        await looks_absent(cyd, name)
        assert not (await bobs_other.call(f"{name}_echo", text="hello")).get("isError")
        assert not (await bobs_other.call("gateway_remove_server", name=name)).get("isError")
        assert await names(bob) == ["all", "gateway"]


@core
@pytest.mark.parametrize("era", VERSIONS)
async def test_a_change_of_servers_does_not_end_a_call_that_asks(era: str, tmp_path: Path, monkeypatch: Patch) -> None:
    async with shop(tmp_path, monkeypatch) as gateway, gateway.client("ada", era) as ada:
        registry, store = gateway.served.gateway.registry, gateway.served.gateway.store

        def approve(params: object) -> dict[str, object]:
            registry.sync(dict(store.snapshot))
            return YES

        ada.answers["elicitation/create"] = approve
        assert called(await add(ada, "echo")) == "echo"


@core
async def test_an_operators_server_has_the_gateways_secrets_only_when_that_was_approved(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setenv("APOLLOS_SECRET_KEYED__API_KEY", "the operator's")
    async with (
        shop(tmp_path, monkeypatch, dynamic_secrets=True, **ALLOWED) as gateway,
        gateway.client("ada", HANDSHAKE) as ada,
        gateway.client("ada", HANDSHAKE, capabilities={}) as unasked,
        gateway.client("bob", HANDSHAKE) as bob,
    ):
        assert "does not let the gateway ask" in problem(await add(unasked, "keyed"))
        ada.answers["elicitation/create"] = NO
        assert "not approved" in problem(await add(ada, "keyed"))
        assert "secret: keyed.API_KEY" in ada.asked[0]["params"]["message"]
        ada.answers["elicitation/create"] = YES
        assert called(await add(ada, "keyed")) == "keyed"
        resource = gateway.served.gateway.registry.resource("keyed")
        assert resource is not None and not resource.per_user
        assert "the gateway's" in problem(
            await ada.call("gateway_configure_server", name="keyed", secrets=["keyed.API_KEY"])
        )
        bob.answers["elicitation/create"] = NO
        assert "It needs secrets: keyed-" in problem(await add(bob, "keyed", called="keyed"))


@core
async def test_one_for_all_of_the_same_name_takes_its_place(tmp_path: Path, monkeypatch: Patch) -> None:
    async with (
        shop(tmp_path, monkeypatch, **ALLOWED) as gateway,
        gateway.client("ada", HANDSHAKE) as ada,
        gateway.client("bob", HANDSHAKE) as bob,
    ):
        assert called(await add(ada, "echo")) == "echo"
        ending = called(await add(bob, "echo"))
        assert ending.startswith("echo-")
        second = called(await add(ada, "echo"))
        assert second.startswith("echo-") and second != ending
        own = gateway.served.gateway
        everybodys = own.registry.mounts["all"].resource.model_copy(update={"name": "echo"})
        await own.store.files.upsert(everybodys)
        await eventually(lambda: own.registry.mounts["echo"].session is None)
        for one in (ada, bob):
            assert {"echo", "all"} <= set(await names(one))


@core
async def test_when_the_gateway_stops_nothing_is_left(tmp_path: Path, monkeypatch: Patch) -> None:
    async with shop(tmp_path, monkeypatch, **ALLOWED) as gateway:
        async with gateway.client("bob", HANDSHAKE, says_goodbye=False) as bob:
            name = called(await add(bob, "echo"))
        assert name in gateway.served.gateway.registry.mounts
    assert set(gateway.served.gateway.registry.mounts) == {"all"}
