"""A tool that is a program of an image: what its record says, and what a call makes of it. Pure values.

`resource` comes in, for its field `docker_tools`, and `container_tool_wire` with calls; called is `templates`. What a
caller sends goes into arguments of the program, and into the paths that are mounted, but never to where a volume says
which volume it is or whether it may be written to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from providers.container_keys import Image, User, parse_volume
from providers.templates import TemplateError, Unset, Value, as_text, paths_in, rendered

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "array": (list,),
    "object": (dict,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}
"""Of JSON Schema. More than a type is for the program to check: a stranger's pattern may take for ever to match."""

_MOST_LEVELS = 32
"""How deep a schema may be; what is deeper ends in a stack that is too small, here or in a client."""


class ContainerTool(BaseModel):
    """A tool that is a program of an image. Each call runs it in a new container, and what it writes is the answer.

    In `args` and `volumes` stands `{{name}}` where an argument of the call belongs; `templates` has the language.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    description: str | None = Field(default=None, examples=['"Fetches a URL."'])
    parameters: dict[str, Any] = Field(
        default_factory=lambda: {"type": "object", "properties": {}},
        description="JSON Schema of the arguments",
        examples=['{ type = "object", properties = { url = { type = "string" } } }'],
    )
    image: Image | None = Field(default=None, min_length=1, examples=['"curlimages/curl"'])
    args: tuple[str, ...] = Field(default=(), repr=False, examples=['["--silent", "{{url}}"]'])
    volumes: tuple[str, ...] = Field(default=(), examples=['["{{folder}}:/data"]'])
    user: User | None = Field(default=None, examples=['"1000:1000"'])

    @field_validator("parameters")
    @classmethod
    def _parameters_are_an_object(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        known = parameters.get("properties", {})
        if parameters.get("type") != "object" or not isinstance(known, dict):
            raise ValueError('must be the schema of an object: type = "object", properties = { … }')
        if any(not isinstance(schema, dict | bool) for schema in known.values()):
            raise ValueError('has a property that is no schema: properties = { NAME = { type = "string" } }')
        required = parameters.get("required", [])
        if not isinstance(required, list) or any(not isinstance(name, str) for name in required):
            raise ValueError("has a 'required' that is no list of names")
        if _is_too_deep(parameters):
            raise ValueError(f"has a schema of more than {_MOST_LEVELS} levels")
        return parameters

    @model_validator(mode="after")
    def _templates_can_be_filled(self) -> ContainerTool:
        for text in (*self.args, *self.volumes):
            if "\0" in text:
                raise ValueError("must not hold a NUL character")
            try:
                rendered(text, lambda _: None)
            except TemplateError as error:
                raise ValueError(str(error)) from None
            for path in paths_in(text):
                if path.partition(".")[0] not in self.parameters.get("properties", {}):
                    raise ValueError(f"asks for '{path[:64]}', which is none of its parameters")
        for text in self.volumes:
            if not paths_in(text):
                parse_volume(text)
        return self

    def problem(self, arguments: Mapping[str, Any]) -> str | None:
        """What is wrong with the arguments of a call, as a sentence, or None."""
        for name in self.parameters.get("required", []):
            if name not in arguments:
                return f"The argument '{name}' is missing."
        for name, schema in self.parameters.get("properties", {}).items():
            kind = schema.get("type") if isinstance(schema, dict) else None
            wanted = _TYPES.get(kind) if isinstance(kind, str) else None
            value = arguments.get(name)
            is_number = isinstance(value, bool) and bool not in (wanted or ())  # to Python `true` is the number 1
            if name in arguments and wanted and (not isinstance(value, wanted) or is_number):
                return f"The argument '{name}' must be of type {kind}."
        return None

    def args_for(self, arguments: Mapping[str, Any]) -> list[str]:
        """What the program is given for a call. What was not given is left out.

        Raises:
            ValueError: it would be left out behind an option, which then might take what comes next for its value; the
                message is a predicate.
        """
        given: list[str] = []
        before = ""
        for text in self.args:
            filled = _filled(text, arguments)
            if filled is None and before.startswith("-") and "=" not in before:
                raise ValueError(f"needs '{paths_in(text)[0]}', because an option stands before it")
            given += filled or []
            before = text
        return given

    def volumes_for(self, arguments: Mapping[str, Any]) -> list[str]:
        """What is mounted for a call.

        Raises:
            ValueError: an argument is no absolute path; the message is a predicate. Else a call could reach the volumes
                of other servers, leave the folder that a volume begins with, or say that it may write.
        """
        for path in (path for text in self.volumes for path in paths_in(text)):
            value = _find(arguments, path)
            items = value if isinstance(value, list) else [] if value is None else [value]
            if not all(map(_is_plain_path, items)):
                raise ValueError(f"must have an absolute path without ':' and '..' as '{path}'")
        return [volume for text in self.volumes for volume in _mounted(text, arguments)]


def _is_too_deep(schema: dict[str, Any]) -> bool:
    level: list[Any] = [schema]
    for _ in range(_MOST_LEVELS):
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, dict | list)
        ]
    return bool(level)


def _is_plain_path(value: object) -> bool:
    return isinstance(value, str) and value.startswith("/") and ":" not in value and ".." not in value.split("/")


def _mounted(text: str, arguments: Mapping[str, Any]) -> list[str]:
    """The volumes that one of a tool's comes to in a call. How it may be used stands for each of a list.

    Raises:
        ValueError: a template begins it and gives the name of a volume; such a volume may be anybody's.
    """
    whole, mode = (text[:-3], text[-3:]) if text.endswith(("}}:rw", "}}:ro")) else (text, "")
    mounted = [volume + mode for volume in _filled(whole, arguments) or []]
    if text.startswith("{{") and any(not volume.startswith("/") for volume in mounted):
        raise ValueError("must mount a folder: what begins with {{…}} is never the name of a volume")
    return mounted


def _filled(text: str, arguments: Mapping[str, Any]) -> list[str] | None:
    """What a template comes to in a call; None if an argument that it asks for was not given."""
    value = rendered(text, partial(_find, arguments))
    if isinstance(value, Unset):
        return None
    return [as_text(item) for item in value] if isinstance(value, list) else [as_text(value)]


def _find(arguments: Mapping[str, Any], path: str) -> Value | None:
    found: Any = arguments
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    value: Value | None = found
    return value


def _check_tool_names(tools: dict[str, ContainerTool]) -> dict[str, ContainerTool]:
    for name in tools:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", name):  # MCP 2025-11-25, server/tools, "Tool Names"
            raise ValueError("has a tool whose name is none: use letters, digits, '_', '-' and '.', at most 128 in all")
    return tools


ContainerTools = Annotated[dict[str, ContainerTool], AfterValidator(_check_tool_names)]
