"""servers.toml becomes settings and resources, or one error that holds all that an operator has to correct.

`gateway` comes in: once at start with `load_configuration`, then for as long as it runs with
`watch_configuration`. It reads in this order: the file, its bytes, its TOML, its tables. It calls `tables`
to fill in variables, to check values and to find the line of a key, so that every problem can name it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import threading
import tomllib
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio.to_thread
from pydantic import TypeAdapter, ValidationError
from watchfiles import watch

from composition.record_rules import folder_problems, is_command_line
from composition.settings import OWN_SERVER, Settings, ToolListing, read_settings
from composition.tables import Key, Problem, check, did_you_mean, expand, key_lines, unknown_key, value_at, without
from providers.errors import ConfigurationError
from providers.reach import TransportType, reach_problem
from providers.resource import SERVERS_FILE, McpServerResource, Timeouts, ToolRules

_BOOLEAN = TypeAdapter(bool)
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")

MAX_FILE_BYTES = 1024 * 1024

_REST = 0.1
"""Seconds for which a changed file has to stay the same before it counts."""
_BOOKKEEPING = {"name", "created_by", "created_at", "updated_at", "version"}
_SERVER_KEYS = [key for key in McpServerResource.model_fields if key not in _BOOKKEEPING]
_MEANT = {
    **{key: f"timeouts.{key}" for key in Timeouts.model_fields},
    **{key: f"tools.{key}" for key in ToolRules.model_fields},
    **{"type": "transport_type", "environment": "env", "disabled": "is_enabled", "roles": "required_roles"},
    **{"image": "docker_image", "ports": "docker_ports", "volumes": "docker_volumes", "memory": "docker_memory"},
}
"""What is written straight under a server by mistake, and what was probably meant."""


@dataclass(frozen=True)
class Configuration:
    """What one servers.toml says. `fingerprint` is of its bytes, to tell one version from another."""

    settings: Settings
    resources: dict[str, McpServerResource]
    path: Path
    fingerprint: str = field(default="", repr=False, compare=False)


def load_configuration(path: Path, environ: Mapping[str, str] = os.environ) -> Configuration:
    """Read a servers.toml. It blocks: where an event loop runs, call it in a thread.

    Raises:
        ConfigurationError: with all problems, each "servers.toml:12: [servers.time] key 'agrs' is …".
    """
    return _configuration(path, _read(path), environ)


async def watch_configuration(
    path: Path, environ: Mapping[str, str] = os.environ, *, since: str | None = None
) -> AsyncGenerator[Configuration | ConfigurationError]:
    """Yield the configuration after each change of the file's bytes. A file that is broken, unreadable or
    gone yields its error as a value, so that the caller keeps the last good configuration.

    Args:
        since: the fingerprint of the configuration that the caller has, so that a change made after loading
            it and before watching is not missed. Without it, changes count from the first iteration.

    Raises:
        OSError: the file's directory cannot be watched.
    """
    known = since
    async with aclosing(_moments_to_look(path)) as moments:
        async for _ in moments:
            is_first = known is None
            seen, outcome = await anyio.to_thread.run_sync(_look, path, environ, known)
            newer = outcome
            while newer is not None and not is_first:  # who saves a file may empty it first: read it until it rests
                await anyio.sleep(_REST)
                outcome = newer
                seen, newer = await anyio.to_thread.run_sync(_look, path, environ, seen)
            is_change, known = seen != known, seen
            if is_change and outcome is not None and not is_first:
                yield outcome


async def _moments_to_look(path: Path) -> AsyncGenerator[None]:
    """Now, whenever something changes in the file's directory, and every second, because some file
    systems tell nobody. The directory and not the file: an editor renames a new file over the old one."""
    yield
    stop = threading.Event()
    # Not `awatch`: it holds up a cancelled task until its thread times out.
    changes = watch(
        *await anyio.to_thread.run_sync(_directories, path),
        watch_filter=None,
        recursive=False,
        step=100,
        rust_timeout=1_000,
        yield_on_timeout=True,
        stop_event=stop,
    )
    try:
        while True:
            await anyio.to_thread.run_sync(next, changes, None, abandon_on_cancel=True)
            yield
    finally:
        stop.set()


def _directories(path: Path) -> list[Path]:
    """Where the file lies and, if it is a link, where its target does."""
    return [directory for directory in {path.absolute().parent, path.resolve().parent} if directory.is_dir()]


def _look(
    path: Path, environ: Mapping[str, str], known: str | None
) -> tuple[str, Configuration | ConfigurationError | None]:
    """The fingerprint of what is there now and, if it is not the known one, what it says."""
    data = b""
    try:
        data = _read(path)
        fingerprint = _fingerprint(data)
        return fingerprint, None if fingerprint == known else _configuration(path, data, environ)
    except ConfigurationError as error:
        fingerprint = _fingerprint(data or str(error).encode())
        return fingerprint, None if fingerprint == known else error


def _fingerprint(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _configuration(path: Path, data: bytes, environ: Mapping[str, str]) -> Configuration:
    text = _decoded(path, data)
    tables = _Tables(_parsed(path, text), path.absolute(), environ)
    settings = tables.settings()
    resources = tables.resources(settings)
    if tables.problems:
        raise ConfigurationError(_with_lines(path, text, tables.problems))
    return Configuration(settings, resources, path, _fingerprint(data))


def _read(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ConfigurationError(f"{path}: is a directory. Name the file in it, for example {path / SERVERS_FILE}")
        if not stat.S_ISREG(mode):
            raise ConfigurationError(f"{path}: is not a regular file. Copy its text into one")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such file. Write one, or set APOLLOS_SERVERS to where it is") from None
    except PermissionError:
        raise ConfigurationError(f"{path}: may not be read. Give this user the right to read it") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "the path is not valid"
        raise ConfigurationError(f"{path}: cannot be read ({reason}). Check APOLLOS_SERVERS") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigurationError(f"{path}: is larger than 1 MiB. Is it the right file?")
    return data


def _decoded(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}:{line}: is not UTF-8 text. Save the file as UTF-8") from None


_SYNTAX_ADVICE = {
    "declare": "A table is written once: put its keys together, or give the second its own name",
    "overwrite|Duplicate": "A key is written once in its table: remove one of the two",
    "Invalid value": 'Text stands in quotes: key = "text"; true and false are written small',
    "hex value|Unescaped": "In double quotes a backslash begins an escape: write 'C:\\path' in single quotes",
    "Unclosed array": "A list has commas between its items and ends with ']'",
    "Unclosed inline": "An inline table stands on one line, has commas between its keys and ends with '}'",
    "initial character": "A key has letters, digits, '_' and '-'; no comma stands before a '}'",
    "Unterminated|Illegal|Expected \"'": "Text ends on its line, with the quote that began it",
    "Expected '='|Expected ']'|statement": 'A line is key = "value", or [servers.NAME], or # a comment',
}
"""What to do about a message of the parser that holds one of these words."""


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigurationError(f"{path}: is nested too deeply. No server needs more than 3 levels") from None
    except tomllib.TOMLDecodeError as error:
        what = str(error)
        at = re.search(r" \(at line (\d+), column (\d+)\)$", what)
        line = at[1] if at else text.rstrip("\n").count("\n") + 1
        what = f"{what[: at.start()]} (column {at[2]})" if at else what
        advice = [advice for words, advice in _SYNTAX_ADVICE.items() if re.search(words, what)][:1]
        sentences = [f"{path}:{line}: is not valid TOML: {what}", *advice]
        raise ConfigurationError(". ".join(sentences)) from None
    except ValueError:  # Python reads no whole number of more than 4300 digits
        raise ConfigurationError(f"{path}: holds a number that is too long. Write a shorter one") from None


def _with_lines(path: Path, text: str, problems: list[Problem]) -> list[str]:
    lines = key_lines(text)
    numbered: list[tuple[int, str]] = []
    for key, what in problems:
        nearest = (key[:end] for end in range(len(key), 0, -1)) if key else ()
        line = next((lines[known] for known in nearest if known in lines), 0)
        where = f"{path}:{line}: " if line else f"{path}: " if key else ""
        numbered.append((line, where + what))
    return [what for _, what in sorted(numbered, key=lambda problem: problem[0])]


class _Tables:
    """The tables of one file on their way to values; `problems` gathers all that is wrong with them, each
    with its key in the whole file and a text that is ready to print."""

    def __init__(self, document: dict[str, Any], path: Path, environ: Mapping[str, str]) -> None:
        self.problems: list[Problem] = []
        self._document, self._path, self._directory, self._environ = document, path, path.parent, environ
        self._written_at = _written_at(path)

    def settings(self) -> Settings:
        """The settings of `[gateway]` and the environment; the defaults if anything is wrong with them."""
        table = self._table("gateway", 'write [gateway] and under it name = "…"')
        settings, problems = read_settings(table, self._environ)
        for problem in problems:
            self._add(("gateway",), problem)
        if settings.auth.tokens is None:
            return settings
        tokens = str(self._directory / os.path.expanduser(settings.auth.tokens))  # noqa: PTH111 - Path's raises
        return settings.model_copy(update={"auth": settings.auth.model_copy(update={"tokens": tokens})})

    def resources(self, settings: Settings) -> dict[str, McpServerResource]:
        """The servers that are in order, by name. `settings` hold the timeouts of servers that say nothing else."""
        self._refuse_other_tables()
        tables = self._table("servers", "write [servers.NAME], in single brackets, for each server")
        has_own_tools = settings.dynamic or settings.tools is not ToolListing.ALL
        if has_own_tools and OWN_SERVER in tables:
            self._add(("servers",), Problem((OWN_SERVER,), "has the name of the gateway's own tools. Give it another"))
        found = {name: self._resource(name, table, settings) for name, table in tables.items()}
        return {name: resource for name, resource in found.items() if resource is not None}

    def _table(self, name: str, advice: str) -> dict[str, Any]:
        table = self._document.get(name, {})
        if isinstance(table, dict):
            return table
        self._add((name,), Problem((), f"must be a table: {advice}"))
        return {}

    def _refuse_other_tables(self) -> None:
        for key, value in self._document.items():
            if key in ("gateway", "servers"):
                continue
            if isinstance(value, dict):
                inner = [name for name in value if isinstance(value[name], dict)][:1]
                meant = [name for name in ("servers", "gateway") if did_you_mean(key, [name])][:1]
                hint = f" Did you mean [{_dotted([*meant, *inner])}]?" if meant else ""
                what = f"[{_dotted([key, *inner])}] is unknown.{hint} Allowed: [gateway] and [servers.NAME]"
            else:
                what = f"key '{_dotted([key])}' is in no table. Write it under [gateway] or [servers.NAME]"
            self.problems.append(Problem((key,), what))

    def _resource(self, name: str, table: Any, settings: Settings) -> McpServerResource | None:
        place: Key = ("servers", name)
        if not isinstance(table, dict):
            self._add(("servers",), Problem((name,), _not_a_server(name, table)))
            return None
        written = {key: value for key, value in table.items() if key in _SERVER_KEYS}
        unknown = [key for key in table if key not in written]
        for key in unknown:
            text = unknown_key(key, _SERVER_KEYS, _MEANT)
            if isinstance(table[key], dict):
                text += f". If it belongs to the name: a name has no dot, write [servers.{name}-{key}]"
            self._add(place, Problem((key,), text))
        is_misspelt = any(did_you_mean(key, ("command", "url", "python", "docker_image")) for key in unknown)
        resource, problems = self._checked(name, written, settings)
        for key, text in problems:
            if key or not is_misspelt:  # who wrote 'comand' need not hear that 'command' is missing
                self._add(place, Problem(key if key != ("name",) else (), text))
        return resource

    def _checked(
        self, name: str, written: dict[str, Any], settings: Settings
    ) -> tuple[McpServerResource | None, list[Problem]]:
        flag, _ = expand(written.get("is_enabled", True), self._environ)
        is_off = _is_false(flag)
        data, problems = (dict(written), []) if is_off else expand(written, self._environ)
        data |= {"name": name, "created_by": SERVERS_FILE, "is_enabled": flag}
        data |= {"created_at": self._written_at, "updated_at": self._written_at}
        if isinstance(data.get("timeouts", {}), dict):
            data["timeouts"] = settings.timeouts.model_dump() | data.get("timeouts", {})
        problems += [*_reach(written), *self._files(data, is_off), *self._command(data, is_off)]
        if not is_off and isinstance(volumes := data.get("docker_volumes"), list):
            problems += folder_problems(volumes, settings, self._path)
        resource, found = check(McpServerResource, data, written, problems)
        unread = [problem.key for problem in found if problem.key and _is_variable(value_at(written, problem.key))]
        if is_off and unread:  # a number or a choice that only a variable holds: its default will do
            for key in unread:
                data = without(data, key)
            return check(McpServerResource, data, written, problems)
        return resource, found

    def _files(self, data: dict[str, Any], is_off: bool) -> list[Problem]:
        """Make paths absolute, from the directory of the file; a Python server's file has to be there."""
        cwd, python = data.get("cwd"), data.get("python")
        if isinstance(cwd, str) and cwd and not _is_variable(cwd):
            data["cwd"] = str(self._directory / cwd)
        if not isinstance(python, str) or _is_variable(python):
            return []
        file, _, attribute = python.rpartition(":")
        if not file or not attribute.isidentifier():
            return []  # the model has the words for it
        data["python"] = f"{self._directory / file}:{attribute}"
        if is_off or _is_file(self._directory / file):
            return []
        return [Problem(("python",), f"names a file that is not there. Its path begins at {self._directory}")]

    def _command(self, data: dict[str, Any], is_off: bool) -> list[Problem]:
        command = data.get("command")
        if is_off or not isinstance(command, str) or not is_command_line(command, self._environ.get("PATH")):
            return []
        return [Problem(("command",), "must be the program alone. Write what follows it in args = […]")]

    def _add(self, table: Key, problem: Problem) -> None:
        """Take in a problem with a key of a table, or with the table itself where the key is empty."""
        if problem.key is None:
            self.problems.append(problem)
            return
        names = [part for part in problem.key if isinstance(part, str)]
        item = next((f" item {part + 1}" for part in problem.key if isinstance(part, int)), "")
        key = f" key '{_dotted(names)}'{item}" if names else ""
        self.problems.append(Problem((*table, *names), f"[{_dotted(table)}]{key} {problem.text}"))


def _reach(written: Mapping[str, Any]) -> list[Problem]:
    """The way a server is reached is checked here too: the model does so only when all else is in order."""
    try:
        transport = TransportType(written["transport_type"])
    except (KeyError, ValueError):
        transport = None
    text = reach_problem(transport, [key for key, value in written.items() if value not in ([], {})])
    return [Problem((), text)] if text else []


def _not_a_server(name: str, value: object) -> str:
    if name in _SERVER_KEYS:
        return "belongs to one server. Write [servers.NAME] above it"
    if isinstance(value, list):
        return f"must be a table. Write [servers.{name}] in single brackets"
    return f'must be a table. Write [servers.{name}] and under it command = "…" or url = "…"'


def _is_false(value: object) -> bool:
    try:
        return not _BOOLEAN.validate_python(value)
    except ValidationError:
        return False


def _is_variable(value: object) -> bool:
    return isinstance(value, str) and "${" in value


def _written_at(path: Path) -> datetime:
    """Since when its servers are as they are; nothing is told of each."""
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except (OSError, OverflowError, ValueError):
        return datetime.now(UTC)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _dotted(names: Iterable[str | int]) -> str:
    """Names as TOML writes them: quoted where they are not plain, so that none can break a line."""
    short = [name if len(name) <= 80 else f"{name[:80]}…" for name in map(str, names)]
    return ".".join(name if _PLAIN.fullmatch(name) else json.dumps(name, ensure_ascii=False) for name in short)
