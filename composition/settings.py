"""`Settings`: what the operator chose for the gateway itself, from `[gateway]` of servers.toml and
`APOLLOS_*` in the environment; read once, frozen. What one server needs stands in its resource, never here.

`servers_file` comes in, with the table that it has read; `tables` makes values of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import StrEnum
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic_core import PydanticKnownError

from composition.auth_settings import AuthSettings as AuthSettings
from composition.auth_settings import auth_problems
from composition.tables import Key, Problem, check, expand, without
from providers.identity import ADMIN_ROLE
from providers.ownership import hidden, state_folder
from providers.resource import Seconds, Timeouts


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticKnownError("int_type")
    return value


def _split(value: object) -> object:
    """An environment variable holds several paths as PATH does."""
    return value.split(os.pathsep) if isinstance(value, str) else value


def _words(value: object) -> object:
    return value.split() if isinstance(value, str) else value


def _check_whole(path: str) -> str:
    if not path.startswith(("/", "~")) or not path.isprintable():
        raise ValueError("must be a whole path, which begins with / or ~")
    if os.path.expanduser(path).startswith("~"):  # noqa: PTH111 - Path's raises
        raise ValueError("begins with a '~' whose folder is not known here. Write the whole path")
    return path


def _check_address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ValueError("must be an address that begins with http:// or https:// and holds no user, query or fragment")
    if any(sign in parts.hostname for sign in "*?[]") or not url.isprintable():
        raise ValueError("must name one host, without '*'")
    return url.rstrip("/")


Count = Annotated[int, Field(gt=0), BeforeValidator(_no_boolean)]
Paths = Annotated[tuple[str, ...], BeforeValidator(_split)]
Words = Annotated[tuple[str, ...], BeforeValidator(_words)]

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_no_boolean)]


OWN_SERVER = "gateway"
"""Whose the gateway's own tools are: `gateway_find_tools`. No server may have this name where there are own tools."""


class ToolListing(StrEnum):
    """What `tools/list` shows: all tools, or those with which a model finds the others."""

    ALL = "all"
    SEARCH = "search"


class DynamicScope(StrEnum):
    """For whom a server is there that was added through the own tools."""

    SESSION = "session"
    GATEWAY = "gateway"


class AuditMode(StrEnum):
    """Whether decisions and calls are written down; `strict` writes before the answer leaves."""

    OFF = "off"
    ON = "on"
    STRICT = "strict"


class Settings(BaseModel):
    """The gateway's own settings. `max_connections` of None means: 20, or 200 under `serve`."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(default="Apollos MCP Gateway", min_length=1, examples=['"Team tools"'])
    store: str | None = Field(default=None, min_length=1, repr=False, examples=['"sqlite:///srv/apollos/servers.db"'])
    max_connections: Count | None = Field(default=None, examples=["20"])
    acquire_timeout: Seconds = Field(default=5.0, description="seconds a call waits for a session")
    idle_timeout: Seconds = Field(default=300.0, description="seconds after which an idle session is closed")
    max_lifetime: Seconds = Field(default=1800.0, description="seconds until a session is replaced, once idle")
    health_interval: Seconds = Field(default=60.0, description="seconds between checks of idle sessions")
    refresh_interval: Seconds = Field(default=300.0, description="seconds until a catalogue is listed again")
    drain_timeout: Seconds = Field(default=20.0, description="seconds that open calls get at shutdown")
    session_timeout: Seconds = Field(default=1800.0, description="seconds until a silent client session is ended")
    max_sessions_per_user: Count = Field(default=500, description="sessions that one user may have open")
    resumable: bool = Field(default=True, description="whether clients may take up a stream that broke")
    max_containers: Count = Field(default=20, examples=["20"])
    docker_host: str | None = Field(default=None, min_length=1, examples=['"unix:///var/run/docker.sock"'])
    docker_allowed_paths: Paths = Field(default=(), examples=['["/srv/data"]'])
    state_dir: str | None = Field(default=None, min_length=1, examples=['"/var/lib/apollos"'])
    tools: ToolListing = Field(default=ToolListing.ALL, examples=['"search"'])
    pinned_tools: Words = Field(default=(), examples=['["time_*"]'])
    dynamic: bool = Field(default=False, description="whether models may find and add servers")
    dynamic_scope: DynamicScope = Field(default=DynamicScope.SESSION, examples=['"gateway"'])
    dynamic_secrets: bool = Field(default=False, description="whether a client's form may ask its user for secrets")
    dynamic_allow: Words = Field(default=(), examples=['["image:mcp/*", "pypi:mcp-server-*"]'])
    keyring: bool = Field(default=False, description="whether secrets are kept in the keyring of this user")
    catalogs: Words = Field(default=(), examples=['["https://catalogs.example.com/mcp.yaml"]'])
    public_url: str | None = Field(default=None, min_length=1, examples=['"https://mcp.example.com"'])
    replica_url: str | None = Field(default=None, min_length=1, examples=['"http://10.0.0.3:8808"'])
    operator_role: str = Field(default=ADMIN_ROLE, min_length=1, examples=['"mcp.operator"'])
    allowed_networks: Words = Field(default=(), examples=['["10.0.0.0/8"]'])
    max_calls_per_user: Count = Field(default=64, description="calls that one user may have under way")
    max_requests_per_second: Rate = Field(default=100.0, description="requests of one user, on average")
    audit: AuditMode = Field(default=AuditMode.OFF, examples=['"on"'])
    audit_file: str | None = Field(default=None, min_length=1, examples=['"/var/log/apollos/audit.jsonl"'])
    mcp_registry: str = Field(
        default="https://registry.modelcontextprotocol.io", min_length=1, examples=['"https://registry.example.com"']
    )
    auth: AuthSettings = Field(default=AuthSettings(), examples=['{ tokens = "tokens.json" }'])
    timeouts: Timeouts = Field(default=Timeouts(), examples=["{ call = 60 }"])

    @field_validator("docker_allowed_paths")
    @classmethod
    def _folders_are_whole(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        for path in paths:
            _check_whole(path)
        return paths

    @field_validator("state_dir")
    @classmethod
    def _folder_is_whole(cls, path: str | None) -> str | None:
        return path if path is None else _check_whole(path)

    @field_validator("audit_file")
    @classmethod
    def _audit_file_is_whole(cls, path: str | None) -> str | None:
        return path if path is None else _check_whole(path)

    @field_validator("public_url", "replica_url")
    @classmethod
    def _addresses_are_whole(cls, url: str | None) -> str | None:
        return url if url is None else _check_address(url)

    @field_validator("mcp_registry")
    @classmethod
    def _registry_is_whole(cls, url: str) -> str:
        return _check_address(url)

    @field_validator("allowed_networks")
    @classmethod
    def _networks_are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            try:
                ip_network(network)
            except ValueError:
                raise ValueError("must hold networks such as 10.0.0.0/8 or fd00::/8") from None
        return networks

    @field_validator("catalogs")
    @classmethod
    def _catalogs_are_places(cls, places: tuple[str, ...]) -> tuple[str, ...]:
        if not all(place.startswith(("https://", "http://", "/", "~")) and place.isprintable() for place in places):
            raise ValueError("must hold addresses that begin with https://, and whole paths of files")
        return places

    @field_validator("dynamic_allow")
    @classmethod
    def _patterns_say_of_what(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            kind, colon, rest = pattern.partition(":")
            if not colon or not rest or kind not in ("image", "npm", "pypi", "remote"):
                raise ValueError(
                    "must hold patterns such as image:mcp/*, npm:@scope/*, pypi:NAME or remote:https://HOST/*"
                )
        return patterns

    @field_validator("store")
    @classmethod
    def _store_is_offered(cls, store: str | None) -> str | None:
        if store is not None and not store.startswith(("memory://", "sqlite://", "redis://", "rediss://")):
            raise ValueError("must begin with memory://, sqlite://, redis:// or rediss://")
        return store


def read_settings(table: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[Settings, list[Problem]]:
    """The settings of `[gateway]` and the environment, or the default ones and what is wrong.

    An `APOLLOS_*` variable wins over the key that it stands for; an empty one counts as not set.
    """
    given = {key: environ[name] for name, key in VARIABLES.items() if environ.get(name)}
    for key in given:
        table = without(table, key)
    data, unset = expand(table, environ)
    for (*outer, last), value in given.items():
        inner = data.setdefault(outer[0], {}) if outer else data
        if isinstance(inner, dict):
            inner[last] = value
    settings, problems = check(Settings, data, table, unset)
    problems += auth_problems(settings.auth) if settings else []
    names: dict[Key | None, str] = {key: name for name, key in VARIABLES.items() if key in given}
    return settings or Settings(), [
        Problem(None, f"environment variable {names[key]} {text}") if key in names else Problem(key, text)
        for key, text in problems
    ]


_INNER: dict[str, type[BaseModel]] = {"timeouts": Timeouts, "auth": AuthSettings}


def _variables() -> dict[str, tuple[str, ...]]:
    keys: list[tuple[str, ...]] = [(name,) for name in Settings.model_fields if name not in _INNER]
    keys += [(table, name) for table, model in _INNER.items() for name in model.model_fields]
    return {"_".join(("APOLLOS", *key)).upper(): key for key in keys}


VARIABLES = _variables()
"""The environment variables that override `[gateway]`, each with the key it stands for."""


def unseen(settings: Settings, configuration: Path) -> tuple[str, ...]:
    """The paths that no container may see: whoever reads or writes there is the gateway's operator.

    Args:
        configuration: the servers.toml in use.
    """
    store = urlsplit(settings.store or "")
    files = (settings.auth.tokens, settings.audit_file, store.path if store.scheme == "sqlite" else None)
    return (*hidden(state_folder(settings.state_dir), configuration), *(file for file in files if file))
