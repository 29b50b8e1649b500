"""Tools that are programs: what a record may say of them, and what a call's arguments become."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from providers.container_tool import ContainerTool
from providers.resource import McpServerResource, TransportType

pytestmark = pytest.mark.core

PROPERTIES = {
    "text": {"type": "string"},
    "words": {"type": "array", "items": {"type": "string"}},
    "number": {"type": "integer"},
    "part": {"type": "number"},
    "yes": {"type": "boolean"},
    "table": {"type": "object"},
    "anything": {},
    "odd": {"type": ["string", "null"]},
}


def tool(*args: str, required: tuple[str, ...] = (), **more: Any) -> ContainerTool:
    parameters = {"type": "object", "properties": PROPERTIES, "required": list(required)}
    return ContainerTool.model_validate({"args": args, "parameters": parameters, **more})


def nested(levels: int) -> dict[str, Any]:
    inner: Any = {}
    for _ in range(levels):
        inner = {"items": [inner]} if levels % 2 else {"items": inner}
    return {"text": inner}


def server(**more: Any) -> McpServerResource:
    return McpServerResource.model_validate({"name": "x", "docker_image": "example/x", **more})


@pytest.mark.parametrize(
    ("args", "given", "becomes"),
    [
        (["fixed", "$HOME", "${X}"], {}, ["fixed", "$HOME", "${X}"]),
        (["{{words|into}}"], {"words": ["-d", "", "a b; $(c)", "{{text}}"]}, ["-d", "", "a b; $(c)", "{{text}}"]),
        (["{{words}}"], {"words": []}, []),
        (["{{text}}"], {"text": ""}, [""]),
        (["{{text}}"], {"text": "--output=/etc/passwd"}, ["--output=/etc/passwd"]),
        (["--n={{number}}", "{{text}}"], {"text": "a"}, ["a"]),
        (["--n={{number}}", "{{yes}}", "{{part}}"], {"number": 5, "yes": True, "part": 0.5}, ["--n=5", "true", "0.5"]),
        (["in {{words}}"], {"words": ["a", 1]}, ['in ["a", 1]']),
        (["{{table.inner}}", "{{table}}"], {"table": {"inner": "a"}}, ["a", '{"inner": "a"}']),
        (["{{text|or:none}}"], {}, ["none"]),
        (["-s", "{{words|into}}"], {"words": []}, ["-s"]),
    ],
)
def test_arguments_of_a_call_become_arguments_of_the_program(
    args: list[str], given: dict[str, Any], becomes: list[str]
) -> None:
    assert tool(*args).args_for(given) == becomes


def test_an_option_never_takes_what_comes_next_for_its_value() -> None:
    with pytest.raises(ValueError, match="needs 'text', because an option stands before it"):
        tool("-o", "{{text}}", "{{words|into}}").args_for({"words": ["https://a.example"]})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "The argument 'text' is missing."),
        ({"text": 1}, "The argument 'text' must be of type string."),
        ({"text": "", "words": "a"}, "The argument 'words' must be of type array."),
        ({"text": "", "number": 1.5}, "The argument 'number' must be of type integer."),
        ({"text": "", "number": True}, "The argument 'number' must be of type integer."),
        ({"text": "", "part": False}, "The argument 'part' must be of type number."),
        ({"text": "", "yes": 1}, "The argument 'yes' must be of type boolean."),
        ({"text": "", "table": []}, "The argument 'table' must be of type object."),
        ({"text": "", "words": [], "number": 1, "part": 1, "yes": True, "anything": None, "odd": 5, "more": 1}, None),
    ],
)
def test_what_is_wrong_with_a_call_is_told(given: dict[str, Any], told: str | None) -> None:
    assert tool("{{text}}", required=("text",)).problem(given) == told


def test_a_call_names_folders_and_nothing_else_of_a_volume() -> None:
    mounting = tool(volumes=["{{text}}:/data", "{{words|volume|into}}", "own:/own:rw"])
    assert mounting.volumes_for({"text": "/srv/a", "words": ["/b", "/c"]}) == [
        *("/srv/a:/data", "/b:/b", "/c:/c", "own:/own:rw")
    ]
    assert mounting.volumes_for({}) == ["own:/own:rw"]
    for bad in ("others-volume", "/srv/a:/etc:rw", "relative", "", "~/x", ":", 5, {"a": 1}, "/a:", "/a/../b", "/.."):
        with pytest.raises(ValueError, match=r"must have an absolute path without ':' and '\.\.' as 'text'"):
            mounting.volumes_for({"text": bad})
    for items in (["/b", "c"], ["/b", None], [["/b"]]):
        with pytest.raises(ValueError, match="as 'words'"):
            mounting.volumes_for({"words": items})
    with pytest.raises(ValueError, match="as 'text'"):
        tool(volumes=["/srv/mine/{{text}}:/data"]).volumes_for({"text": "/../others"})


def test_what_an_argument_may_fill_in_is_never_a_volume_of_others() -> None:
    for text in ("{{text|or:others}}:/data:rw", "{{words|mount_as:/data}}", "{{words|or:[others:/a]|into}}:rw"):
        with pytest.raises(ValueError, match=r"must mount a folder|as 'words'"):
            tool(volumes=[text]).volumes_for({"words": [None]} if "mount_as" in text else {})
    assert tool(volumes=["{{text|or:/srv/a}}:/data"]).volumes_for({}) == ["/srv/a:/data"]


def test_each_folder_of_a_list_is_used_in_the_way_that_stands_behind_it() -> None:
    writable = tool(volumes=["{{words|volume|into}}:rw", "{{text|mount_as:/data}}:ro"])
    folders = {"words": ["/a", "/b"], "text": "/c"}
    assert writable.volumes_for(folders) == ["/a:/a:rw", "/b:/b:rw", "/c:/data:ro"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"args": ["a\0b"]}, "must not hold a NUL character"),
        ({"args": ["{{nothing}}"]}, "asks for 'nothing', which is none of its parameters"),
        ({"args": ["{{text|shout}}"]}, "uses the filter 'shout'"),
        ({"volumes": ["{{nothing}}:/a"]}, "asks for 'nothing'"),
        ({"volumes": ["/a:/proc"]}, "not for mounting"),
        ({"parameters": {"type": "array"}}, "must be the schema of an object"),
        ({"parameters": {"type": "object", "required": "text"}}, "'required' that is no list"),
        ({"parameters": {"type": "object", "required": ["text", []]}}, "'required' that is no list"),
        ({"parameters": {"type": "object", "required": [1]}}, "'required' that is no list"),
        ({"parameters": {"type": "object", "properties": []}}, "must be the schema of an object"),
        ({"parameters": {"type": "object", "properties": {"text": 5}}}, "has a property that is no schema"),
        ({"parameters": {"type": "object", "properties": nested(33)}}, "more than 32 levels"),
        ({"parameters": {"type": "object", "properties": nested(100_000)}}, "more than 32 levels"),
        ({"image": "UPPER/case"}, "must be an image"),
        ({"user": "root"}, "may not be root"),
        ({"command": ["x"]}, "Extra inputs"),
    ],
)
def test_a_tool_that_cannot_be_is_refused(more: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        tool(**more)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"docker_tools": {"a b": {}}}, "a tool whose name is none"),
        ({"docker_tools": {"a": {}}, "docker_ports": ["80/tcp"]}, "whose programs listen on no port"),
        ({"docker_tools": {"a": {}}, "args": ["x"]}, "'args', of no use beside docker_tools"),
        ({"docker_tools": {"a": {}}, "start": "eager"}, "'start', of no use beside docker_tools"),
        ({"docker_tools": {"a": {}}, "docker_image": None, "command": "x"}, "has 'docker_tools', of no use"),
        ({"docker_tools": {"a": {"args": ["${secret:token}"]}}}, "names a secret in 'docker_tools'"),
        ({"docker_tools": {"a": {"description": "${secret:token}"}}}, "names a secret in 'docker_tools'"),
    ],
)
def test_a_server_of_programs_has_nothing_that_it_cannot_use(more: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        server(**more)


def test_a_server_of_programs_is_a_container_over_stdio() -> None:
    programs = server(docker_tools={"a": {}}, docker_command=["sh"], env={"TOKEN": "${secret:token}"})
    assert programs.is_container and programs.transport_type is TransportType.STDIO
    assert "sh" not in repr(programs.docker_tools)
