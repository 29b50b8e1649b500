"""A stranger's YAML or JSON as plain data: tables, lists, texts, numbers, true, false and null.

The reader of catalogs comes in with bytes; this is the only file that imports PyYAML. It uses PyYAML's events and none
of its loaders, so that nothing is built that was not counted first: aliases that multiply, cycles and deep nesting end
as a sentence, not as a full memory. What is a number or a boolean is what YAML 1.2 says (`no` and `0755` are texts),
and a date stays the text that it was.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from typing import Any, NoReturn

import yaml

from providers.errors import GatewayError

MAX_DEPTH = 64
MAX_VALUES = 500_000
"""How many values a document may have, each alias counted as all that it stands for. Docker's has 40,000."""

_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # five times as fast, where libyaml is there
_WORDS = {"": None, "~": None, "true": True, "false": False}
_WORDS |= {word: _WORDS.get(word.lower()) for word in ("null", "Null", "NULL", "True", "TRUE", "False", "FALSE")}
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_BROKEN = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})?(\.[0-9]{0,17})?([eE][-+]?[0-9]{1,3})?")
_TAG = "tag:yaml.org,2002:"


class Unreadable(GatewayError):
    """Raised when a document is not what it should be; the message is a sentence, and quotes nothing of it."""


def plain_data(content: bytes) -> Any:
    """What a document says, JSON where it begins with `{` or `[`, and YAML otherwise.

    Raises:
        Unreadable: it is neither, or is larger or deeper than any honest one.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Unreadable("It is not text in UTF-8.") from None
    if text.lstrip()[:1] in ("{", "["):
        return _json(text)
    return _Reader(text).read()


# ------------------------------------------------------------------------------------------------------------ JSON


def _json(text: str) -> Any:
    if sum(text.count(sign) for sign in ',:{["') > 8 * MAX_VALUES:
        _refuse_size()
    try:
        data = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except RecursionError:
        _refuse_depth()
    except ValueError as error:  # its message quotes nothing but a place
        line = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise Unreadable(f"It is not JSON{line}.") from None
    _count(data)
    return data


def _no_constant(word: str) -> NoReturn:
    raise ValueError(word)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise Unreadable("It has one key twice in the same table, so that nobody can say which one holds.")
    return table


def _count(data: Any) -> None:
    level, total = [data], 0
    for _ in range(MAX_DEPTH + 1):
        total += len(level)
        if total > MAX_VALUES:
            _refuse_size()
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return
    _refuse_depth()


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


# ------------------------------------------------------------------------------------------------------------ YAML


class _Node:
    """A list or a table that is being read. `weight` counts its values, those that aliases stand for included."""

    __slots__ = ("anchor", "key", "line", "value", "weight")

    def __init__(self, value: list[Any] | dict[str, Any], anchor: str | None, line: int) -> None:
        self.value, self.anchor, self.line = value, anchor, line
        self.key: str | None = None
        self.weight = 1

    def put(self, value: Any, line: int) -> None:
        if isinstance(self.value, list):
            self.value.append(value)
        elif self.key is None:
            self.key = self._as_key(value, line)
        else:
            self.value[self.key], self.key = value, None

    def _as_key(self, key: Any, line: int) -> str:
        if isinstance(key, list | dict):
            raise Unreadable(f"It has a list or a table as a key (line {line}).")
        name = key if isinstance(key, str) else json.dumps(key)
        if name == "<<":
            raise Unreadable(f"It uses merge keys ('<<', line {line}), which are not read. Write the keys out.")
        if name in self.value:
            raise Unreadable(f"It has one key twice in the same table (line {line}).")
        return name


class _Reader:
    """Makes values of the parser's events, and counts them as it goes."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._open: list[_Node] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._root: list[Any] = []
        self._weight = 0

    def read(self) -> Any:
        try:
            with contextlib.closing(yaml.parse(self._text, Loader=_PARSER)) as events:
                for event in events:
                    self._take(event)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f" (line {mark.line + 1})" if mark else ""
            raise Unreadable(f"It is not YAML{line}: {_words_of(error)}.") from None
        if len(self._root) != 1:
            raise Unreadable("It is empty." if not self._root else "It holds more than one document.")
        return self._root[0]

    def _take(self, event: yaml.Event) -> None:
        match event:
            case yaml.ScalarEvent():
                self._put(_scalar(event), 1, event.anchor, _line(event))
            case yaml.SequenceStartEvent():
                self._begin(_Node([], event.anchor, _line(event)))
            case yaml.MappingStartEvent():
                self._begin(_Node({}, event.anchor, _line(event)))
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                node = self._open.pop()
                self._put(node.value, node.weight, node.anchor, node.line)
            case yaml.AliasEvent():
                if event.anchor not in self._anchors:
                    raise Unreadable(f"It has an alias to what is not there yet, or to itself (line {_line(event)}).")
                value, weight = self._anchors[event.anchor]
                self._put(value, weight, None, _line(event))

    def _begin(self, node: _Node) -> None:
        self._open.append(node)
        if node.anchor:
            self._anchors.pop(node.anchor, None)  # an alias within it would be a cycle
        if len(self._open) > MAX_DEPTH:
            _refuse_depth()

    def _put(self, value: Any, weight: int, anchor: str | None, line: int) -> None:
        if anchor:
            self._anchors[anchor] = value, weight
        self._weight += 1
        if not self._open:
            self._root.append(value)
            return
        outer = self._open[-1]
        outer.weight += weight
        if outer.weight > MAX_VALUES or self._weight > MAX_VALUES:
            _refuse_size()
        outer.put(value, line)


def _scalar(event: yaml.ScalarEvent) -> Any:
    if event.tag and not event.tag.startswith(_TAG):
        raise Unreadable(f"It has a tag of its own (line {_line(event)}), which would make something else of a value.")
    text = str(event.value)
    if event.style or (event.tag and event.tag != f"{_TAG}int" and event.tag != f"{_TAG}float"):
        return text  # in quotes, or said to be text
    if text in _WORDS:
        return _WORDS[text]
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if any(map(str.isdigit, text)) and _BROKEN.fullmatch(text) else text


def _line(event: yaml.Event) -> int:
    return int(event.start_mark.line) + 1


def _words_of(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read").rstrip(".")


def _refuse_size() -> NoReturn:
    raise Unreadable(f"It has more than {MAX_VALUES:,} values, those that aliases stand for included.")


def _refuse_depth() -> NoReturn:
    raise Unreadable(f"It is nested more than {MAX_DEPTH} deep.")
