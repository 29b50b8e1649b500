"""Which images a server needs: its own, and those of its tools."""

from __future__ import annotations

import pytest

from providers.container_images import with_each_image
from providers.resource import McpServerResource

pytestmark = pytest.mark.core


def images(**more: object) -> list[str | None]:
    record = McpServerResource.model_validate({"name": "x", "docker_image": "example/own", **more})
    return [each.docker_image for each in with_each_image(record)]


def test_a_server_has_one_image_and_its_tools_may_have_their_own_each_once() -> None:
    assert images() == ["example/own"]
    other = {"image": "example/other"}
    tools = {"a": {}, "b": other, "c": other, "d": {"image": "example/own"}}
    assert images(docker_tools=tools) == ["example/own", "example/other"]
