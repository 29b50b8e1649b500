"""The two template languages of catalogs, with what the reader that they were written for gets wrong."""

from __future__ import annotations

from typing import Any

import pytest

from providers.templates import (
    TemplateError,
    Unset,
    as_items,
    has_terms,
    lookup_in,
    paths_in,
    rendered,
    variables_in,
)

pytestmark = pytest.mark.core

VALUES: dict[str, Any] = {
    "s": {
        "text": "hello",
        "number": 8080,
        "yes": True,
        "part": 0.5,
        "paths": ["/a", "/b"],
        "none": [],
        "empty": "",
        "windows": r"C:\data\x",
        "volume": {"host_share": "/srv/share"},
        "a.b": "dotted",
        "braces": "{{s.text}} $HOME {x}",
        "zero": 0,
        "no": False,
    }
}


def filled(text: str, variables: dict[str, str] | None = None) -> Any:
    return rendered(text, lookup_in(VALUES), variables)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("{{s.text}}", "hello"),
        ("{{ s . text }}", "hello"),
        ("--x={{s.text}}!", "--x=hello!"),
        ("{{s.text}}{{s.number}}", "hello8080"),
        ("{{s.volume.host_share}}", "/srv/share"),
        ("{{s.a.b}}", "dotted"),
        ("{{s.paths|volume}}", ["/a:/a", "/b:/b"]),
        ("{{s.text|volume}}", "hello:hello"),
        ("{{s.windows|volume}}", r"C:\data\x:/C/data/x"),
        ("{{s.windows|volume-target}}", "/C/data/x"),
        ("{{s.paths|volume-target|into}}", ["/a", "/b"]),
        ("{{s.text|into}}", ["hello"]),
        ("{{s.paths|first}}", "/a"),
        ("{{s.paths|last}}", "/b"),
        ("{{s.text|first}}", "hello"),
        ("{{s.missing|or:x y}}", "x y"),
        ("{{s.empty|or:x}}", "x"),
        ("{{s.text|or:x}}", "hello"),
        ("{{s.none|or:[p, q]}}", ["p", "q"]),
        ("{{s.text|mount_as:/data:ro}}", "hello:/data:ro"),
        ("{{s.paths|mount_as:/data}}", "/a:/data"),
        ("{{s.zero}}", 0),
        ("{{s.no}}", False),
    ],
)
def test_terms_and_filters(text: str, value: Any) -> None:
    found = filled(text)
    assert found == value and type(found) is type(value)


# ------------------------------------------------------------------------- what the other reader gets wrong, each once


def test_json_keeps_its_braces() -> None:
    assert filled('{"a": {"b": "{{s.text}}"}, "c": {}}') == '{"a": {"b": "hello"}, "c": {}}'
    assert filled('{"a":{{s.number}}}') == '{"a":8080}'
    assert filled("{{{s.text}}}") == "{hello}"
    assert filled('{"a":{"b":{"c":1}}}') == '{"a":{"b":{"c":1}}}'
    assert filled("{{}} {{ | }} {{a b? }} {{unclosed") == "{{}} {{ | }} {{a b? }} {{unclosed"


@pytest.mark.parametrize(
    ("text", "items"), [("{{s.number}}", ["8080"]), ("{{s.yes}}", ["true"]), ("{{s.no}}", ["false"])]
)
def test_a_lone_number_or_boolean_is_written_as_itself(text: str, items: list[str]) -> None:
    assert as_items(filled(text)) == items


def test_within_a_text_values_are_written_as_json_writes_them() -> None:
    assert filled("{{s.yes}}/{{s.part}}/{{s.paths}}") == 'true/0.5/["/a", "/b"]'


def test_or_an_empty_list_makes_no_volume() -> None:
    assert as_items(filled("{{s.missing|or:[]|volume|into}}")) == []


def test_what_is_not_given_is_named_and_never_an_empty_text() -> None:
    assert filled("{{s.missing}}:/data") == Unset(("s.missing",))
    assert filled("{{s.missing|into}}") == Unset(("s.missing",))
    assert filled("{{s.missing|volume|into}}") == Unset(("s.missing",))
    assert filled("{{s.missing|mount_as:/x}}{{s.other|first}}{{s.missing}}") == Unset(("s.missing", "s.other"))
    assert filled("Bearer $TOKEN/${OTHER}/$TOKEN", {}) == Unset((), ("TOKEN", "OTHER"))
    assert filled("{{s.empty}}") == Unset(("s.empty",))


@pytest.mark.parametrize("text", ["{{s.text|shout}}", "{{s.missing|or:x|into:y|shout:1}}"])
def test_a_filter_that_does_not_exist_is_an_error(text: str) -> None:
    with pytest.raises(TemplateError, match="uses the filter 'shout', which does not exist"):
        filled(text)


def test_mount_as_needs_a_place() -> None:
    with pytest.raises(TemplateError, match="without a path"):
        filled("{{s.text|mount_as}}")


# -------------------------------------------------------------------------------------------- variables, and values


def test_variables_are_the_entrys_own_and_never_this_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/root")
    assert filled("$A-${B}", {"A": "1", "B": "2"}) == "1-2"
    assert filled("$HOME", {"A": "1"}) == Unset((), ("HOME",))


def test_what_is_no_variable_stays() -> None:
    assert filled("$5 $$ ${ } ${a-b} 100$ {{s.text}}", {}) == "$5 $$ ${ } ${a-b} 100$ hello"
    assert filled("$NAME") == "$NAME"


def test_a_value_is_no_template() -> None:
    assert filled("{{s.braces}}", {"HOME": "x"}) == "{{s.text}} $HOME {x}"
    assert filled("$A", {"A": "{{s.text}} $B"}) == "{{s.text}} $B"


def test_what_a_text_asks_for_is_told() -> None:
    assert paths_in("{{a.b|into}} {{c}} {{ }} $D") == ["a.b", "c"]
    assert variables_in("$A ${B} $5 {{c}}") == ["A", "B"]
    assert has_terms("x{{a}}") and not has_terms("{{}}")
