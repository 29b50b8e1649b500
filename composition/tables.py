"""How what an operator wrote becomes a value, or plain sentences about what is wrong with it.

`settings` and `servers_file` come in with tables that they have read. `expand` fills in `${VAR}`; `check` builds a
model; `key_lines` finds where a key stands. A sentence quotes keys, and the word that was written where only a few are
allowed; never another value, and never what a variable holds.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from datetime import date, time
from difflib import get_close_matches
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Key = tuple[str | int, ...]
"""Where a value stands in its table: `("timeouts", "call")`, `("args", 1)`; empty for the table itself."""

MAX_DEPTH = 6
"""No key of ours stands deeper; what does is refused without being looked into."""


class Problem(NamedTuple):
    """What is wrong with one value; `text` is a predicate that reads on from the name of the key. A `key` of
    None is for what does not stand in the file; the text then begins with a name of its own."""

    key: Key | None
    text: str


def without(table: Mapping[str, Any], key: Key) -> dict[str, Any]:
    """The table less one key, which may stand in an inner table."""
    head, *rest = key
    inner = table.get(str(head))
    if rest and isinstance(inner, dict):
        return {**table, str(head): without(inner, tuple(rest))}
    return {name: value for name, value in table.items() if rest or name != head}


_SECRET = "${secret:"
_VARIABLE = re.compile(
    r"\$\$|\$\{secret:[^}]*\}|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}$]*))?\}|\$\{.*|\$(?=[A-Za-z_])", re.S
)
"""A sign, the name of a secret, a variable with or without a default, or what was meant to be one."""


def expand(value: Any, environ: Mapping[str, str], key: Key = ()) -> tuple[Any, list[Problem]]:
    """A table (or another value) with `${VAR}`, `${VAR:-default}` and `$$` filled in, in all its texts and in
    none of its keys; and what is wrong with those that cannot be filled in and stay as they are."""
    if isinstance(value, str):
        return _filled_in(value, environ, key)
    problems: list[Problem] = []

    def inside(part: str | int, inner: Any) -> Any:
        filled, found = expand(inner, environ, (*key, part))
        problems.extend(found)
        return filled

    if len(key) < MAX_DEPTH and isinstance(value, dict):
        value = {name: inside(name, inner) for name, inner in value.items()}
    elif len(key) < MAX_DEPTH and isinstance(value, list):
        value = [inside(index, inner) for index, inner in enumerate(value)]
    return value, problems


def _filled_in(text: str, environ: Mapping[str, str], key: Key) -> tuple[str, list[Problem]]:
    wrong: list[str] = []
    named: list[str] = []

    def fill(match: re.Match[str]) -> str:
        name, default = match[1], match[2]
        if match[0] == "$$":
            return "$"
        if match[0].startswith(_SECRET):  # its value is put in where a session is opened
            named.append(match[0])
            return match[0]
        if name is None:  # not quoted: the text may be a password that holds a '$'
            wrong.append("has a '$' that is no variable. Write ${VAR}, or $$ for the sign itself")
        elif default is not None:
            return environ.get(name) or default  # as in a shell, where ':-' stands in for an empty value too
        elif name not in environ:
            advice = f"set it in the environment or write ${{{name}:-default}}"
            wrong.append(f"needs the variable {name}, which is not set: {advice}")
        else:
            return environ[name]
        return match[0]

    filled = _VARIABLE.sub(fill, text)
    if filled.count(_SECRET) > len(named) and not wrong:  # a stranger's text, escaped, must not become a secret's name
        wrong.append("would name a secret only once '$$' or a variable is filled in. Write ${secret:NAME} itself")
    return filled, [Problem(key, sentence) for sentence in dict.fromkeys(wrong)]


Model = TypeVar("Model", bound=BaseModel)


def check(
    model: type[Model], data: Mapping[str, Any], written: Mapping[str, Any], known: Collection[Problem] = ()
) -> tuple[Model | None, list[Problem]]:
    """Build a model from a table, or say everything that is wrong with the table.

    Args:
        data: the table with its variables filled in.
        written: the table as it stands in the file; a sentence about what was found is about this.
        known: problems found before; where one is, no second is told.
    """
    problems = list(known)
    try:
        return model.model_validate(data), problems
    except ValidationError as error:
        places = {problem.key for problem in known}
        for detail in error.errors(include_url=False, include_input=False):
            problem = _problem(model, detail, written)
            problems += [problem] if problem.key not in places else []
        return None, problems


def unknown_key(key: object, allowed: Collection[str], meant: Mapping[str, str] | None = None) -> str:
    """The predicate for a key that does not exist, with the one that was probably meant."""
    word = str(key)
    hint = did_you_mean(word, allowed)
    if meant and word in meant:
        hint = f" Did you mean '{meant[word]}'?"
    return f"is unknown.{hint} Allowed: {', '.join(allowed)}"


def did_you_mean(word: str, choices: Collection[str], cutoff: float = 0.6) -> str:
    """A question that names the closest choice, or nothing. Long words get none: comparing them is slow."""
    close = get_close_matches(word.lower(), choices, n=1, cutoff=cutoff) if len(word) <= 64 else []
    return f" Did you mean '{close[0]}'?" if close else ""


_MUST_BE = {
    "string_type": "must be a string",
    "string_unicode": "must be text in UTF-8",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "tuple_type": "must be a list of strings",
    "dict_type": "must be a table of strings",
    "model_type": "must be a table",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "greater_than": "must be greater than 0",
}
"""What pydantic finds, in the words of a TOML file."""


def _problem(model: type[BaseModel], detail: ErrorDetails, written: Mapping[str, Any]) -> Problem:
    key: Key = tuple(part for part in detail["loc"] if part != "[key]")
    match detail["type"]:
        case "extra_forbidden":
            text = unknown_key(key[-1], _model_at(model, key[:-1]).model_fields)
        case "value_error":
            text = str(detail["ctx"]["error"])
        case "enum":
            text = _not_a_choice(detail["ctx"]["expected"], value_at(written, key))
        case "less_than_equal":
            text = f"must be at most {detail['ctx']['le']:.0f}"
        case kind:
            text = _MUST_BE.get(kind, "is not valid") + _found(kind, value_at(written, key))
            text += _example(model, key) if kind.endswith("_type") else ""
    return Problem(key, text)


def _not_a_choice(expected: str, found: object) -> str:
    choices = expected.replace("'", "").replace(" or ", ", ").split(", ")
    hint = did_you_mean(found, choices, cutoff=0.4) if isinstance(found, str) else ""
    quoted = f"; found '{found}'" if isinstance(found, str) and len(found) <= 64 and "$" not in found else ""
    return f"must be one of {', '.join(choices)}{quoted}.{hint}".rstrip(".")


def value_at(table: Any, key: Key) -> Any:
    """The value that stands at a key, or None: TOML has no null."""
    try:
        for part in key:
            table = table[part]
    except (KeyError, IndexError, TypeError):
        return None
    return table


def _found(kind: str, value: object) -> str:
    if isinstance(value, str) and "${" in value:
        return "; what its variable holds is not"
    if not kind.endswith(("_type", "_parsing", "int_from_float")):
        return ""
    match value:
        case None:
            return ""
        case bool():
            found = "true or false"
        case str():
            found = "a string"
        case int() | float():
            found = "a number"
        case date() | time():
            found = "a date or time"
        case list():
            found = "a list"
        case _:
            found = "a table"
    unquoted = kind == "string_type" and not isinstance(value, list | dict)
    return f"; found {found}" + (". Write it in quotes" if unquoted else "")


def _example(model: type[BaseModel], key: Key) -> str:
    name, field = key[-1], None
    if isinstance(name, str):
        field = _model_at(model, key[:-1]).model_fields.get(name)
    examples = field.examples if field else None
    return f". For example: {'.'.join(map(str, key))} = {examples[0]}" if examples else ""


def _model_at(model: type[BaseModel], key: Key) -> type[BaseModel]:
    """The model of the table at `key`; the last known one where the table is no model's."""
    for part in key:
        field = model.model_fields.get(str(part))
        if field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
    return model


_LONGEST_STATEMENT = 500  # lines
_MAY_END = re.compile(r"""[\]}]|\"{3}|'{3}""")  # a list, an inline table or a long text


def key_lines(text: str) -> dict[Key, int]:
    """The line on which each table and key of a valid TOML text is first written, counted from 1.

    The parser tells no lines, so it is given one statement at a time: lines are added until they parse. Past
    a statement of more than 500 lines nothing gets a line, nor does what is deeper than any key of ours.
    """
    lines: dict[Key, int] = {}
    table: Key = ()
    statement: list[str] = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        statement.append(line)
        if len(statement) > _LONGEST_STATEMENT:
            break
        if len(statement) > 1 and not _MAY_END.search(line):
            continue
        try:
            keys = tomllib.loads("\n".join(statement))
        except (ValueError, RecursionError):
            continue
        is_header = statement[0].lstrip().startswith("[")
        paths = list(_paths(keys, () if is_header else table))
        table = paths[-1] if is_header else table
        for path in paths:
            lines.setdefault(path, number - len(statement) + 1)
        statement = []
    return lines


def _paths(value: Any, path: Key) -> Iterator[Key]:
    if isinstance(value, list):  # [[a.table]] and lists of inline tables: their keys count as the list's
        for item in value:
            yield from _paths(item, path)
    elif isinstance(value, dict) and len(path) < MAX_DEPTH:
        for key, inner in value.items():
            yield (*path, key)
            yield from _paths(inner, (*path, key))
