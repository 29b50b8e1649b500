"""Entries of every shape that registries have had: each is read, and becomes a resource or says what stands in the way.

Those beside the checkout are real ones, read where they are there; those of this project are written by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from composition.discovery.found import NeedKind, State
from composition.discovery.registry_document import read_server
from composition.discovery.registry_packages import best_way
from providers.resource import McpServerResource
from tests.helpers.catalogs import summary

pytestmark = pytest.mark.core

HERE = Path(__file__).parent
BESIDE = HERE.parents[2].parent / "shared" / "data" / "mcp-registry"
LISTS = (HERE / "registries" / "small.json", *sorted(BESIDE.glob("*samples.json")))


@pytest.mark.parametrize("file", LISTS, ids=lambda file: file.stem)
def test_every_entry_becomes_a_resource_or_says_what_stands_in_the_way(file: Path, record_property: Any) -> None:
    entries = json.loads(file.read_text())["servers"]
    found = [best_way(read_server(entry)) for entry in entries]
    record_property("told", summary(file, found))
    assert len(found) == len(entries)
    for each in found:
        line = each.in_one_line()
        assert "\n" not in line and (each.state is State.RUNNABLE or len(line) > 10)
        if not any(need.kind is NeedKind.CONFIG for need in each.missing) and each.problem is None:
            assert McpServerResource.model_validate({"name": each.name, **each.resource})


def test_the_small_list_has_each_state() -> None:
    entries = json.loads(LISTS[0].read_text())["servers"]
    assert {best_way(read_server(entry)).state for entry in entries} == set(State)
