"""The record of one registered server, and who may see or change it. Pure values: no I/O, no SDK.

Configuration and stores make these records; everything that opens, pools or offers a server reads them. It
calls nobody but `identity`, for its rules on headers. A validator's message is a predicate ("must begin
with …"), so that it reads well behind the name of a key, and it never quotes a value: values hold secrets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from providers import secret_names
from providers.container_keys import (
    Capabilities,
    Image,
    Memory,
    Network,
    Ports,
    Program,
    PullPolicy,
    SecretName,
    StartPolicy,
    UrlPath,
    User,
    Volumes,
)
from providers.container_tool import ContainerTools
from providers.identity import ADMIN_ROLE, Identity, strip_auth_headers
from providers.reach import REACH_KEYS, reach_problem, transport_of
from providers.reach import TransportType as TransportType

NAME_PATTERN = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}\Z")
"""No underscore: in `time_get_current_time` everything before the first one is the server."""

EVERYONE = "*"

SERVERS_FILE = "servers.toml"
"""The creator of a resource that stands in the operator's file, wherever that lies and whatever it is called."""


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


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):  # to Python `true` is the number 1; who writes it means something else
        raise PydanticKnownError("float_type")
    return value


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not hold a NUL character")
    return text


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_no_boolean)]
"""A length of time that ends; a deadline of `inf` would be none."""

Count = Annotated[int, Field(gt=0), BeforeValidator(_no_boolean)]
Share = Annotated[float, Field(gt=0, le=1024, allow_inf_nan=False), BeforeValidator(_no_boolean)]

Text = Annotated[str, AfterValidator(_no_nul)]
"""Text that the operating system takes; it ends a string at a NUL."""


class Timeouts(BaseModel):
    """Deadlines in seconds. Each can be set for all servers and for one."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    connect: Seconds = 5.0
    initialize: Seconds = 10.0
    first_start: Seconds = Field(default=30.0, description="initialise, the first time: a package may be downloaded")
    pull: Seconds = Field(default=600.0, description="fetching a container's image")
    list: Seconds = Field(default=2.0, description="how long a listing waits for one backend")
    call: Seconds = Field(default=300.0, description="a call without progress")
    call_max: Seconds = Field(default=3600.0, description="a call however much progress it reports")
    question: Seconds = Field(
        default=300.0, description="how long a call waits for the answer of a client that cannot be sent questions"
    )
    shutdown: Seconds = 5.0


class ToolRules(BaseModel):
    """Which of a backend's tools are offered, and under which names. Names are the backend's own."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    include: tuple[str, ...] | None = Field(default=None, description="offer only these", examples=['["read_file"]'])
    exclude: tuple[str, ...] = Field(default=(), description="do not offer these", examples=['["delete_file"]'])
    rename: dict[str, str] = Field(
        default_factory=dict, description="old name to new name", examples=['{ read_file = "read" }']
    )
    description: dict[str, str] = Field(
        default_factory=dict,
        description="tool name to the text shown instead",
        examples=['{ read_file = "Reads a report." }'],
    )

    @field_validator("rename")
    @classmethod
    def _new_names_are_tool_names(cls, rename: dict[str, str]) -> dict[str, str]:
        for old, new in rename.items():
            if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", new):  # MCP 2025-11-25, server/tools, "Tool Names"
                raise ValueError(
                    f"gives '{old}' a name that no tool may have. Use letters, digits, '_', '-' and '.', "
                    "at most 128 in all"
                )
        return rename

    @model_validator(mode="after")
    def _lists_do_not_contradict(self) -> ToolRules:
        both = [place for place, name in enumerate(self.include or (), 1) if name in self.exclude]
        if both:
            raise ValueError(f"has item {both[0]} of include in exclude too. Keep it in one of them")
        return self

    @model_validator(mode="after")
    def _renames_do_not_collide(self) -> ToolRules:
        owners = {name: f"item {place} of include" for place, name in enumerate(self.include or (), 1)}
        for old in self.rename:
            owners.pop(old, None)
        for old, new in self.rename.items():
            if new in owners:
                raise ValueError(f"gives '{old}' the name that {owners[new]} has. Give each tool its own")
            owners[new] = f"'{old}'"
        return self

    def offers(self, tool: str) -> bool:
        return tool not in self.exclude and (self.include is None or tool in self.include)

    def public_name(self, tool: str) -> str:
        return self.rename.get(tool, tool)


_FRAMING_HEADERS = frozenset({"connection", "content-length", "transfer-encoding", "upgrade"})


def _header_problem(name: str, value: str) -> str | None:
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):  # a token of RFC 9110, 5.6.2
        return f"has the name '{name}'. A header's name has letters, digits and '-'"
    if re.search(r"[\r\n\0]", value):
        return f"has a line break or a NUL in the value of '{name}'. Remove it"
    if name.lower().startswith("x-mcp-"):
        return f"has '{name}', which is the gateway's own: it tells the backend who calls. Remove it"
    if name.lower() in _FRAMING_HEADERS or strip_auth_headers({name: value}):
        return f"has '{name}', which the gateway sets for each request. Remove it"
    return None


def _is_unexpanded(value: str, info: ValidationInfo) -> bool:
    """A disabled server keeps its `${VAR}` as written, so that a variable which is not set hurts nobody."""
    return "${" in value and info.data.get("is_enabled") is False


_BOOKKEEPING = frozenset({"created_by", "created_at", "updated_at", "version"})
_PRESENTATION = frozenset({"description", "tools", "required_roles", "is_enabled"})


class McpServerResource(BaseModel):
    """One registered server. Frozen: a change makes a new record with a higher `version`. Its repr leaves out
    what may hold a secret."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str
    is_enabled: bool = Field(default=True, examples=["true"])  # early: `url` and `python` ask for it
    description: str | None = Field(default=None, examples=['"What time it is, anywhere"'])
    transport_type: TransportType = TransportType.STDIO

    command: Text | None = Field(default=None, min_length=1, examples=['"uvx"'])
    args: tuple[Text, ...] = Field(default=(), repr=False, examples=['["--verbose"]'])
    env: dict[Text, Text] = Field(default_factory=dict, repr=False, examples=['{ LOG_LEVEL = "info" }'])
    cwd: Text | None = Field(default=None, min_length=1, examples=['"data"'])

    url: str | None = Field(default=None, min_length=1, repr=False, examples=['"https://docs.example.com/mcp"'])
    headers: dict[str, str] = Field(default_factory=dict, repr=False, examples=['{ X-Api-Key = "${DOCS_KEY}" }'])

    python: Text | None = Field(
        default=None,
        min_length=1,
        description="path/to/file.py:object, a FastMCP server in this process",
        examples=['"tools/clock.py:mcp"'],
    )

    docker_image: Image | None = Field(default=None, min_length=1, examples=['"mcp/time"'])
    docker_command: Program = Field(default=(), repr=False, examples=['["python", "-m", "my_server"]'])
    docker_tools: ContainerTools = Field(default_factory=dict, examples=['{ curl = { args = ["{{url}}"] } }'])
    docker_ports: Ports = Field(default=(), examples=['["8000/tcp"]'])
    docker_path: UrlPath | None = Field(default=None, examples=['"/mcp"'])
    docker_network: Network | None = Field(default=None, examples=['"internet"'])
    docker_volumes: Volumes = Field(default=(), examples=['["/srv/data:/data:ro"]'])
    docker_memory: Memory = Field(default="512m", examples=['"512m"'])
    docker_cpus: Share = Field(default=1.0, examples=["0.5"])
    docker_pids: Count = Field(default=128, le=1_000_000, examples=["128"])
    docker_user: User | None = Field(default=None, examples=['"1000:1000"'])
    docker_capabilities: Capabilities = Field(default=(), examples=['["CHOWN"]'])
    docker_read_only: bool = Field(default=True, examples=["true"])
    docker_secrets: dict[SecretName, Text] = Field(
        default_factory=dict, repr=False, examples=['{ TOKEN = "${TOKEN}" }']
    )
    start: StartPolicy = StartPolicy.LAZY
    idle_stop: Seconds | None = Field(default=None, examples=["300"])
    keep: bool = Field(default=False, examples=["true"])
    pull: PullPolicy = PullPolicy.MISSING

    isolation: Isolation = Isolation.SESSION
    per_user: bool = Field(default=False, examples=["true"])
    tools: ToolRules = Field(default=ToolRules(), examples=['{ exclude = ["delete_file"] }'])
    timeouts: Timeouts = Field(default=Timeouts(), examples=["{ call = 60 }"])
    required_roles: tuple[str, ...] = Field(default=(), examples=['["engineer"]'])

    created_by: str = SERVERS_FILE
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    updated_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    version: int = 0

    @model_validator(mode="before")
    @classmethod
    def _transport_follows_from_the_key(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "transport_type" in data:
            return data
        transport = transport_of([key for key in REACH_KEYS if data.get(key)])
        return {**data, "transport_type": transport} if transport else data

    @field_validator("name")
    @classmethod
    def _name_is_routable(cls, name: str) -> str:
        if not NAME_PATTERN.match(name):
            raise ValueError(
                "is not a server name; use lower-case letters, digits and '-', at most 63, "
                "beginning with a letter or digit (no underscore: it separates server and tool)"
            )
        return name

    @field_validator("env")
    @classmethod
    def _variables_have_names(cls, env: dict[str, str]) -> dict[str, str]:
        if any(not name or "=" in name for name in env):
            raise ValueError("has a variable whose name is empty or holds '='. Write NAME = \"value\"")
        return env

    @field_validator("url")
    @classmethod
    def _url_is_http(cls, url: str | None, info: ValidationInfo) -> str | None:
        if url is None or _is_unexpanded(url, info):
            return url
        try:
            parts = urlsplit(url)
            is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number, a bracket that is not closed
            is_whole = False
        if not is_whole or re.search(r"[\s\0]", url):
            raise ValueError("must begin with http:// or https://, name a host and hold no spaces")
        return url

    @field_validator("headers")
    @classmethod
    def _headers_are_safe(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            problem = _header_problem(name, value)
            if problem:
                raise ValueError(problem)
        if len({name.lower() for name in headers}) < len(headers):
            raise ValueError("has one header twice; upper and lower case are the same in its name. Keep one")
        return headers

    @field_validator("python")
    @classmethod
    def _python_names_an_object(cls, python: str | None, info: ValidationInfo) -> str | None:
        if python is None or _is_unexpanded(python, info):
            return python
        file, _, attribute = python.rpartition(":")
        if not file or not attribute.isidentifier():
            raise ValueError("must be a file and the name of its FastMCP object: path/to/file.py:object")
        return python

    @model_validator(mode="after")
    def _one_way_to_reach_it(self) -> McpServerResource:
        fields = type(self).model_fields
        given = [key for key in REACH_KEYS if getattr(self, key) != fields[key].get_default(call_default_factory=True)]
        problem = reach_problem(self.transport_type, given) or self._keeping_problem() or self._secrets_problem()
        if problem:
            raise ValueError(problem)
        return self

    def _keeping_problem(self) -> str | None:
        if self.keep and self.isolation is not Isolation.SHARED:
            return 'has keep = true, which needs isolation = "shared": no session outlives the gateway'
        return None

    def _secrets_problem(self) -> str | None:
        if self.per_user and self.isolation is Isolation.SHARED:
            return 'has per_user = true, and isolation = "shared": one session cannot hold the secrets of several users'
        for key in REACH_KEYS:
            if secret_names.is_in(value := getattr(self, key)):
                if key not in secret_names.KEYS:
                    return f"names a secret in '{key}', which others on the machine can read. Use env, headers or url"
                if problem := secret_names.problem(value):
                    return f"{problem[:5]} in '{key}'{problem[5:]}"
        return None

    @property
    def is_container(self) -> bool:
        return self.docker_image is not None

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
        """Whether two records say the same, bookkeeping aside."""
        return self._without(_BOOKKEEPING) == other._without(_BOOKKEEPING)

    def same_backend(self, other: McpServerResource) -> bool:
        """Whether two records reach their backend in the same way, so that open sessions may go on."""
        return self._without(_BOOKKEEPING | _PRESENTATION) == other._without(_BOOKKEEPING | _PRESENTATION)

    def _without(self, keys: frozenset[str]) -> dict[str, Any]:
        return self.model_dump(exclude=set(keys))


Operation = Literal["read", "write"]


def can_access(resource: McpServerResource, user: str, roles: Iterable[str], operation: Operation = "read") -> bool:
    """Whether a user may read (see and use) or write (change) a resource.

    Read: its creator, an `mcp.admin`, or one of its `required_roles`; `"*"` is everyone who is authenticated;
    an empty list is nobody else. Write: its creator or an `mcp.admin`. Users and roles compare exactly. The
    file is no user: a token for somebody called `servers.toml` creates nothing.

    Args:
        user: the key of an identity, which names its issuer: two issuers may both have an 'ann'.
    """
    return access_rule(resource, user, roles, operation) is not None


def access_rule(
    resource: McpServerResource, user: str, roles: Iterable[str], operation: Operation = "read"
) -> str | None:
    """By which rule a user may do that, as the audit calls it; None where none allows it."""
    held = frozenset(roles)
    if ADMIN_ROLE in held:
        return "admin"
    if user == resource.created_by != SERVERS_FILE:
        return "creator"
    if operation == "write":
        return None
    if EVERYONE in resource.required_roles:
        return "everyone"
    shared = sorted(held.intersection(resource.required_roles))
    return f"role:{shared[0]}" if shared else None


def may(identity: Identity, operation: Operation, resource: McpServerResource) -> bool:
    """`can_access` for a verified caller. Who makes a resource for one sets its `created_by` to `identity.key`."""
    return can_access(resource, identity.key, identity.roles, operation)


def creator_name(created_by: str) -> str:
    """A resource's creator as people know it: the user's id, without the issuer that `created_by` names before it."""
    return unquote(created_by.rpartition("/")[2])
