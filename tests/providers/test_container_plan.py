"""By what one container may serve in the place of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from providers.container_plan import Plan
from providers.hardening import ImageFacts, container_config, fingerprint
from providers.ownership import Instance
from tests.helpers.containers import over_stdio, record

IMAGE = ImageFacts("sha256:1")
ONE, OTHER = Instance(Path(), b"one" * 10), Instance(Path(), b"other" * 6)


def plan(instance: Instance = ONE, **keys: Any) -> Plan:
    return Plan(record("files", over_stdio(**keys)), IMAGE, instance, is_inside=False, volumes=())


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
