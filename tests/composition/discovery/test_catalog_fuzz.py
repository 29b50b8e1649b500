"""Whatever a stranger writes, the reader, the templates and the conversion answer in words, or not at all."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from composition.columns import in_columns
from composition.discovery.catalog import read_catalog
from composition.discovery.catalog_commands import as_json, as_toml, description
from composition.discovery.catalog_document import Unreadable, plain_data
from composition.discovery.catalog_resources import Given
from composition.discovery.catalog_sources import Shelf
from composition.discovery.found import State
from providers.errors import ConfigurationError
from providers.resource import McpServerResource
from providers.templates import TemplateError, Unset, as_items, as_text, lookup_in, rendered

fuzz = settings(derandomize=True, database=None, deadline=None, max_examples=300)

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)
SIGNS = [
    *"[]{},'\"|>!?#%\n\t\0\x85~0é\ud7ff",
    "a",
    "&a ",
    "*a",
    ": ",
    "- ",
    "  ",
    "!!int ",
    "<<",
    "---",
    "...",
    "1e9",
    "true",
]
YAML = st.lists(st.sampled_from(SIGNS)).map("".join)
PIECES = ["{{", "}}", "{", "}", "a", ".", "b", "|", ":", "into", "or:[]", "or:$", "volume", "first", "mount_as:/m", " "]
PIECES += ["$A", "${A}", "$", "/", "-", "x.key", "${secret:o.t}", "{{x.key}}", "{{x.key|volume|into}}", "\x1b", "é", ""]
TEMPLATES = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
NAMES = st.sampled_from(["A", "B", "x.key", "key", "x", "", "other.key", "A=B", "é"])
FORMS = st.fixed_dictionaries(
    {},
    optional={
        "name": NAMES,
        "required": st.lists(NAMES) | LEAVES,
        "anyOf": st.lists(st.fixed_dictionaries({}, optional={"required": st.lists(NAMES) | LEAVES})),
        "properties": st.dictionaries(
            NAMES, TREES | st.fixed_dictionaries({"type": st.sampled_from(["integer", "array", "object", "odd"])})
        ),
    },
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["server", "remote", "poci", "odd", ""]),
        "title": st.text() | TREES,
        "description": st.text(),
        "image": st.sampled_from(["example/x", "X", ""]) | TREES,
        "command": st.lists(TEMPLATES),
        "volumes": st.lists(TEMPLATES),
        "user": TEMPLATES,
        "env": st.lists(st.fixed_dictionaries({"name": NAMES, "value": TEMPLATES})) | TREES,
        "secrets": st.lists(st.fixed_dictionaries({"name": NAMES, "env": NAMES})) | TREES,
        "config": st.lists(FORMS) | TREES,
        "remote": st.fixed_dictionaries(
            {"url": TEMPLATES.map("https://a.example/{}".format) | TEMPLATES, "transport_type": st.just("sse")},
            optional={"headers": st.dictionaries(NAMES, TEMPLATES)},
        ),
        "oauth": st.fixed_dictionaries({"providers": st.lists(st.fixed_dictionaries({"secret": NAMES}))}) | TREES,
        "tools": TREES,
        "longLived": LEAVES,
    },
)


@fuzz
@given(st.binary() | YAML.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.text().map(str.encode))
def test_any_document_is_data_or_unreadable(content: bytes) -> None:
    try:
        data = plain_data(content)
    except Unreadable as error:
        assert str(error).isprintable()
    else:
        json.dumps(data)


@fuzz
@given(TREES)
def test_what_json_can_say_is_read_as_it_is(tree: Any) -> None:
    read = plain_data(json.dumps({"a": tree}).encode())
    assert json.dumps(read) == json.dumps({"a": tree})


@fuzz
@given(TEMPLATES | st.text(), TREES, st.none() | st.dictionaries(NAMES, st.text(), max_size=2))
def test_any_template_has_a_value_or_names_what_it_lacks(
    text: str, value: Any, variables: dict[str, str] | None
) -> None:
    try:
        found = rendered(text, lookup_in({"x": {"key": value}, "a": value}), variables)
    except TemplateError as error:
        assert "filter" in str(error)
        return
    if isinstance(found, Unset):
        assert found.paths or found.variables
    else:
        assert isinstance(as_text(found), str)
        assert all(as_items(found))


@fuzz
@given(st.dictionaries(NAMES | st.text(), ENTRIES | TREES, max_size=4), st.dictionaries(NAMES, LEAVES, max_size=3))
def test_any_entry_becomes_a_server_or_says_why_not(registry: dict[str, Any], values: dict[str, Any]) -> None:
    shelf = Shelf()
    shelf.add("fuzz", read_catalog(json.dumps({"registry": registry}).encode()))
    servers = shelf.servers()
    assert len(servers) == len({server.name for server in servers})
    for server in servers:
        assert in_columns([description(server)]) and json.dumps(as_json(server))
        assert "${secret:o.t}" not in str(server.resource)
        if server.state is not State.NOT_RUNNABLE and not server.missing:
            resource = McpServerResource.model_validate({"name": server.name, **server.resource})
            assert as_toml(resource)
        try:
            assert shelf.find(server.name, Given(values)).name == server.name
        except ConfigurationError as error:
            assert error.problems
