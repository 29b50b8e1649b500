"""Whether the engine sees the files that the gateway sees. No engine is asked."""

from __future__ import annotations

from typing import Any

import pytest

from providers.docker_engine import DockerEngine
from providers.mounts import MountRefused
from providers.placement import apart, volumes_for
from providers.resource import McpServerResource


def test_an_engine_of_another_machine_sees_other_files() -> None:
    assert apart(DockerEngine("tcp://127.0.0.1:2375")) is None
    assert (
        apart(DockerEngine("tcp://engine:2375")) == "the engine (tcp://engine:2375 (docker_host)) is on another machine"
    )


def test_a_gateway_in_a_container_of_the_engine_sees_other_files() -> None:
    engine = DockerEngine("tcp://127.0.0.1:2375")
    engine.own_id = "a1" * 32
    assert "the gateway runs in a container" in (apart(engine) or "")


def test_folders_are_refused_there_with_what_to_do(tmp_path: Any) -> None:
    files = McpServerResource(name="files", docker_image="mcp/files", docker_volumes=(f"{tmp_path}:/data",))
    with pytest.raises(MountRefused, match=r"is on another machine\. Use a named volume instead"):
        volumes_for(files, DockerEngine("tcp://engine:2375"), None, [str(tmp_path)], ())  # type: ignore[arg-type]
