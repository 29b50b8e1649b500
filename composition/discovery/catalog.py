"""Docker MCP Catalogs, versions 2 and 3, as they are published: what an entry says, field by field.

The sources of catalogs come in with the bytes of a file or of a document from the web; `catalog_resources` makes
resources of the entries. Fields that we do not know are passed over, those that we know are of their type, and an entry
that is not costs nobody else: it is listed with what is wrong with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from composition.discovery.catalog_document import Unreadable, plain_data
from providers.templates import as_text

MAX_ENTRIES = 20_000
_LONGEST_NAME = 256
_PROBLEMS_TOLD = 3


def _plain(text: str) -> str:
    """Text for people: what a terminal would obey, or what cannot be seen, becomes a space."""
    return "".join(sign if sign.isprintable() else " " for sign in text).strip()


def _as_text(value: object) -> object:
    """Who writes YAML by hand writes `value: 8080`, and means the text."""
    return as_text(value) if isinstance(value, bool | int | float) else value


def _no_control(text: str) -> str:
    if any(not sign.isprintable() and sign not in "\n\t" for sign in text):
        raise ValueError("holds a character that cannot be seen")
    return text


def _list_if_none(value: object) -> object:
    return [] if value is None else value


Shown = Annotated[str, AfterValidator(_plain)]
Text = Annotated[str, BeforeValidator(_as_text), AfterValidator(_no_control)]
Item = TypeVar("Item")
Several = Annotated[list[Item], BeforeValidator(_list_if_none)]
"""A list; `null` is an empty one, as Go writes it."""


class _Part(BaseModel):
    """Part of an entry. Types are exact, and errors quote nothing: an entry may hold somebody's token by mistake."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="ignore", hide_input_in_errors=True, populate_by_name=True
    )


class Secret(_Part):
    """A secret of an entry, and the variable that it fills."""

    name: Text = Field(min_length=1)
    env: Text = Field(default="", pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")
    example: Shown = ""
    description: Shown = ""
    required: bool | None = None


class Variable(_Part):
    """A variable of the container's environment: a constant or a template."""

    name: Text = Field(min_length=1, pattern=r"^[^=\s]+$")
    value: Text = ""


class Remote(_Part):
    """Where a server is that runs elsewhere."""

    transport_type: str = ""
    url: Text = ""
    headers: dict[Text, Text] | None = None


class Provider(_Part):
    """Who gives out tokens for a server, and which secret they fill."""

    provider: Shown = ""
    secret: Text = ""
    env: Text = ""


class OAuth(_Part):
    """How one logs in to a server."""

    providers: Several[Provider] = []
    scopes: Several[str] = []


class Form(_Part):
    """What a person may set, as a JSON schema would say it."""

    name: Text = ""
    description: Shown = ""
    properties: dict[str, Any] = Field(default={})
    required: Several[str] = []
    any_of: Several[dict[str, Any]] = Field(default=[], alias="anyOf")


class ToolContainer(_Part):
    """The container of one tool of a `poci` entry."""

    image: Text = ""
    command: Several[Text] = []
    volumes: Several[Text] = []
    user: Text = ""


class Tool(_Part):
    """A tool as a catalog tells of it."""

    name: Shown = ""
    description: Shown = ""
    arguments: Any = None
    parameters: Any = None
    annotations: Any = None
    container: ToolContainer | None = None


class Metadata(_Part):
    """What is said about an entry, for those who choose."""

    category: Shown = ""
    tags: Several[Shown] = []
    license: Shown = ""
    owner: Shown = ""
    pulls: int | None = None
    stars: int | None = None
    github_stars: int | None = Field(default=None, alias="githubStars")
    registry_url: Shown = Field(default="", alias="registryUrl")


class Entry(_Part):
    """One server of a catalog, all fields that are published."""

    description: Shown = ""
    title: Shown = ""
    icon: Shown = ""
    readme: Shown = ""
    tools_url: Shown = Field(default="", alias="toolsUrl")
    source: Shown = ""
    upstream: Shown = ""
    type: str = ""
    dynamic: dict[str, Any] | None = None
    long_lived: bool = Field(default=False, alias="longLived")
    date_added: Shown = Field(default="", alias="dateAdded")
    image: Text = ""
    remote: Remote | None = None
    sse_endpoint: Text = Field(default="", alias="sseEndpoint")
    tools: Several[Tool] = []
    secrets: Several[Secret] = []
    env: Several[Variable] = []
    command: Several[Text] = []
    volumes: Several[Text] = []
    user: Text = ""
    disable_network: bool = Field(default=False, alias="disableNetwork")
    allow_hosts: Several[Text] = Field(default=[], alias="allowHosts")
    extra_hosts: Several[Text] = Field(default=[], alias="extraHosts")
    prefix: Shown = ""
    config: Several[Form] = []
    metadata: Metadata = Metadata()
    oauth: OAuth | None = None
    prompts: Any = None
    resources: Any = None
    policy: Any = None

    @property
    def kind(self) -> str:
        """`type`, or what follows from the other fields where it is not given, as in older catalogs."""
        return self.type or ("remote" if self.remote or self.sse_endpoint else "server")


@dataclass(frozen=True)
class Catalog:
    """A catalog that was read: its entries, and what is wrong with those that could not be, both by name."""

    name: str
    title: str
    entries: dict[str, Entry]
    problems: dict[str, str]


def read_catalog(content: bytes) -> Catalog:
    """A catalog, from the bytes of its YAML or JSON.

    Raises:
        Unreadable: it is none; a single entry that is wrong does not raise.
    """
    data = plain_data(content)
    if not isinstance(data, dict) or not isinstance(data.get("registry"), dict):
        raise Unreadable("It is no MCP catalog: there is no table 'registry' in it.")
    if len(data["registry"]) > MAX_ENTRIES:
        raise Unreadable(f"It has more than {MAX_ENTRIES:,} servers.")
    entries: dict[str, Entry] = {}
    problems: dict[str, str] = {}
    for name, table in data["registry"].items():
        try:
            entries[_checked(name)] = Entry.model_validate(table)
        except ValidationError as error:
            problems[name] = _in_words(error)
        except ValueError as error:
            problems[_plain(name)[:_LONGEST_NAME]] = str(error)
    return Catalog(_line(data.get("name")), _line(data.get("displayName")), entries, problems)


def _checked(name: str) -> str:
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise ValueError(f"its name is empty, longer than {_LONGEST_NAME} or holds a character that cannot be seen")
    return name


def _line(text: object) -> str:
    return _plain(text)[:_LONGEST_NAME] if isinstance(text, str) else ""


def _in_words(error: ValidationError) -> str:
    """What is wrong with an entry, in one line that quotes no value."""
    details = error.errors(include_url=False, include_input=False, include_context=False)
    told = []
    for detail in details[:_PROBLEMS_TOLD]:
        place = ".".join(str(part) for part in detail["loc"] if part != "[key]")
        words = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
        told.append(
            f"'{_plain(place)[:_LONGEST_NAME]}' {words[:1].lower()}{words[1:]}" if place else "it is not a table"
        )
    more = len(details) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more else "")
