"""The form of a catalog entry: which values a person may give, of which type, and which must be given.

The conversion of entries comes in; `templates` is asked for values. The forms are written like JSON schemas, by people
who test them against one reader, so that nothing is expected of them but tables: what makes no sense asks for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from composition.discovery.catalog import Form
from composition.discovery.found import Need
from composition.tables import did_you_mean
from providers.errors import ConfigurationError
from providers.templates import Value, as_items, lookup_in

_MAX_DEPTH = 8
_WORDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a table, written as JSON",
    "string": "a text",
}


@dataclass(frozen=True, slots=True)
class _Field:
    """One value of a form. `is_needed`: by the form itself, with what was given so far."""

    key: str
    type: str
    description: str
    is_needed: bool
    default: Value | None
    choices: tuple[str, ...]

    def need(self) -> Need:
        default = None if self.default is None else json.dumps(self.default, ensure_ascii=False)
        return Need(
            self.key,
            description=self.description,
            type=self.type,
            is_required=self.is_needed,
            default=default,
            choices=self.choices,
        )


class Answers:
    """What a person gave for the forms of one entry, in the form of its types."""

    def __init__(self, forms: list[Form], given: Mapping[str, Any], paths: list[str]) -> None:
        """
        Args:
            given: values by key, such as `volume.host_share`; texts are read as their type wants them.
            paths: the keys that the entry's templates ask for; some are in no form.

        Raises:
            ConfigurationError: with every key that does not exist and every value of a wrong type.
        """
        self._forms, self._given = forms, given
        found = [field for form in forms for field in self._walk(form.properties, form.required, "", True, 0)]
        self.fields = {field.key: field for field in found}
        for path in paths:
            self.fields.setdefault(path, _Field(path, "string", "", False, None, ()))
        self._values: dict[str, Value] = {}
        problems: list[str] = []
        for key, value in given.items():
            try:
                self._values[key] = self._typed(key, value)
            except ValueError as error:
                problems.append(f"'{key}' {error}")
        if problems:
            raise ConfigurationError(problems)

    def lookup(self, key: str) -> Value | None:
        """What was given for a key, or its default."""
        value = lookup_in(self._values)(key)
        return self.fields[key].default if value is None and key in self.fields else value

    @property
    def texts(self) -> set[str]:
        """All texts that a person gave, also within lists."""
        return {text for value in self._values.values() for text in as_items(value)}

    def unmet(self) -> Iterator[str]:
        """What is asked for in one of several ways, and was given in none: `confluence.url or jira.url`."""
        for form in self._forms:
            ways = [_names(way.get("required")) for way in form.any_of]
            if ways and not any(all(map(self._is_begun, way)) for way in ways):
                yield " or ".join(" and ".join(map(self._first_key, way)) for way in ways)

    def _typed(self, key: str, value: Any) -> Value:
        if key not in self.fields:
            raise ValueError(f"is nothing that this server asks for.{did_you_mean(key, list(self.fields))}")
        field = self.fields[key]
        typed = _read(field.type, value)
        if field.choices and typed not in field.choices:
            raise ValueError(f"has to be one of {', '.join(field.choices)}")
        return typed

    def _walk(
        self, properties: Mapping[str, Any], required: list[str], prefix: str, is_active: bool, depth: int
    ) -> Iterator[_Field]:
        """The fields of a table. Within an inner table that nobody has to give, nothing has to be given."""
        for name, schema in properties.items():
            if not isinstance(schema, dict) or depth > _MAX_DEPTH or not name.isprintable():
                continue
            key, is_needed = prefix + name, is_active and name in required
            if isinstance(inner := schema.get("properties"), dict) and inner:
                active = is_needed or self._is_begun(key)
                yield from self._walk(inner, _names(schema.get("required")), f"{key}.", active, depth + 1)
            else:
                yield _field(key, schema, is_needed)

    def _is_begun(self, key: str) -> bool:
        return any(given == key or given.startswith(f"{key}.") for given in self._given)

    def _first_key(self, name: str) -> str:
        return next((key for key in self.fields if key.startswith(f"{name}.")), name)


def _field(key: str, schema: Mapping[str, Any], is_needed: bool) -> _Field:
    kind, description, choices = schema.get("type"), schema.get("description"), schema.get("enum")
    default = schema.get("default")
    return _Field(
        key,
        kind if isinstance(kind, str) and kind in _WORDS else "string",
        "".join(sign if sign.isprintable() else " " for sign in description) if isinstance(description, str) else "",
        is_needed and default is None,
        default,
        tuple(choice for choice in choices if isinstance(choice, str)) if isinstance(choices, list) else (),
    )


def _names(value: Any) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _read(kind: str, value: Any) -> Value:
    """A value in the form that its type wants; texts are read, as those of a command line are.

    Raises:
        ValueError: it is of another type; the message is a predicate, and quotes nothing.
    """
    read = value
    if isinstance(value, str) and kind != "string":
        read = _from_text(kind, value)
    if kind == "string" and isinstance(value, bool | int | float):
        read = json.dumps(value)
    is_right = {
        "string": isinstance(read, str),
        "integer": isinstance(read, int) and not isinstance(read, bool),
        "number": isinstance(read, int | float) and not isinstance(read, bool),
        "boolean": isinstance(read, bool),
        "array": isinstance(read, list),
        "object": isinstance(read, dict),
    }[kind]
    if not is_right:
        raise ValueError(f"has to be {_WORDS[kind]}")
    fit: Value = read
    return fit


def _from_text(kind: str, text: str) -> Any:
    if kind == "array" and not text.lstrip().startswith("["):
        return [text]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
