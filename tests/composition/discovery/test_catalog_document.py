"""Documents of strangers: plain data, or a sentence; never code, never a full memory, never a long wait."""

from __future__ import annotations

import time

import pytest

from composition.discovery.catalog_document import MAX_DEPTH, Unreadable, plain_data

pytestmark = pytest.mark.core

SECONDS = 10.0
"""Far above what any of these takes; a reader without bounds would need hours, or all memory."""

LAUGHS = b"a: &a [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 10)) for i in range(12)
)
HOSTILE = {
    "a billion laughs": (LAUGHS, "more than 500,000 values"),
    "a cycle": (b"a: &a [*a]\n", "alias to what is not there yet, or to itself"),
    "a cycle of tables": (b"a: &a {b: {c: *a}}\n", "or to itself"),
    "an alias to nothing": (b"a: *b\n", "alias to what is not there"),
    "lists, 5 million deep": (b"a: " + b"[" * 5_000_000, "nested more than 64 deep"),
    "a column of lists": (b"- " * 2_000_000, "nested more than 64 deep"),
    "deep JSON": (b"[" * 300_000, "nested more than 64 deep"),
    "deeper JSON": (b"[" * 10_000_000, "more than 500,000 values"),
    "JSON a little too deep": (b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2), "nested more than 64 deep"),
    "4 million lines": (b"- a\n" * 4_000_000, "more than 500,000 values"),
    "5 million numbers": (b"[" + b"1," * 5_000_000 + b"1]", "more than 500,000 values"),
    "a number of 5 million digits": (b"[" + b"9" * 5_000_000 + b"]", "not JSON"),
    "a NUL": (b"a: b\x00c\n", "not YAML: control characters are not allowed"),
    "no UTF-8": (b"a: \xff\xfe\n", "not text in UTF-8"),
    "a tag that makes objects": (b"a: !thing [x]\nb: !thing x\n", "a tag of its own"),
    "merge keys": (b"a: &a {b: 1}\nc: {<<: *a}\n", "merge keys"),
    "a list as a key": (b"? [a]\n: b\n", "a list or a table as a key"),
    "one key twice": (b"a: 1\na: 2\n", r"one key twice in the same table \(line 2\)"),
    "one key twice in JSON": (b'{"a": 1, "a": 2}', "one key twice"),
    "a number that is none": (b'{"a": NaN}', "not JSON"),
    "JSON that ends early": (b'{\n"a": ', r"not JSON \(line 2\)"),
    "YAML that ends early": (b"a: [b\n", "not YAML"),
    "two documents": (b"a: 1\n---\nb: 2\n", "more than one document"),
    "nothing": (b"", "is empty"),
    "10 MB of spaces": (b" " * 10_000_000, "is empty"),
    "10 MB of quotes": (b'a: "' + b"\\" * 10_000_001, "not YAML"),
    "3 million colons": (b":" * 3_000_000, "not YAML"),
    "a key of 10 MB": (b"x" * 10_000_000 + b": 1", "not YAML"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_document_is_refused_soon_and_in_words(kind: str) -> None:
    content, told = HOSTILE[kind]
    began = time.monotonic()
    with pytest.raises(Unreadable, match=told) as caught:
        plain_data(content)
    assert time.monotonic() - began < SECONDS
    assert len(str(caught.value)) < 200


def test_a_large_text_is_only_large() -> None:
    assert plain_data(b"a: " + b"x" * 10_000_000) == {"a": "x" * 10_000_000}


def test_what_makes_objects_elsewhere_is_text_here() -> None:
    assert plain_data(b"a: !!python/name:os.system x\n") == {"a": "x"}


def test_aliases_within_reason_are_read() -> None:
    assert plain_data(b"a: &a {b: [1, 2]}\nc: *a\n") == {"a": {"b": [1, 2]}, "c": {"b": [1, 2]}}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1", 1),
        ("-7", -7),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("0", 0),
        ("0755", "0755"),
        ("0x1f", "0x1f"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("9" * 30, "9" * 30),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("on", "on"),
        ("null", None),
        ("~", None),
        ("", None),
        ("2025-06-18T13:07:01+01:00", "2025-06-18T13:07:01+01:00"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("!!str 5", "5"),
        (".", "."),
        ("-", [None]),
        ("1.2.3", "1.2.3"),
        (".inf", ".inf"),
    ],
)
def test_types_are_those_of_yaml_1_2(written: str, value: object) -> None:
    found = plain_data(f"a:\n {written}\n".encode())["a"]
    assert found == value and type(found) is type(value)


def test_json_and_yaml_say_the_same() -> None:
    assert plain_data(b'\xef\xbb\xbf{"a": [1, true, null, "x"]}') == plain_data(b"a: [1, true, null, x]")
