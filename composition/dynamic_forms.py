"""What the tools that add servers take, and how they show what was found; a stranger's text is made harmless.

`dynamic` and `adding` come in. Pure values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from composition.discovery.found import Found, NeedKind
from composition.dynamic_rules import what_it_is
from composition.finding import Place
from composition.own_tools import Arguments
from composition.tables import check
from providers.container_log import harmless
from providers.errors import CallerError
from providers.lines import Json
from providers.resource import McpServerResource

_SHORT, _LONG = 240, 2000
_NAME = "its name, as gateway_find_servers returned it; with the source 'url' the address of a remote server"
_SOURCE = "where it is found"


class FindServers(Arguments):
    query: str = Field(min_length=1, max_length=200, description="what the server should do, in a few words")
    source: Place | None = Field(default=None, description="look in the catalogs alone, or in the registry alone")
    limit: int = Field(default=10, ge=1, le=30, description="how many to return of each source")


class ListServers(Arguments):
    """It takes nothing."""


class DescribeServer(Arguments):
    name: str = Field(max_length=2000, description=_NAME)
    source: Place = Field(description=_SOURCE)


class AddServer(Arguments):
    name: str = Field(max_length=2000, description=_NAME)
    source: Place = Field(description=_SOURCE)
    config: dict[str, Any] = Field(
        default_factory=dict, description="what it needs, by name, as gateway_describe_server says. Never a secret"
    )
    called: str | None = Field(default=None, description="what to call it here: lower-case letters, digits and '-'")
    kind: str | None = Field(default=None, description="how to run it, where there are several ways")


class RemoveServer(Arguments):
    name: str = Field(description="a server that gateway_add_server added")


class ConfigureServer(Arguments):
    name: str = Field(description="a server that gateway_add_server added")
    config: dict[str, Any] = Field(default_factory=dict, description="what is to be changed. Never a secret")
    secrets: list[str] = Field(
        default_factory=list, max_length=20, description="names of secrets that its user is asked for anew"
    )


def resource_of(found: Found, keys: Mapping[str, Any]) -> McpServerResource:
    """
    Raises:
        CallerError: it does not make a server.
    """
    table = {"name": found.name, **found.resource}
    resource, problems = check(McpServerResource, {**table, **keys}, table)
    if resource is None or problems:
        told = "; ".join(f"'{'.'.join(map(str, each.key or ()))}' {each.text}" for each in problems)
        raise CallerError(f"'{harmless(found.original)}' does not make a server: {harmless(told)}.")
    return resource


def lacking(found: Found) -> list[str]:
    """What is missing of its configuration. Secrets are asked for later."""
    missing = [need for need in found.missing if need.kind is NeedKind.CONFIG]
    return [
        harmless(f"{need.name} ({need.description[:_SHORT]})" if need.description else need.name) for need in missing
    ]


def in_short(found: Found) -> Json:
    described = " ".join(found.description.split())
    return {
        "name": found.original,
        "source": str(found.source) if found.kind != "remote" or found.source != "own" else "url",
        "kind": found.kind,
        "title": harmless(found.title[:_SHORT]),
        "description": harmless(described[: _SHORT - 1] + "…" if len(described) > _SHORT else described),
        "state": harmless(found.in_one_line()[:_LONG]),
    }


def in_full(found: Found, resource: McpServerResource | None, approval: str) -> Json:
    """
    Args:
        resource: what it becomes, if that is known already.
        approval: who has to approve it.
    """
    config = [need for need in found.needs if need.kind is NeedKind.CONFIG]
    return in_short(found) | {
        "description": harmless(found.description[:_LONG]),
        "config": [
            {
                "name": need.name,
                "type": need.type,
                "required": need.is_required,
                "description": harmless(need.description[:_SHORT]),
                **({"default": need.default} if need.default is not None else {}),
                **({"choices": list(need.choices)} if need.choices else {}),
            }
            for need in config
        ],
        "secrets": [need.name for need in found.needs if need.kind is NeedKind.SECRET],
        "notes": [harmless(note) for note in found.notes],
        "tools": list(found.tools)[:100],
        **({"becomes": [harmless(line) for line in what_it_is(resource)]} if resource else {}),
        **({"approval": approval} if resource else {}),
    }


def texts_in(value: Any) -> list[str]:
    match value:
        case str():
            return [value]
        case Mapping():
            return [text for pair in value.items() for each in pair for text in texts_in(each)]
        case list():
            return [text for each in value for text in texts_in(each)]
    return []
