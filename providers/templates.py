"""The two template languages of catalog entries: `{{path | filter}}` over what a person gave, or over the arguments of
a call, and `$NAME` over an entry's own secrets and variables. Pure functions.

The conversion of entries comes in, and so do tools that are programs in containers; nobody is called. What a template
names and nobody gave is told by name, so that it can be asked for; it never becomes an empty or a made-up text. Only
what the entry itself wrote is read as a template: a value may hold `{{`, `$` and braces, and stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from providers.errors import GatewayError

Value = str | bool | int | float | list[Any] | dict[str, Any]
"""What a person gives for one key, in the form that its type has."""

_TERM = re.compile(r"\{\{([^{}]*)\}\}|\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")
_PATH = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_WINDOWS = re.compile(r"([A-Za-z]):[\\/](.*)", re.S)


class TemplateError(GatewayError):
    """Raised when a template asks for what does not exist in its language; the message is a predicate."""


@dataclass(frozen=True, slots=True)
class Unset:
    """In place of a value: the paths and variables that nobody gave."""

    paths: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()


Lookup = Callable[[str], Value | None]
"""What was given for a path, or None."""


def rendered(text: str, lookup: Lookup, variables: Mapping[str, str] | None = None) -> Value | Unset:
    """A text with its terms filled in. One that is a single `{{…}}` keeps the form of its value.

    Args:
        variables: what `$NAME` and `${NAME}` stand for; those of this machine are never read. None: `$` is a sign like
            any other. What is no name, such as `$5`, always stays.

    Raises:
        TemplateError: it has a filter that does not exist, or one that lacks its argument.
    """
    pieces: list[Value | Unset] = []
    end = 0
    for match in _TERM.finditer(text):
        found = _piece(match, lookup, variables)
        if found is not None:
            pieces += [text[end : match.start()], found]
            end = match.end()
    pieces.append(text[end:])
    if unset := [piece for piece in pieces if isinstance(piece, Unset)]:
        return Unset(_all(each.paths for each in unset), _all(each.variables for each in unset))
    filled = [piece for piece in pieces if not isinstance(piece, Unset)]
    if len(filled) == 3 and filled[0] == filled[2] == "":
        return filled[1]
    return "".join(as_text(piece) for piece in filled)


def has_terms(text: str) -> bool:
    """Whether there is a `{{…}}` in it."""
    return bool(paths_in(text))


def paths_in(text: str) -> list[str]:
    """The paths that a text asks for, in order."""
    split = [_split(match[1]) for match in _TERM.finditer(text) if match[1] is not None]
    return [path for path, _ in split if _PATH.fullmatch(path)]


def variables_in(text: str) -> list[str]:
    """The names that stand behind a `$`, in order."""
    return [name for match in _TERM.finditer(text) if (name := match[2] or match[3])]


def as_text(value: Value) -> str:
    """A value within a text: as JSON would write it, and a text as it is."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def as_items(value: Value) -> list[str]:
    """What a value adds to a list: each of its own items, or itself; nothing where it is empty."""
    items = value if isinstance(value, list) else [value]
    return [as_text(item) for item in items if item != ""]


def lookup_in(values: Mapping[str, Any]) -> Lookup:
    """Finds a path such as `volume.host_share` in nested tables. A key may itself hold dots. What is empty was not
    given."""

    def find(path: str) -> Value | None:
        found = _found(values, path.split("."))
        return None if found in ("", [], {}) else found

    return find


def _found(table: Any, parts: list[str]) -> Value | None:
    if not parts:
        value: Value | None = table
        return value
    if isinstance(table, Mapping):
        for end in range(len(parts), 0, -1):
            key = ".".join(parts[:end])
            if key in table and (found := _found(table[key], parts[end:])) is not None:
                return found
    return None


# ---------------------------------------------------------------------------------------------------------- terms


def _piece(match: re.Match[str], lookup: Lookup, variables: Mapping[str, str] | None) -> Value | Unset | None:
    """What stands for a term, or None where it only looks like one."""
    if match[1] is not None:
        path, filters = _split(match[1])
        return _term(path, filters, lookup) if _PATH.fullmatch(path) else None
    name = match[2] or match[3]
    if variables is None:
        return None
    return variables[name] if name in variables else Unset(variables=(name,))


def _all(parts: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in parts for name in part))


def _split(inner: str) -> tuple[str, list[str]]:
    path, *filters = inner.split("|")
    return re.sub(r"\s+", "", path), [each.strip() for each in filters]


def _term(path: str, filters: list[str], lookup: Lookup) -> Value | Unset:
    value: Value | Unset | None = lookup(path)
    if value is None:
        value = Unset((path,))
    for each in filters:
        name, colon, argument = each.partition(":")
        if name.strip() not in _FILTERS:
            raise TemplateError(f"uses the filter '{name[:32]}', which does not exist")
        value = _FILTERS[name.strip()](value, argument.strip() if colon else "")
    return value


def _or(value: Value | Unset, argument: str) -> Value | Unset:
    if not isinstance(value, Unset) and value not in ("", [], {}):
        return value
    if argument.startswith("[") and argument.endswith("]"):
        return [item.strip() for item in argument[1:-1].split(",") if item.strip()]
    return argument


def _each(change: Callable[[str], str]) -> Callable[[Value | Unset, str], Value | Unset]:
    """A filter that changes each element of a list, or a value that is none."""

    def apply(value: Value | Unset, _: str) -> Value | Unset:
        if isinstance(value, Unset):
            return value
        if isinstance(value, list):
            return [change(as_text(item)) if item != "" else "" for item in value]
        return change(as_text(value)) if value != "" else ""

    return apply


def _volume(path: str) -> str:
    return f"{path}:{_in_container(path)}"


def _in_container(path: str) -> str:
    """The path that a folder has in the container: `C:\\a` is `/C/a`."""
    windows = _WINDOWS.fullmatch(path)
    return "/" + windows[1] + "/" + windows[2].replace("\\", "/") if windows else path


def _into(value: Value | Unset, _: str) -> Value | Unset:
    if isinstance(value, Unset):
        return value
    return value if isinstance(value, list) else as_items(value)


def _element(place: int) -> Callable[[Value | Unset, str], Value | Unset]:
    def apply(value: Value | Unset, _: str) -> Value | Unset:
        if isinstance(value, list):
            element: Value = value[place] if value else ""
            return element
        return value

    return apply


def _mount_as(value: Value | Unset, argument: str) -> Value | Unset:
    if not argument.startswith("/"):
        raise TemplateError("uses the filter 'mount_as' without a path in the container")
    first = _element(0)(value, "")
    if isinstance(first, Unset) or first == "":
        return first
    return f"{as_text(first)}:{argument}"


_FILTERS: dict[str, Callable[[Value | Unset, str], Value | Unset]] = {
    "or": _or,
    "volume": _each(_volume),
    "volume-target": _each(_in_container),
    "into": _into,
    "first": _element(0),
    "last": _element(-1),
    "mount_as": _mount_as,
}
