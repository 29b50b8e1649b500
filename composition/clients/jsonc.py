"""JSON as chat clients write it, with comments and trailing commas where a client allows them; and small edits of it.

`reading` and `connecting` come in; nobody is called. A document keeps where each value stands, so that one member of
an object is put in or taken out while all other text, comments included, stays as its owner wrote it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from providers.errors import ConfigurationError

MAX_DEPTH = 100
_EDITED = 2
"""Members of objects above this depth are put in and taken out; what lies below is a whole."""

_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,400})(?:\.[0-9]{1,400})?(?:[eE][+-]?[0-9]{1,5})?(?![\w.])")
_BLANK = re.compile(r"[ \t\r\n]+")
_COMMENT = re.compile(r"//[^\r\n]*|/\*.*?\*/", re.S)
_WORDS = {"true": True, "false": False, "null": None}


def _no_number(word: str) -> NoReturn:
    raise ValueError(word)  # NaN and Infinity are not JSON


_STANDARD = json.JSONDecoder(parse_constant=_no_number)


@dataclass(frozen=True)
class Node:
    """One value of a document: what it is, and from where to where its text goes. `members` are an object's."""

    value: Any
    start: int
    end: int
    members: Mapping[str, Member] = field(default_factory=dict)


@dataclass(frozen=True)
class Member:
    """A member of an object; `start` is where its key begins."""

    start: int
    node: Node


@dataclass(frozen=True)
class Document:
    """A text and its value."""

    text: str = field(repr=False)
    root: Node = field(repr=False)

    def at(self, path: Sequence[str]) -> Node | None:
        """The value at a path of keys, or None where there is none."""
        node: Node = self.root
        for key in path:
            member = node.members.get(key)
            if member is None:
                return None
            node = member.node
        return node


def parse(text: str, *, comments: bool = True) -> Document:
    """Read a document.

    Args:
        comments: whether comments and trailing commas are allowed.

    Raises:
        ConfigurationError: it is no such document; the message gives line and column and quotes nothing.
    """
    reader = _Reader(text, comments)
    begin = 1 if text.startswith("\ufeff") else 0
    position = reader.skip(begin)
    if position == len(text):
        raise ConfigurationError("is empty. Write {} for a configuration without servers")
    root = reader.value(position, 0)
    if reader.skip(root.end) != len(text):
        reader.fail(reader.skip(root.end), "text follows after the end of the document")
    return Document(text, root)


class _Reader:
    def __init__(self, text: str, comments: bool) -> None:
        self._text, self._comments = text, comments

    def fail(self, position: int, what: str) -> NoReturn:
        line = self._text.count("\n", 0, position) + 1
        column = position - self._text.rfind("\n", 0, position)
        raise ConfigurationError(f"is not valid JSON: {what} (line {line}, column {column})")

    def skip(self, position: int) -> int:
        """Past blanks and comments."""
        while True:
            if blank := _BLANK.match(self._text, position):
                position = blank.end()
            comment = _COMMENT.match(self._text, position)
            if comment is None:
                return position
            if not self._comments:
                self.fail(position, "a comment, which this client does not read")
            position = comment.end()

    def value(self, position: int, depth: int) -> Node:
        if depth > MAX_DEPTH:
            self.fail(position, f"nested more than {MAX_DEPTH} deep")
        if depth == _EDITED and (node := self._quickly(position)):
            return node
        match self._text[position : position + 1]:
            case "{":
                return self._object(position, depth)
            case "[":
                return self._array(position, depth)
            case '"':
                return self._string(position)
            case _:
                return self._plain(position)

    def _quickly(self, position: int) -> Node | None:
        """A value in which nothing is edited, by the standard reader, unless it holds more than that reads.
        A client may keep megabytes of its own in its configuration."""
        try:
            value, end = _STANDARD.raw_decode(self._text, position)
        except (ValueError, RecursionError):
            return None
        return Node(value, position, end)

    def _string(self, position: int) -> Node:
        found = _STRING.match(self._text, position)
        if found is None:
            self.fail(position, "a text that does not end on its line, or has a wrong escape")
        return Node(json.loads(found[0]), position, found.end())

    def _plain(self, position: int) -> Node:
        for word, value in _WORDS.items():
            if self._text.startswith(word, position):
                return Node(value, position, position + len(word))
        number = _NUMBER.match(self._text, position)
        if number is None:
            self.fail(position, "a value is missing here")
        return Node(json.loads(number[0]), position, number.end())

    def _array(self, start: int, depth: int) -> Node:
        items: list[Any] = []
        position = self.skip(start + 1)
        while self._text[position : position + 1] != "]":
            node = self.value(position, depth + 1)
            items.append(node.value)
            position = self._after(node.end, "]")
        return Node(items, start, position + 1)

    def _object(self, start: int, depth: int) -> Node:
        members: dict[str, Member] = {}
        position = self.skip(start + 1)
        while self._text[position : position + 1] != "}":
            if self._text[position : position + 1] != '"':
                self.fail(position, "a key in double quotes is missing here")
            key = self._string(position)
            colon = self.skip(key.end)
            if self._text[colon : colon + 1] != ":":
                self.fail(colon, "a ':' is missing here")
            node = self.value(self.skip(colon + 1), depth + 1)
            if key.value in members:
                self.fail(position, "a key that stands there twice")
            members[key.value] = Member(position, node)
            position = self._after(node.end, "}")
        value = {name: member.node.value for name, member in members.items()}
        return Node(value, start, position + 1, members)

    def _after(self, position: int, closing: str) -> int:
        """Past the comma behind an item, or where the closing bracket stands."""
        position = self.skip(position)
        sign = self._text[position : position + 1]
        if sign == closing:
            return position
        if sign != ",":
            self.fail(position, f"a ',' or '{closing}' is missing here")
        following = self.skip(position + 1)
        if self._text[following : following + 1] == closing and not self._comments:
            self.fail(position, "a comma before the closing bracket, which this client does not read")
        return following


# ------------------------------------------------------------------------------------------------------------ edits


def with_member(document: Document, path: Sequence[str], key: str, value: Any) -> str:
    """The text with a member set in the object at a path; objects on the way are made.

    Raises:
        ConfigurationError: something on the way is no object.
    """
    raw = json.dumps(value, indent=_indent(document.text), ensure_ascii=False)
    return with_raw_member(document, path, key, raw)


def with_raw_member(document: Document, path: Sequence[str], key: str, raw: str) -> str:
    """The same for a value that is JSON text already."""
    for depth in range(len(path), -1, -1):
        node = document.at(path[:depth])
        if node is None:
            continue
        if not isinstance(node.value, dict):
            raise ConfigurationError(f"key '{'.'.join(path[:depth]) or 'the document'}' must be an object")
        for name in reversed(path[depth:]):
            raw = f"{{\n{_pad(document.text)}{json.dumps(key)}: {_shifted(raw, _pad(document.text))}\n}}"
            key = name
        return _put(document, node, key, raw)
    raise AssertionError("the root is always there")


def _put(document: Document, node: Node, key: str, raw: str) -> str:
    text = document.text
    known = node.members.get(key)
    if known:
        raw = _shifted(raw, _line_indent(text, known.start))
        return text[: known.node.start] + raw + text[known.node.end :]
    outer = _line_indent(text, node.start)
    last = list(node.members.values())[-1] if node.members else None
    indent = _line_indent(text, last.start) if last and "\n" in text[node.start : last.start] else outer + _pad(text)
    begin = (_comma(document, last) or last.node.end) if last else node.start + 1
    comma = "," if last and not _comma(document, last) else ""
    kept = text[begin : node.end - 1].rstrip()  # comments
    written = f"{json.dumps(key, ensure_ascii=False)}: {_shifted(raw, indent)}"
    return f"{text[:begin]}{comma}{kept}\n{indent}{written}\n{outer}{text[node.end - 1 :]}"


def _comma(document: Document, member: Member) -> int:
    """Just behind the comma after a member, or 0 where none follows."""
    position = _Reader(document.text, True).skip(member.node.end)
    return position + 1 if document.text[position : position + 1] == "," else 0


def without_member(document: Document, path: Sequence[str], key: str) -> str:
    """The text without a member of the object at a path; the same text if there is none."""
    node = document.at(path)
    if node is None or key not in node.members:
        return document.text
    text, keys = document.text, list(node.members)
    member, place = node.members[key], keys.index(key)
    start, comma = _line_start(text, member.start), _comma(document, member)
    if comma:
        end = _blank_end(text, comma, whole_line=start < member.start or text[start - 1] == "\n")
        return text[:start] + text[end:]
    before = _comma(document, node.members[keys[place - 1]]) if place else node.start + 1
    kept = text[before:start].rstrip()  # comments
    if not place and not kept.strip() and not text[member.node.end : node.end - 1].strip():
        return text[:before] + text[node.end - 1 :]
    rest = text[member.node.end :]
    if "//" in kept.rpartition("\n")[2] and not re.match(r"[ \t]*\r?\n", rest):
        kept += "\n"  # what closes the object is not to stand in the comment
    return text[: before - 1 if place else before] + kept + rest


def _line_start(text: str, position: int) -> int:
    """The start of the line, where only blanks stand before the position; else the position."""
    start = text.rfind("\n", 0, position) + 1
    return position if text[start:position].strip() else start


def _blank_end(text: str, position: int, *, whole_line: bool) -> int:
    """Past the blanks at a position, and past the end of its line where nothing else stood on that."""
    blank = re.compile(r"[ \t]*(?:\r?\n)?" if whole_line else r"[ \t]*").match(text, position)
    return blank.end() if blank else position


def _line_indent(text: str, position: int) -> str:
    start = text.rfind("\n", 0, position) + 1
    found = re.match(r"[ \t]*", text[start:position])
    return found[0] if found else ""


def _indent(text: str) -> int | str:
    pad = _pad(text)
    return pad if "\t" in pad else len(pad)


def _pad(text: str) -> str:
    """How deep the document's owner indents a level."""
    found = re.search(r"\n([ \t]+)\S", text)
    return found[1] if found and len(found[1]) <= 8 else "  "


def _shifted(raw: str, indent: str) -> str:
    return raw.replace("\n", f"\n{indent}")
