"""How a record names a secret: `${secret:NAME}`, and in which of its keys it may.

`resource` comes in to check a record, `secrets` to fill one in. A secret goes where only the server sees it: into its
environment, its secret files, a request's headers or its URL; never into a command line, which everybody on the machine
can read. Pure values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
_REFERENCE = re.compile(r"\$\{secret:([^}]*)\}?")
_WHOLE = re.compile(rf"\$\{{secret:({_NAME})\}}")

KEYS = ("env", "headers", "url", "docker_secrets")
"""Where a secret may be named."""


RULE = "letters, digits, '_', '-' and '.', at most 128, and begins with a letter or digit"


def is_name(text: str) -> bool:
    """Whether a secret may be called so."""
    return re.fullmatch(_NAME, text) is not None


def is_in(value: Any) -> bool:
    """Whether a text, a table or a list names a secret, rightly or wrongly."""
    return any(_REFERENCE.search(text) for text in _texts(value))


def problem(value: Any) -> str | None:
    """What is wrong with the references in a value, or None."""
    wrong = any(not _WHOLE.fullmatch(found[0]) for text in _texts(value) for found in _REFERENCE.finditer(text))
    return f"names a secret that cannot be: a name has {RULE}. Write ${{secret:NAME}}" if wrong else None


def named_in(record: Any) -> list[str]:
    """The names of the secrets that a record needs, each once, in order."""
    texts = (text for key in KEYS for text in _texts(getattr(record, key)))
    return list(dict.fromkeys(name for text in texts for name in _WHOLE.findall(text)))


def with_values(record: Any, values: Mapping[str, str]) -> dict[str, Any]:
    """The keys of a record that name secrets, with the values in place of the names."""

    def fill(text: str) -> str:
        return _WHOLE.sub(lambda match: values[match[1]], text)

    update: dict[str, Any] = {}
    for key in KEYS:
        value = getattr(record, key)
        if is_in(value):
            update[key] = fill(value) if isinstance(value, str) else {name: fill(text) for name, text in value.items()}
    return update


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, BaseModel | dict):
        yield from _texts(list(dict(value).values()))
    elif isinstance(value, list | tuple):
        yield from (text for inner in value for text in _texts(inner))
