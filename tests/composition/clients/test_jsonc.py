"""The text of a client's configuration: read as the client reads it, and edited so that all else stays."""

from __future__ import annotations

import json
import re

import pytest

from composition.clients.jsonc import parse, with_member, without_member
from providers.errors import ConfigurationError

pytestmark = pytest.mark.core

COMMENTED = """// my servers
{
  /* the first */
  "editor.fontSize": 14,
  "servers": {
    "time": { "command": "uvx" }, // what time it is
    // and the last
    "git": {
      "command": "uvx", "args": ["mcp-server-git",],
    },
  },
}
"""


def test_comments_and_trailing_commas_are_read() -> None:
    value = parse(COMMENTED).root.value
    assert value["servers"]["git"] == {"command": "uvx", "args": ["mcp-server-git"]}
    assert list(value["servers"]) == ["time", "git"]


@pytest.mark.parametrize(
    "text", ["{}", "[]", '"a\\u00e9\\n"', "-1.5e3", "true", '{"a": {"b": [1, null, {}]}}', ' { "a" : 1 } ', "\ufeff{}"]
)
def test_plain_json_is_read_as_json_says(text: str) -> None:
    assert parse(text, comments=False).root.value == json.loads(text.removeprefix("\ufeff"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ("{", "a key in double quotes is missing here (line 1, column 2)"),
        ('{"a": 1\n "b": 2}', "a ',' or '}' is missing here (line 2, column 2)"),
        ("{'a': 1}", "a key in double quotes"),
        ('{"a": }', "a value is missing"),
        ('{"a": 1, "a": 2}', "stands there twice"),
        ('{"a": "b\nc"}', "does not end on its line"),
        ("{} {}", "text follows"),
        ("[" * 5000, "nested more than 100 deep"),
        ('{"a": 1 /* never ends', "is missing here"),
        ("[1,,2]", "a value is missing"),
        ("NaN", "a value is missing"),
        ("9" * 5000, "a value is missing"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_without_its_text(text: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        parse(text)
    assert told in str(error.value)


@pytest.mark.parametrize("text", ['{"a": 1,}', '{"a": 1} // x', "/* x */ {}"])
def test_a_client_that_reads_no_comments_is_given_none(text: str) -> None:
    with pytest.raises(ConfigurationError, match="which this client does not read"):
        parse(text, comments=False)


@pytest.mark.parametrize(
    "text",
    [
        COMMENTED,
        "{}",
        "{\n}",
        '{"servers": {}}',
        '{"servers": {"a": {"command": "x"}}, "b": 1}',
        '{\n\t"servers": {\n\t\t"a": 1 // note\n\t}\n}\n',
        '{\n  "other": [1, 2]\n}',
        '{\r\n  "servers": {\r\n    "a": 1\r\n  }\r\n}\r\n',
        '{\n  "servers": {\n    // nothing yet\n  }\n}\n',
    ],
)
def test_a_member_is_put_in_and_taken_out_and_all_else_stays(text: str) -> None:
    entry = {"command": "uv", "args": ["run", "é"]}
    before = parse(text).root.value
    added = with_member(parse(text), ["servers"], "apollos", entry)
    assert parse(added).root.value == {**before, "servers": {**before.get("servers", {}), "apollos": entry}}
    assert re.findall(r"//.*|/\*.*\*/", added) == re.findall(r"//.*|/\*.*\*/", text)
    again = with_member(parse(added), ["servers"], "apollos", entry)
    assert again == added
    removed = without_member(parse(added), ["servers"], "apollos")
    assert parse(removed).root.value == {**before, "servers": before.get("servers", {})}
    if before.get("servers"):
        assert re.sub(r"[\s,]", "", removed) == re.sub(r"[\s,]", "", text)


@pytest.mark.parametrize("key", ["a", "b", "c"])
@pytest.mark.parametrize("text", ['{"a": 1, "b": {"x": 2}, "c": 3}', '{\n  "a": 1,\n  "b": 2, // b\n  "c": 3\n}'])
def test_any_member_can_be_taken_out(text: str, key: str) -> None:
    left = parse(without_member(parse(text), [], key)).root.value
    assert left == {name: value for name, value in parse(text).root.value.items() if name != key}
    assert without_member(parse(text), [], "none") == text


def test_what_is_no_object_is_not_made_one() -> None:
    with pytest.raises(ConfigurationError, match="key 'servers' must be an object"):
        with_member(parse('{"servers": []}'), ["servers"], "a", {})


@pytest.mark.parametrize(
    "text", ['{"s": { // one\n"a": 1}}', '{"s": {"b": 2, // one\n"a": 1}}', '{"s": {"b": 2 // x\n,"a": 1}}']
)
def test_a_comment_does_not_swallow_what_closes_the_object(text: str) -> None:
    without = without_member(parse(text), ["s"], "a")
    assert "a" not in parse(without).root.value["s"] and "//" in without
