"""By what one container may serve in the place of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from providers.container_plan import Plan
from providers.hardening import ImageFacts, container_config, fingerprint
from providers.ownership import CONTAINER, INSTANCE, PROOF, Instance
from tests.helpers.containers import over_http, over_stdio, record

IMAGE = ImageFacts("sha256:1")
ONE, OTHER = Instance(Path(), b"one" * 10), Instance(Path(), b"other" * 6)


def plan(instance: Instance = ONE, **keys: Any) -> Plan:
    return Plan(record("files", over_stdio(**keys)), IMAGE, instance, is_inside=False, volumes=())


def network(table: dict[str, Any], container: str = "apollos-mcp-files", *, is_inside: bool) -> dict[str, Any]:
    """The network to make for a container, or nothing."""
    made = Plan(record("files", table), IMAGE, ONE, is_inside, volumes=()).network_to_make(container)
    return made or {}


def test_a_fingerprint_covers_secrets_and_environment() -> None:
    prints = [
        plan().fingerprint,
        plan(docker_secrets={"token": "a"}).fingerprint,
        plan(docker_secrets={"token": "b"}).fingerprint,
        plan(docker_secrets={"key": "b"}).fingerprint,
        plan(env={"TOKEN": "a"}).fingerprint,
        plan(env={"TOKEN": "b"}).fingerprint,
        plan(docker_memory="1g").fingerprint,
        plan(OTHER).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert plan(docker_secrets={"token": "a"}, description="other words").fingerprint == prints[1]
    swapped = [{"one": "1", "two": "2"}, {"two": "2", "one": "1"}]
    assert len({plan(docker_secrets=secrets).fingerprint for secrets in swapped}) == 1


def test_who_does_not_have_the_key_cannot_try_values() -> None:
    made = plan(env={"PIN": "1234"})
    assert made.fingerprint != fingerprint(container_config(made.resource, IMAGE, made.placement))


ICC, WAY_OUT = "com.docker.network.bridge.enable_icc", "com.docker.network.bridge.enable_ip_masquerade"


@pytest.mark.parametrize("choice", ["own", "internet"])
def test_on_the_network_of_a_server_its_containers_do_not_see_each_other(choice: str) -> None:
    for table in (over_http(docker_network=choice), over_stdio(docker_network=choice)):
        one, other = (network(table, name, is_inside=False) for name in ("one", "other"))
        assert one == other
        assert one["options"] == {ICC: "false", WAY_OUT: str(choice == "internet").lower()}
        assert not one["internal"]  # or no port could be published


@pytest.mark.parametrize("choice", ["own", "internet"])
def test_a_gateway_in_a_container_is_alone_with_each_of_its_own(choice: str) -> None:
    one, other = (network(over_http(docker_network=choice), name, is_inside=True) for name in ("one", "other"))
    assert one["name"] != other["name"]
    assert one["options"] == {ICC: "true", WAY_OUT: str(choice == "internet").lower()}
    assert one["internal"] is (choice == "own")


def test_what_is_reached_over_stdio_needs_no_network_with_the_gateway() -> None:
    table = over_stdio(docker_network="internet")
    assert network(table, is_inside=True) == network(table, is_inside=False)


def test_each_choice_has_a_name_of_its_own() -> None:
    tables = [over_http(docker_network=choice) for choice in ("own", "internet")]
    names = {network(table, is_inside=is_inside)["name"] for table in tables for is_inside in (True, False)}
    assert len(names) == 4
    assert network(over_http(docker_network="mine"), is_inside=True) == {}


def test_a_fingerprint_does_not_depend_on_the_containers_name_but_on_the_network_chosen() -> None:
    def of(choice: str, *, is_inside: bool) -> str:
        resource = record("files", over_http(docker_network=choice))
        return Plan(resource, IMAGE, ONE, is_inside, volumes=()).fingerprint

    assert (
        len({of(choice, is_inside=inside) for choice in ("own", "internet", "mine") for inside in (True, False)}) == 6
    )


def test_labels_of_a_network_prove_it_under_its_own_name_alone() -> None:
    made = network(over_http(), is_inside=True)
    assert ONE.owns_network(made["name"], made["labels"])
    assert not ONE.owns_network("another", made["labels"])
    assert not OTHER.owns_network(made["name"], made["labels"])
    assert not ONE.owns_network(made["name"], made["labels"] | {CONTAINER: "another"})
    assert not ONE.owns_network(made["name"], {INSTANCE: ONE.id})
    assert not ONE.owns_network(made["name"], {**made["labels"], PROOF: "é\ud800"})
