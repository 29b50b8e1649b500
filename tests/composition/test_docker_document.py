"""docs/docker.md explains every key that is about containers, and none that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from composition.settings import Settings
from providers.reach import CONTAINER_KEYS
from providers.resource import McpServerResource

DOCUMENT = (Path(__file__).parents[2] / "docs" / "docker.md").read_text("utf-8")
OF_THE_GATEWAY = {name for name in Settings.model_fields if "docker" in name or "container" in name or "state" in name}
KEYS = {"docker_image", *CONTAINER_KEYS}


def explained(heading: str) -> list[str]:
    """The keys in the table after a line of the section about keys."""
    section = DOCUMENT.partition("\n## Keys\n")[2].partition(heading)[2]
    table = re.search(r"(?:^\|.*\n)+", section, re.M)
    return re.findall(r"^\| `(\w+)` \| \S", table[0] if table else "", re.M)


@pytest.mark.parametrize(
    ("heading", "keys"), [("Under `[servers.NAME]`.", KEYS), ("Under `[gateway]`.", OF_THE_GATEWAY)]
)
def test_every_key_of_containers_is_explained_once(heading: str, keys: set[str]) -> None:
    found = explained(heading)
    assert sorted(found) == sorted(keys)


def test_the_keys_that_are_named_exist() -> None:
    named = set(re.findall(r"\bdocker_[a-z_]+\b", DOCUMENT))
    assert named <= {*Settings.model_fields, *McpServerResource.model_fields}
    assert named >= {key for key in KEYS | OF_THE_GATEWAY if key.startswith("docker_")}
