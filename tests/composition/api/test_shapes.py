"""Records as JSON and back: Microsoft's names, masks, and that no masked value reaches another address."""

from __future__ import annotations

from typing import Any

import pytest

from composition.api import shapes
from composition.api.problems import Refusal
from providers.resource import McpServerResource, Timeouts

IMAGES = [
    ("mcp/time", "mcp/time", None),
    ("mcp/time:1.0", "mcp/time", "1.0"),
    ("localhost:5000/mcp/time", "localhost:5000/mcp/time", None),
    ("localhost:5000/mcp/time:1.0", "localhost:5000/mcp/time", "1.0"),
    (f"mcp/time@sha256:{'a' * 64}", "mcp/time", f"sha256:{'a' * 64}"),
    (f"mcp/time:1.0@sha256:{'a' * 64}", "mcp/time", f"1.0@sha256:{'a' * 64}"),
]
RECORDS: list[dict[str, Any]] = [
    {"command": "uvx", "args": ["mcp", "secret-1"], "env": {"KEY": "secret-2"}, "cwd": "/srv"},
    {"url": "https://u:secret-1@docs.example.com/mcp?key=secret-2&flag", "headers": {"X-Key": "secret-3"}},
    {"url": "https://docs.example.com/sse", "transport_type": "sse", "tools": {"rename": {"a_b": "c"}}},
    {
        "docker_image": "mcp/files:2",
        "args": ["secret-1"],
        "env": {"KEY": "secret-2"},
        "docker_ports": ["8000/tcp"],
        "docker_secrets": {"TOKEN": "secret-3"},
        "docker_command": ["run", "secret-4"],
        "docker_volumes": ["/srv/data:/data:ro"],
        "headers": {"X-Key": "secret-5"},
        "timeouts": {"first_start": 90.0},
        "required_roles": ["engineer"],
        "isolation": "shared",
        "keep": True,
    },
]


def read(body: dict[str, Any], stored: McpServerResource | None = None) -> McpServerResource:
    return shapes.read(body, Timeouts(), stored)


def wrong(body: dict[str, Any], stored: McpServerResource | None = None) -> list[str]:
    with pytest.raises(Refusal) as refused:
        read(body, stored)
    return [each.key for each in refused.value.errors]


@pytest.mark.parametrize(("image", "name", "version"), IMAGES)
def test_an_image_has_a_name_and_a_version(image: str, name: str, version: str | None) -> None:
    record = McpServerResource.model_validate({"name": "x", "docker_image": image})
    body = shapes.shown(record)
    assert (body["imageName"], body["imageVersion"]) == (name, version)
    assert read(body).docker_image == image


@pytest.mark.parametrize("data", RECORDS)
def test_an_answer_stands_for_its_record_and_tells_no_secret(data: dict[str, Any]) -> None:
    record = McpServerResource.model_validate({"name": "x", **data})
    body = shapes.shown(record)
    assert "secret-" not in str(body)
    assert read(body, record).same_offer(record)
    assert read(shapes.merge_base(record), record).same_offer(record)


def test_microsofts_own_body_is_understood() -> None:
    body = {
        "name": "mcp-example",
        "imageName": "mcp-example",
        "imageVersion": "1.0.0",
        "environmentVariables": {"K": "V"},
        "replicaCount": 1,
        "description": "",
        "useWorkloadIdentity": False,
        "requiredRoles": ["mcp.engineer"],
    }
    record = read(body)
    assert (record.docker_image, record.env, record.required_roles) == (
        "mcp-example:1.0.0",
        {"K": "V"},
        ("mcp.engineer",),
    )


def test_one_name_for_the_environment_is_enough() -> None:
    both = {"name": "x", "command": "sh", "env": {"A": "1"}, "environmentVariables": {"A": "1"}}
    assert read(both).env == {"A": "1"}
    assert wrong(both | {"env": {"A": "2"}}) == ["env"]


def test_a_masked_value_stays_only_where_it_is_stored() -> None:
    stored = McpServerResource.model_validate({"name": "x", "command": "sh", "args": ["a", "b"], "env": {"A": "1"}})
    kept = read({"command": "sh", "args": ["***", "new"], "env": {"A": "***", "B": "2"}}, stored)
    assert (kept.args, kept.env) == (("a", "new"), {"A": "1", "B": "2"})
    assert wrong({"command": "sh", "args": ["a", "b", "***"], "env": {"B": "***"}}, stored) == ["env", "args"]
    assert wrong({"name": "y", "command": "sh", "env": {"A": "***"}}) == ["env"]


def test_arguments_of_programs_are_masked_and_kept() -> None:
    parameters = {"type": "object", "properties": {"words": {}}}
    tools = {"say": {"args": ["--key=hunter2", "{{words}}"], "parameters": parameters}}
    stored = McpServerResource.model_validate({"name": "x", "docker_image": "example/x", "docker_tools": tools})
    seen = shapes.shown(stored)
    assert seen["dockerTools"]["say"]["args"] == ["***", "***"] and "hunter2" not in str(seen)
    assert read(seen, stored).docker_tools == stored.docker_tools
    seen["dockerTools"]["other"] = seen["dockerTools"].pop("say")
    assert wrong(seen, stored) == ["dockerTools"]


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/mcp",
        "http://docs.example.com/mcp",
        "https://docs.example.com:8443/mcp",
        "https://docs.example.com.evil.example/mcp",
        "https://docs.example.com@evil.example/mcp",
    ],
)
def test_a_masked_header_is_not_sent_to_another_address(url: str) -> None:
    stored = McpServerResource.model_validate(
        {"name": "x", "url": "https://docs.example.com/mcp?key=secret", "headers": {"X-Key": "secret"}}
    )
    assert "headers" in wrong({"url": url, "headers": {"X-Key": "***"}}, stored)
    assert wrong({"url": f"{url}?key=***"}, stored) == ["url"]
    moved = read({"url": "https://docs.example.com/other", "headers": {"X-Key": "***"}}, stored)
    assert moved.headers == {"X-Key": "secret"}


@pytest.mark.parametrize(
    ("body", "keys"),
    [
        ({}, ["name", ""]),
        ({"name": "x"}, [""]),
        ({"name": "x", "command": "sh", "url": "https://a.example/"}, [""]),
        ({"name": "x", "command": "sh", "docker_ports": ["80"]}, ["docker_ports"]),
        ({"name": "x", "command": "sh", "isEnabled": "true"}, ["isEnabled"]),
        ({"name": "x", "command": "sh", "replicaCount": True}, ["replicaCount"]),
        ({"name": "x", "command": "sh", "timeouts": {"firstStart": "1"}}, ["timeouts.firstStart"]),
        ({"name": "x", "command": "sh", "timeouts": {"first_start": 1}}, ["timeouts.first_start"]),
        ({"name": "x", "imageVersion": "1"}, ["imageVersion", ""]),
        ({"name": "x", "imageName": "UPPER"}, ["imageName"]),
        ({"name": "x", "imageName": "a", "dockerPorts": ["web"]}, ["dockerPorts.0"]),
        ({"name": "x", "url": "https://a.example/", "dockerMemory": "1g"}, [""]),
    ],
)
def test_what_is_wrong_is_named_as_the_api_spells_it(body: dict[str, Any], keys: list[str]) -> None:
    assert wrong(body) == keys


def test_sentences_use_the_words_of_the_api() -> None:
    with pytest.raises(Refusal) as refused:
        read({"name": "x"})
    assert str(refused.value.errors[0].text) == (
        "needs 'command' (a local process), 'url' (a remote server) or 'imageName' (a container)"
    )


def test_a_body_that_is_nested_too_deep_is_refused() -> None:
    nested: dict[str, Any] = {}
    for _ in range(400):
        nested = {"items": nested}
    for key in ("dockerTools", "env"):
        assert wrong({"name": "x", "command": "sh", key: {"a": nested}}) != []
