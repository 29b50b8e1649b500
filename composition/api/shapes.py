"""The JSON of an adapter, and the record of a server that it stands for.

`adapters` comes in with bodies, and with records to be shown; `openapi` with the question how they look. The names are
those of Microsoft's MCP Gateway and, for the rest, the keys of servers.toml in camelCase. Types are checked here,
strictly; what belongs together is checked by the record itself. What may hold a secret is never shown: `masks` says how
it is sent back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.alias_generators import to_camel

from composition.api.masks import MASK, masked, masked_url, restored
from composition.api.problems import Wrong, invalid
from composition.tables import did_you_mean
from providers.reach import REACH_KEYS, TransportType, reach_problem
from providers.resource import SERVERS_FILE, McpServerResource, Timeouts, ToolRules, creator_name

WRITTEN_BY_US = ("id", "created_by", "created_at", "last_updated_at", "version", "source", "kind")
"""Members that the gateway writes. They may be sent back and are ignored, so that an answer can be a request."""
_NOT_OFFERED = {"python", "docker_image", "created_by", "created_at", "updated_at", "version"}
_OFFERED = {name: field for name, field in McpServerResource.model_fields.items() if name not in _NOT_OFFERED}
_INNER: dict[str, type[BaseModel]] = {"timeouts": Timeouts, "tools": ToolRules}
_ALWAYS_SHOWN = {"name", "description", "transport_type", "isolation", "is_enabled", "required_roles"}

_MOST_MEMBERS = 500
_MOST_HINTS = 5
"""Finding the word that was meant takes as long as all other checks."""

_IMAGE_NAME = r"^[a-zA-Z0-9][a-zA-Z0-9._:/\[\]-]{0,254}$"
_IMAGE_VERSION = r"^[a-zA-Z0-9_][a-zA-Z0-9._:@-]{0,254}$"


class _MicrosoftKeys(BaseModel):
    """What Microsoft's gateway has and a record of ours has not, or under another name."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    image_name: str | None = Field(default=None, pattern=_IMAGE_NAME)
    image_version: str | None = Field(
        default=None, pattern=_IMAGE_VERSION, description="a tag, or a digest that begins with sha256:"
    )
    environment_variables: dict[str, str] | None = Field(default=None, description="the same as env; give one of them")
    replica_count: int = Field(default=1, ge=1, le=1, description="1 is the only one: the gateway scales by its pool")
    use_workload_identity: Literal[False] = False
    id: Any = None
    created_by: Any = None
    created_at: Any = None
    last_updated_at: Any = None
    version: Any = None
    source: Any = None
    kind: Any = None


_fields: dict[str, Any] = {name: (field.annotation, field) for name, field in _OFFERED.items()}
_fields["name"] = (str, Field(default=""))
_fields["transport_type"] = (Literal["stdio", "streamable_http", "sse"] | None, None)
Form: type[BaseModel] = create_model("Form", __base__=_MicrosoftKeys, **_fields)
"""A body as it is written: the types of its members, and nothing about how they go together."""

_SPELLED = {to_camel(name): name for name in Form.model_fields}
_INNER_SPELLED = {outer: {to_camel(name): name for name in model.model_fields} for outer, model in _INNER.items()}
_WORDS = re.compile(rf"\b({'|'.join(sorted((name for name in _OFFERED if '_' in name), key=len, reverse=True))})\b")


def read(body: Mapping[str, Any], deadlines: Timeouts, stored: McpServerResource | None = None) -> McpServerResource:
    """The record that a body asks for; its bookkeeping is not set.

    Args:
        deadlines: those of the gateway, which a new record has where the body says nothing else; a stored one keeps its
            own.
        stored: the record as it is, whose name the new one has; masked values in the body stand for its own.

    Raises:
        Refusal: with everything that is wrong with the body.
    """
    if too_large := list(_too_large(body)):
        raise invalid(too_large)
    data, wrong = _snake(body)
    typed, found = _typed(data)
    wrong += found
    values, found = _record_keys(typed)
    wrong += found
    values["timeouts"] = (stored.timeouts if stored else deadlines).model_dump() | values.get("timeouts", {})
    if stored is not None:
        if values.setdefault("name", stored.name) != stored.name:
            wrong.append(Wrong("name", "must be the name in the address; a server cannot be renamed"))
    elif not values.get("name"):
        wrong.append(Wrong("name", "is needed"))
    wrong += [Wrong(_camel(key), text) for key, text in restored(values, stored)]
    resource, found = _record(values, {each.key.partition(".")[0] for each in wrong})
    if wrong or found or resource is None:
        raise invalid(dict.fromkeys([*wrong, *found]))
    return resource


def _too_large(body: Mapping[str, Any], outer: str = "") -> Iterator[Wrong]:
    """What has more members than anybody needs: rules are checked for each, and some for each pair."""
    if len(body) > _MOST_MEMBERS:
        yield Wrong(outer[:80], f"has more than {_MOST_MEMBERS} members")
        return
    for key, value in body.items():
        if isinstance(value, dict) and not outer:
            yield from _too_large(value, key)
        elif isinstance(value, list | dict) and len(value) > _MOST_MEMBERS:
            yield Wrong(f"{outer}.{key}".lstrip(".")[:80], f"has more than {_MOST_MEMBERS} members")


def _snake(body: Mapping[str, Any]) -> tuple[dict[str, Any], list[Wrong]]:
    """The members that there are, as a record spells them, and what is wrong with the others."""
    data, wrong = _renamed("", body, _SPELLED)
    for outer, names in _INNER_SPELLED.items():
        if isinstance(data.get(outer), dict):
            data[outer], unknown = _renamed(f"{outer}.", data[outer], names)
            wrong += unknown
    return data, wrong


def _renamed(outer: str, table: Mapping[str, Any], names: Mapping[str, str]) -> tuple[dict[str, Any], list[Wrong]]:
    unknown = [key for key in table if key not in names]
    wrong = [
        Wrong(outer + key[:80], f"is unknown.{did_you_mean(key, names) if place < _MOST_HINTS else ''}".rstrip("."))
        for place, key in enumerate(unknown)
    ]
    return {names[key]: value for key, value in table.items() if key in names}, wrong


def _typed(data: Mapping[str, Any]) -> tuple[dict[str, Any], list[Wrong]]:
    """The members whose types are right, and what is wrong with the others."""
    try:
        return Form.model_validate_json(json.dumps(data), strict=True).model_dump(exclude_unset=True), []
    except ValidationError as error:
        wrong = list(_wrongs(error))
        bad = {
            str(detail["loc"][0]) for detail in error.errors(include_url=False, include_input=False) if detail["loc"]
        }
        if not bad:  # it is nested too deep to be read
            return {}, wrong
        rest, more = _typed({key: value for key, value in data.items() if key not in bad})
        return rest, wrong + more


def _record_keys(typed: Mapping[str, Any]) -> tuple[dict[str, Any], list[Wrong]]:
    """Microsoft's members as those of a record."""
    wrong: list[Wrong] = []
    values = {key: value for key, value in typed.items() if key in _OFFERED and value is not None}
    variables = typed.get("environment_variables")
    if variables is not None and values.setdefault("env", variables) != variables:
        wrong.append(Wrong("env", "stands beside environmentVariables with another value. Keep one of them"))
    image, version = typed.get("image_name"), typed.get("image_version")
    if image is not None:
        sign = "@" if str(version).startswith("sha256:") else ":"
        values["docker_image"] = f"{image}{sign}{version}" if version else image
    elif version is not None:
        wrong.append(Wrong("imageVersion", "needs imageName"))
    return values, wrong


def _record(values: Mapping[str, Any], bad: set[str]) -> tuple[McpServerResource | None, list[Wrong]]:
    try:
        return McpServerResource.model_validate({**values, "name": values.get("name") or "unnamed"}), []
    except ValidationError as error:
        found = [each for each in _wrongs(error) if each.key not in bad]
        if all(each.key for each in found):  # the record asks how it is reached only where all else is in order
            given = [key for key in REACH_KEYS if values.get(key)]
            transport = values.get("transport_type")
            problem = reach_problem(TransportType(transport) if transport else None, given)
            found += [Wrong("", _spelled(problem))] if problem and not bad else []
        return None, found


def _wrongs(error: ValidationError) -> Iterator[Wrong]:
    """What pydantic found, in words that never quote a value."""
    for detail in error.errors(include_url=False, include_input=False):
        parts = [part for part in detail["loc"] if part != "[key]"]
        if detail["type"] == "value_error":
            text = str(detail["ctx"]["error"])
        elif detail["type"] == "extra_forbidden":
            text = "is unknown"
        else:
            text = detail["msg"].replace("Input should", "should").replace("String should", "should")
        yield Wrong(_camel(".".join(str(part) for part in parts)), _spelled(text))


def _camel(key: str) -> str:
    head, dot, rest = key.partition(".")
    if head == "docker_image":
        return "imageName"
    inner = to_camel(rest) if head in _INNER else rest
    return f"{to_camel(head)}{dot}{inner}"


def _spelled(text: str) -> str:
    """A sentence about a record in the words of the API."""
    text = _WORDS.sub(lambda match: to_camel(match[1]), text).replace("docker_image", "imageName")
    return text.replace(" or 'python' (a server in a file)", "").replace(
        "(a remote server), '", "(a remote server) or '"
    )


def shown(resource: McpServerResource) -> dict[str, Any]:
    """A record as everybody sees it who may read it. What may hold a secret is masked."""
    defaults = McpServerResource.model_fields
    data = masked(resource).model_dump(mode="json", exclude=_NOT_OFFERED | {"env"})
    own = {
        key: value
        for key, value in data.items()
        if key in _ALWAYS_SHOWN or getattr(resource, key) != defaults[key].get_default(call_default_factory=True)
    }
    for outer in _INNER_SPELLED.keys() & own.keys():
        own[outer] = {to_camel(key): value for key, value in own[outer].items()}
    body = {to_camel(key): value for key, value in own.items()}
    if resource.docker_image is not None:
        body["imageName"], body["imageVersion"] = image_parts(resource.docker_image)
    return body | {
        "environmentVariables": dict.fromkeys(resource.env, MASK),
        "replicaCount": 1,
        "useWorkloadIdentity": False,
        "id": resource.name,
        "createdBy": creator_name(resource.created_by),
        "createdAt": resource.created_at.isoformat(),
        "lastUpdatedAt": resource.updated_at.isoformat(),
        "version": resource.version,
        "source": SERVERS_FILE if resource.created_by == SERVERS_FILE else "api",
        "kind": str(resource.kind),
    }


def image_parts(image: str) -> tuple[str, str | None]:
    """An image's name and its version, so that `_record_keys` makes the same image of them."""
    bare, at, digest = image.partition("@")
    name, colon, tag = bare.rpartition(":")
    if not colon or "/" in tag:  # the colon of a registry's port
        name, tag = bare, ""
    if at:
        return name, f"{tag}@{digest}" if tag else digest
    return name, tag or None


def merge_base(resource: McpServerResource) -> dict[str, Any]:
    """What a merge patch is laid over. How a server is reached decides its transport, unless that was chosen."""
    body = shown(resource)
    if resource.transport_type is not TransportType.SSE:
        del body["transportType"]
    if not resource.env:
        del body["environmentVariables"]
    return body


__all__ = ["MASK", "Form", "masked_url", "merge_base", "read", "shown"]
