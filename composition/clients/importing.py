"""The command `import`: the servers of a client's configuration become tables of servers.toml.

`client_commands` comes in. First a plan is made, which holds no secret's value where it is shown; only `carry_out`
changes something: secrets go to their keeper, then the tables into the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from composition.clients.kinds import Client
from composition.clients.reading import ClientFile, Entry, read_client_file
from composition.clients.secret_keeping import SecretKeeper
from composition.clients.servers_writing import add_servers, problem_with, servers_in, toml_of
from composition.discovery.found import fitting_name

_REFERENCE = re.compile(r"\$\{secret:([^{}]*)\}")
_REACH = ("command", "args", "cwd", "url", "docker_image", "docker_command", "docker_tools", "python", "env", "headers")
"""What makes two servers the same one. Variables and headers do too: they often say whose account it is."""
_VERBS = ("run", "exec", "tool", "x", "dlx")
"""Of what runs packages, in front of the package."""


class Step(StrEnum):
    """What becomes of an entry."""

    ADD = "new"
    KNOWN = "already there"
    ITSELF = "is this gateway"
    REFUSED = "not taken"


@dataclass(frozen=True)
class Planned:
    """One entry and what becomes of it; `why` explains, for a person."""

    entry: Entry
    step: Step
    why: str = ""

    @property
    def shown(self) -> dict[str, Any]:
        """What may be told of it: names, and no value that could be a secret."""
        entry = self.entry
        return {
            "name": entry.name,
            "original": entry.original,
            "step": str(self.step),
            "why": self.why,
            "secrets": sorted({*entry.secrets, *entry.wanted}),
            "notes": list(entry.notes),
        }


@dataclass(frozen=True)
class Plan:
    """What an import would do."""

    file: ClientFile
    servers_toml: Path
    planned: tuple[Planned, ...] = ()

    @property
    def new(self) -> list[Entry]:
        return [each.entry for each in self.planned if each.step is Step.ADD]


@dataclass(frozen=True)
class Outcome:
    """What an import did. `unset` are secrets that somebody has to set by hand."""

    added: tuple[str, ...]
    backup: Path | None
    kept: tuple[str, ...] = ()
    unset: tuple[str, ...] = field(default=())


def plan_import(
    path: Path,
    client: Client | None,
    servers_toml: Path,
    environ: Mapping[str, str] = os.environ,
    keeper: SecretKeeper | None = None,
) -> Plan:
    """What an import of this file would do. It blocks.

    Args:
        keeper: tells two accounts at one server apart, by their secrets.

    Raises:
        ConfigurationError: one of the two files cannot be read.
    """
    known = servers_in(servers_toml)
    file = read_client_file(path, client, taken=known)
    there = {entry.original: same_server(entry, known, keeper) for entry in file.entries}
    return Plan(
        file,
        servers_toml,
        tuple(_planned(entry, file, servers_toml, known, there[entry.original], environ) for entry in file.entries),
    )


def _planned(
    entry: Entry,
    file: ClientFile,
    servers_toml: Path,
    known: Mapping[str, Mapping[str, Any]],
    there: str | None,
    environ: Mapping[str, str],
) -> Planned:
    if entry.problem:
        return Planned(entry, Step.REFUSED, entry.problem)
    if is_gateway(entry.table):
        return Planned(entry, Step.ITSELF)
    if there:
        return Planned(entry, Step.KNOWN, f"as {there}")
    problem = problem_with(servers_toml, _toml(entry, file), environ)
    return Planned(entry, Step.REFUSED, problem) if problem else Planned(entry, Step.ADD, _named_beside(entry, known))


def _named_beside(entry: Entry, known: Mapping[str, Mapping[str, Any]]) -> str:
    """Why an entry gets another name than its own, and whether it is there already with other words behind it."""
    told = []
    if entry.name != (own := fitting_name(entry.original)) and own in known:
        told.append(f"the name '{own}' is taken")
    if same := [name for name, other in known.items() if _package(other) == _package(entry.table)]:
        told.append(f"'{same[0]}' is the same one already, with other arguments, variables or headers")
    return "; ".join(told)


def _package(table: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a server is, whatever it is told: its image, its address, or its program with the first word behind it."""
    words = [
        word for word in table.get("args") or () if isinstance(word, str) and word[:1] != "-" and word not in _VERBS
    ]
    return table.get("docker_image"), table.get("url"), table.get("python"), table.get("command"), words[:1]


def carry_out(plan: Plan, keeper: SecretKeeper | None, environ: Mapping[str, str] = os.environ) -> Outcome:
    """Keep the secrets and add the tables. It blocks.

    Raises:
        ConfigurationError: servers.toml would not load with them, or cannot be written.
    """
    secrets = {name: value for entry in plan.new for name, value in entry.secrets.items()}
    wanted = {name for entry in plan.new for name in entry.wanted}
    if keeper is not None:
        for name, value in secrets.items():
            keeper.set(name, value)
        wanted = {name for name in wanted if keeper.get(name) is None}
    unset = wanted | (set(secrets) if keeper is None else set())
    texts = [_toml(entry, plan.file) for entry in plan.new]
    backup = add_servers(plan.servers_toml, texts, environ) if texts else None
    kept = tuple(secrets) if keeper is not None else ()
    return Outcome(tuple(entry.name for entry in plan.new), backup, kept, tuple(sorted(unset)))


def _toml(entry: Entry, file: ClientFile) -> str:
    renamed = f" ('{entry.original}')" if entry.original != entry.name else ""
    return toml_of(entry.name, entry.table, f"from {file.client.title}, {file.path.name}{renamed}")


def is_gateway(table: Mapping[str, Any]) -> bool:
    """Whether an entry starts this gateway, or another copy of it."""
    args = table.get("args")
    words = [table.get("command"), *(args if isinstance(args, list | tuple) else ())]
    env = table.get("env")
    return any(isinstance(word, str) and re.search(r"(^|[/\\])server\.py$", word) for word in words) and (
        "--directory" in words or (isinstance(env, dict) and "APOLLOS_SERVERS" in env) or len(words) == 2
    )


def same_server(entry: Entry, known: Mapping[str, Mapping[str, Any]], keeper: SecretKeeper | None = None) -> str | None:
    """The name of the server that is reached in the same way, with the same secrets, whatever they are called.

    Args:
        keeper: has the values of those that are known; without it only their places are compared.
    """
    reach = _reach(entry.table, entry.secrets.get if keeper else _nothing)
    return next(
        (name for name, other in known.items() if _reach(other, keeper.get if keeper else _nothing) == reach), None
    )


def _nothing(name: str) -> None:
    return None


def _reach(table: Mapping[str, Any], value_of: Callable[[str], str | None]) -> list[Any]:
    return [_filled(table.get(key), value_of) for key in _REACH]


def _filled(value: Any, value_of: Callable[[str], str | None]) -> Any:
    """With the values of secrets in place of their names. It is compared and goes nowhere."""
    if isinstance(value, list):
        return [_filled(each, value_of) for each in value] or None
    if isinstance(value, Mapping):
        return {name: _filled(each, value_of) for name, each in value.items()} or None
    if not isinstance(value, str):
        return value
    return _REFERENCE.sub(lambda found: f"${{secret:{value_of(found[1]) or ''}}}", value)
