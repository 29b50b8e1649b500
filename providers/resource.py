"""The record of one registered server, and who may see or change it. Pure values: no I/O, no SDK."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, field_validator, model_validator

from providers.identity import ADMIN_ROLE

NAME_PATTERN = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}$")
"""No underscore: everything before the first underscore of a tool's name is the server (`time_get_current_time`)."""

EVERYONE = "*"


class TransportType(StrEnum):
    STDIO = "stdio"
    STREAMABLE_HTTP = "streamable_http"
    SSE = "sse"
    PYTHON = "python"


class Isolation(StrEnum):
    """Who shares a backend session: each client session has its own, each user, everybody, or each call."""

    SESSION = "session"
    USER = "user"
    SHARED = "shared"
    CALL = "call"


class ServerKind(StrEnum):
    """Where a component comes from, told in a tool's `_meta`."""

    BUILT_IN = "built-in"
    CLIENT = "client"
    SERVICE = "service"


class Timeouts(BaseModel):
    """Deadlines in seconds. Each can be set for all servers and for one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    connect: PositiveFloat = 5.0
    initialize: PositiveFloat = 10.0
    first_start: PositiveFloat = Field(30.0, description="initialise, the first time: a package may be downloaded")
    list: PositiveFloat = Field(2.0, description="how long a listing waits for one backend")
    call: PositiveFloat = Field(300.0, description="a call without progress")
    call_max: PositiveFloat = Field(3600.0, description="a call however much progress it reports")
    shutdown: PositiveFloat = 5.0


class ToolRules(BaseModel):
    """Which of a backend's tools are offered, and under which names. Names are the backend's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    include: tuple[str, ...] | None = Field(None, description="offer only these")
    exclude: tuple[str, ...] = Field((), description="do not offer these")
    rename: dict[str, str] = Field(default_factory=dict, description="old name to new name")
    description: dict[str, str] = Field(default_factory=dict, description="tool name to the text shown instead")

    @model_validator(mode="after")
    def _renames_do_not_collide(self) -> ToolRules:
        targets = list(self.rename.values())
        doubled = sorted({target for target in targets if targets.count(target) > 1})
        if doubled:
            raise ValueError(f"two tools are renamed to '{doubled[0]}'; give each its own name")
        return self

    def offers(self, tool: str) -> bool:
        return tool not in self.exclude and (self.include is None or tool in self.include)

    def public_name(self, tool: str) -> str:
        return self.rename.get(tool, tool)


Names = Annotated[tuple[str, ...], Field(default=())]


class McpServerResource(BaseModel):
    """One registered server. Frozen: a change makes a new record with a higher `version`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str | None = None
    transport_type: TransportType = TransportType.STDIO

    command: str | None = None
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    cwd: str | None = None

    url: str | None = None
    headers: dict[str, str] = Field(default_factory=dict)

    python: str | None = Field(None, description="path/to/file.py:object, a FastMCP server in this process")

    isolation: Isolation = Isolation.SESSION
    tools: ToolRules = Field(default_factory=ToolRules)
    timeouts: Timeouts = Field(default_factory=Timeouts)
    required_roles: tuple[str, ...] = ()
    is_enabled: bool = True

    created_by: str = "servers.toml"
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    updated_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    version: int = 0

    @field_validator("name")
    @classmethod
    def _name_is_routable(cls, name: str) -> str:
        if not NAME_PATTERN.match(name):
            raise ValueError(
                f"'{name}' is not a server name; use lower-case letters, digits and '-', at most 63, "
                "beginning with a letter or digit (no underscore: it separates server and tool)"
            )
        return name

    @field_validator("url")
    @classmethod
    def _url_is_http(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"^https?://[^/\s]+", url):
            raise ValueError("a url begins with http:// or https:// and names a host")
        return url

    @field_validator("headers")
    @classmethod
    def _headers_are_safe(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or re.search(r"[\r\n\0]", value):
                raise ValueError(f"header '{name}' has a character that no header may have")
            if name.lower().startswith("x-mcp-"):
                raise ValueError(f"header '{name}' is the gateway's own; it tells the backend who calls")
        return headers

    @model_validator(mode="after")
    def _one_way_to_reach_it(self) -> McpServerResource:
        wanted = {
            TransportType.STDIO: "command",
            TransportType.STREAMABLE_HTTP: "url",
            TransportType.SSE: "url",
            TransportType.PYTHON: "python",
        }[self.transport_type]
        given = [key for key in ("command", "url", "python") if getattr(self, key)]
        if given != [wanted]:
            raise ValueError(
                f"transport_type '{self.transport_type}' needs '{wanted}'"
                + (f", and not '{next(key for key in given if key != wanted)}'" if set(given) - {wanted} else "")
            )
        return self

    @property
    def kind(self) -> ServerKind:
        match self.transport_type:
            case TransportType.PYTHON:
                return ServerKind.BUILT_IN
            case TransportType.STDIO:
                return ServerKind.CLIENT
            case _:
                return ServerKind.SERVICE

    def same_offer(self, other: McpServerResource) -> bool:
        """Whether two records describe the same backend, whatever their bookkeeping says."""
        return self._substance() == other._substance()

    def _substance(self) -> dict[str, Any]:
        return self.model_dump(exclude={"created_at", "updated_at", "version"})


Operation = Literal["read", "write"]


def can_access(
    resource: McpServerResource, user_id: str, roles: Iterable[str], operation: Operation = "read"
) -> bool:
    """Whether a user may read (see and use) or write (change) a resource.

    Read: its creator, an `mcp.admin`, or one of its `required_roles`; `"*"` is everyone who is authenticated; an
    empty list is nobody else. Write: its creator or an `mcp.admin`. User ids and roles compare exactly.
    """
    held = frozenset(roles)
    if ADMIN_ROLE in held or (user_id == resource.created_by):
        return True
    if operation == "write":
        return False
    return EVERYONE in resource.required_roles or not held.isdisjoint(resource.required_roles)
