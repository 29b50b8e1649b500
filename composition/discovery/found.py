"""`Found`: one server that a catalog, a registry or a client's configuration describes, as we would run it.

Pure values. The readers of those come in and make them; the command line, the tools for models and the search read
them. A found server is not registered: `resource` says what it becomes once everything in `needs` is there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from providers.resource import NAME_PATTERN

_LONGEST_NAME = 63


class Source(StrEnum):
    """Who described it."""

    CATALOG = "catalog"
    REGISTRY = "registry"
    CLIENT = "client"
    OWN = "own"


class NeedKind(StrEnum):
    """How a missing value is given: into the secret store, or with `--set`."""

    SECRET = "secret"
    CONFIG = "config"


@dataclass(frozen=True, slots=True)
class Need:
    """What a person has to give, or may give. `name` is that of the secret, or the key of `--set`; `variable` is the
    environment variable that it fills, where it is one. `example` never holds a real value."""

    name: str
    kind: NeedKind = NeedKind.CONFIG
    description: str = ""
    type: str = "string"
    is_required: bool = True
    default: str | None = None
    example: str | None = None
    variable: str | None = None
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class State(StrEnum):
    """What stands between a found server and its first call."""

    RUNNABLE = "runnable"
    NEEDS = "needs something"
    NOT_RUNNABLE = "not runnable"


@dataclass(frozen=True)
class Found:
    """One server that somebody describes.

    Attributes:
        name: what it is called with us; `original` is its own name, kept for the search.
        kind: how it runs: `container`, `remote`, `npm`, `pypi`, `oci`, `command` …
        resource: the keys of its `McpServerResource`, without what is still missing. Secrets are `${secret:NAME}`.
        needs: what a person has to give or may give, all of it.
        missing: those of `needs` that are required and not given. A secret always counts as missing here, because only
            the secret store knows.
        problem: why it cannot run here whatever is given, as a sentence.
        notes: what a person should know before adding it, a sentence each.
        tools: the names of its tools, where they are known, for the search.
    """

    name: str
    original: str
    source: Source
    kind: str
    title: str = ""
    description: str = ""
    resource: dict[str, Any] = field(default_factory=dict, repr=False)
    needs: tuple[Need, ...] = ()
    missing: tuple[Need, ...] = ()
    problem: str | None = None
    notes: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    version: str = ""

    @property
    def state(self) -> State:
        if self.problem is not None:
            return State.NOT_RUNNABLE
        return State.NEEDS if self.missing else State.RUNNABLE

    def in_one_line(self) -> str:
        """What is missing, or why it cannot run, for a person."""
        match self.state:
            case State.NOT_RUNNABLE:
                return f"not runnable here: {self.problem}"
            case State.NEEDS:
                return f"needs {', '.join(map(str, self.missing))}"
            case State.RUNNABLE:
                return "ready"


def fitting_name(original: str) -> str:
    """A name of ours made of somebody else's: lower case, '-' for what we do not allow.

    Names that differ may come out the same; whoever lists them sees to that with `told_apart`.
    """
    name = re.sub(r"[^a-z0-9]+", "-", original.lower()).strip("-")[:_LONGEST_NAME].rstrip("-")
    return name if NAME_PATTERN.match(name) else "server"


def told_apart(originals: list[str]) -> dict[str, str]:
    """A name of ours for each of these names: two never get the same one, and what already fits stays as it is."""
    taken = {name for name in originals if NAME_PATTERN.match(name)}
    names = {name: name for name in taken}
    numbers: dict[str, int] = {}  # the last one given to a name: strangers may send a great many that come out the same
    for original in originals:
        if original not in names:
            names[original] = _free(fitting_name(original), taken, numbers)
            taken.add(names[original])
    return names


def _free(name: str, taken: set[str], numbers: dict[str, int]) -> str:
    free = name
    while free in taken:
        numbers[name] = numbers.get(name, 1) + 1
        ending = f"-{numbers[name]}"
        free = name[: _LONGEST_NAME - len(ending)] + ending
    return free


def own_volume(server: str, volume: str) -> str:
    """What a Docker volume is called that an entry names: so that no entry reaches the data of others. No server's name
    has an underscore, so no other server's volume is called so."""
    return f"apollos-mcp-{server}_{volume}"
