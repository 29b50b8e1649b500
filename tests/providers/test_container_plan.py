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


def networks(table: dict[str, Any], container: str = "apollos-mcp-files", *, is_inside: bool) -> list[dict[str, Any]]:
    """The networks to make for a container."""
    return Plan(record("files", table), IMAGE, ONE, is_inside, volumes=()).networks_to_make(container)


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
        [one], [other] = (networks(table, name, is_inside=False) for name in ("one", "other"))
        assert one == other
        assert one["options"] == {ICC: "false", WAY_OUT: str(choice == "internet").lower()}
        assert not one["internal"]  # or no port could be published


@pytest.mark.parametrize("choice", ["own", "internet"])
def test_a_gateway_in_a_container_is_alone_with_each_of_its_own(choice: str) -> None:
    one, other = (networks(over_http(docker_network=choice), name, is_inside=True)[0] for name in ("one", "other"))
    assert one["name"] != other["name"]
    assert one["options"] == {ICC: "true", WAY_OUT: "false"}
    assert one["internal"]


def test_a_way_out_is_on_another_network_than_the_gateway() -> None:
    table = over_http(docker_network="internet")
    plan = Plan(record("files", table), IMAGE, ONE, is_inside=True, volumes=())
    inside, way_out = plan.networks_to_make("one")
    assert plan.body("one", "shared", None)["HostConfig"]["NetworkMode"] == inside["name"]
    assert plan.way_out == way_out["name"]
    assert [way_out] == networks(table, is_inside=False)


def test_what_is_reached_over_stdio_needs_no_network_with_the_gateway() -> None:
    table = over_stdio(docker_network="internet")
    assert networks(table, is_inside=True) == networks(table, is_inside=False)


def test_a_network_that_is_named_is_not_made() -> None:
    for choice in ("none", "mine"):
        assert networks(over_stdio(docker_network=choice), is_inside=True) == []
    assert networks(over_http(docker_network="mine"), is_inside=True) == []


def test_a_fingerprint_does_not_depend_on_the_containers_name_but_on_the_network_chosen() -> None:
    def of(choice: str, *, is_inside: bool) -> str:
        resource = record("files", over_http(docker_network=choice))
        return Plan(resource, IMAGE, ONE, is_inside, volumes=()).fingerprint

    assert (
        len({of(choice, is_inside=inside) for choice in ("own", "internet", "mine") for inside in (True, False)}) == 6
    )


def test_labels_of_a_network_prove_it_under_its_own_name_alone() -> None:
    [made] = networks(over_http(), is_inside=True)
    assert ONE.owns_network(made["name"], made["labels"])
    assert not ONE.owns_network("another", made["labels"])
    assert not OTHER.owns_network(made["name"], made["labels"])
    assert not ONE.owns_network(made["name"], made["labels"] | {CONTAINER: "another"})
    assert not ONE.owns_network(made["name"], {INSTANCE: ONE.id})
    assert not ONE.owns_network(made["name"], {**made["labels"], PROOF: "é\ud800"})
