"""The record of one server: which records can exist, what they leave out of messages, and who may use them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from providers.identity import Identity
from providers.resource import (
    EVERYONE,
    NAME_PATTERN,
    Isolation,
    McpServerResource,
    ServerKind,
    Timeouts,
    ToolRules,
    TransportType,
    can_access,
    creator_name,
    may,
    reach_problem,
)

URL = "https://docs.example.com/mcp"


def record(**fields: Any) -> McpServerResource:
    return McpServerResource.model_validate({"name": "docs", **({} if "command" in fields else {"url": URL}), **fields})


def refusal(**fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        record(**fields)
    return str(caught.value)


# --------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["a", "7", "time", "my-docs", "a-", "a" * 63])
def test_a_name_that_routes_is_taken(name: str) -> None:
    assert record(name=name).name == name


@pytest.mark.parametrize("name", ["", "-a", "A", "a_b", "a.b", "a b", "é", "a\n", "a" * 64, "٣"])
def test_a_name_that_does_not_route_is_refused(name: str) -> None:
    assert "is not a server name; use lower-case letters" in refusal(name=name)
    assert not NAME_PATTERN.match(name)


# ------------------------------------------------------------------------------------------------- how it is reached


@pytest.mark.parametrize(
    ("fields", "transport", "kind"),
    [
        ({"command": "uvx"}, TransportType.STDIO, ServerKind.CLIENT),
        ({"url": URL}, TransportType.STREAMABLE_HTTP, ServerKind.SERVICE),
        ({"url": URL, "transport_type": "sse"}, TransportType.SSE, ServerKind.SERVICE),
        ({"url": URL, "command": None, "transport_type": "streamable_http"}, "streamable_http", ServerKind.SERVICE),
        ({"python": "a.py:mcp", "url": None}, TransportType.PYTHON, ServerKind.BUILT_IN),
    ],
)
def test_the_transport_follows_from_the_way_it_is_reached(
    fields: dict[str, Any], transport: TransportType, kind: ServerKind
) -> None:
    resource = record(**fields)
    assert (resource.transport_type, resource.kind) == (transport, kind)


@pytest.mark.parametrize(
    ("transport", "given", "problem"),
    [
        (None, ["command", "args", "env", "cwd"], None),
        (None, ["url", "headers", "tools", "description"], None),
        (TransportType.SSE, ["url", "headers"], None),
        (TransportType.PYTHON, ["python"], None),
        (None, [], "needs 'command' (a local process), 'url' (a remote server), 'docker_image' (a container)"),
        (TransportType.SSE, ["headers"], "needs 'command'"),
        (None, ["url", "python"], "has 'url' and 'python'. Keep one of them"),
        (TransportType.STDIO, ["url"], "has transport_type 'stdio', which needs 'command' and not 'url'"),
        (TransportType.SSE, ["command"], "has transport_type 'sse', which needs 'url' and not 'command'"),
        (None, ["python", "args", "env"], "has 'args' and 'env', of no use to a server that is reached by 'python'"),
    ],
)
def test_a_server_is_reached_in_one_way(transport: TransportType | None, given: list[str], problem: str | None) -> None:
    told = reach_problem(transport, given)
    assert told is None if problem is None else problem in str(told)


def test_a_record_keeps_to_that_too() -> None:
    assert "has 'command' and 'url'" in refusal(command="c", url=URL)
    assert "needs 'command'" in refusal(url=None)
    assert "of no use" in refusal(args=["a"])
    assert "Extra inputs are not permitted" in refusal(colour="red")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/mcp", "https://user:pass@h/mcp?x=1", "http://[::1]:80/", "HTTPS://h"]
)
def test_a_url_that_can_be_asked_is_taken(url: str) -> None:
    assert record(url=url).url == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h",
        "ftp://h",
        "http://",
        "http://:80",
        "http://h:0",
        "http://h:x",
        "http://[::1",
        "http://h/a b",
        "http://h\n",
    ],
)
def test_a_url_that_cannot_be_asked_is_refused(url: str) -> None:
    assert "\nurl\n" in refusal(url=url)


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ({"A B": "c"}, "has the name 'A B'"),
        ({"": "c"}, "has the name ''"),
        ({"A\r\nB": "c"}, "has the name"),
        ({"A": "b\r\nC: d"}, "has a line break or a NUL in the value of 'A'"),
        ({"A": "b\0"}, "has a line break or a NUL in the value of 'A'"),
        ({"x-mcp-userid": "root"}, "which is the gateway's own"),
        ({"Mcp-Session-Id": "1"}, "which the gateway sets for each request"),
        ({"content-type": "text/plain"}, "which the gateway sets for each request"),
        ({"Transfer-Encoding": "chunked"}, "which the gateway sets for each request"),
        ({"A": "b", "a": "c"}, "has one header twice"),
    ],
)
def test_a_header_that_could_change_a_request_is_refused(headers: dict[str, str], problem: str) -> None:
    assert problem in refusal(headers=headers)


def test_what_no_process_can_be_given_is_refused() -> None:
    assert "must not hold a NUL character" in refusal(command="a\0b")
    assert "must not hold a NUL character" in refusal(command="c", args=["a\0b"])
    assert "must not hold a NUL character" in refusal(command="c", env={"A": "a\0b"})
    assert "holds '='" in refusal(command="c", env={"A=B": "c"})
    assert "name is empty" in refusal(command="c", env={"": "c"})


def test_a_disabled_server_keeps_what_is_not_filled_in() -> None:
    assert record(is_enabled=False, url="${URL}/mcp").url == "${URL}/mcp"
    assert record(is_enabled=False, url=None, python="${FILE}").transport_type == "python"
    assert "must begin with http" in refusal(url="${URL}/mcp")
    assert "must be a file" in refusal(url=None, python="${FILE}")
    assert "must begin with http" in refusal(is_enabled=False, url="ftp://h")


# ---------------------------------------------------------------------------------------------- tools and deadlines


def test_tools_are_chosen_and_renamed() -> None:
    rules = ToolRules(include=("a", "b"), rename={"a": "z"})
    assert [name for name in "abc" if rules.offers(name)] == ["a", "b"]
    assert [rules.public_name(name) for name in "ab"] == ["z", "b"]
    assert ToolRules(exclude=("a",)).offers("b")
    assert not ToolRules(exclude=("a",)).offers("a")
    assert not ToolRules(include=()).offers("a")


def test_two_tools_may_change_places() -> None:
    rules = ToolRules(include=("a", "b"), rename={"a": "b", "b": "a"})
    assert [rules.public_name(name) for name in "ab"] == ["b", "a"]


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ({"rename": {"a": "z", "b": "z"}}, "gives 'b' the name that 'a' has"),
        ({"include": ["z", "a"], "rename": {"a": "z"}}, "gives 'a' the name that item 1 of include has"),
        ({"include": ["a", "b"], "exclude": ["b"]}, "has item 2 of include in exclude too"),
        ({"rename": {"a": ""}}, "gives 'a' a name that no tool may have"),
        ({"rename": {"a": "é"}}, "gives 'a' a name that no tool may have"),
        ({"rename": {"a": "b" * 129}}, "gives 'a' a name that no tool may have"),
    ],
)
def test_rules_that_contradict_each_other_are_refused(rules: dict[str, Any], problem: str) -> None:
    assert problem in refusal(tools=rules)


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan"), True, "soon", None])
def test_a_deadline_is_a_positive_number_that_ends(seconds: object) -> None:
    assert "timeouts.call" in refusal(timeouts={"call": seconds})


def test_a_deadline_may_be_written_as_text() -> None:
    assert record(timeouts={"call": "1.5"}).timeouts == Timeouts(call=1.5)


# -------------------------------------------------------------------------------------------------------- what is told


def test_a_repr_and_a_refusal_hold_no_secret() -> None:
    secrets = {"args": ["hunter2"], "env": {"KEY": "hunter2"}}
    assert "hunter2" not in repr(record(command="c", **secrets))
    assert "hunter2" not in repr(record(url="https://u:hunter2@h", headers={"A": "hunter2"}))
    assert "hunter2" not in refusal(command="c", **secrets, headers={"A": "hunter2"})
    assert "hunter2" not in refusal(url="hunter2://h", headers={"A": "hunter2\n"}, timeouts={"call": "hunter2"})


def test_the_same_offer_is_the_same_whatever_the_bookkeeping_says() -> None:
    first = record()
    assert first.same_offer(record(version=7, created_by="ann"))
    assert not first.same_offer(record(description="other"))


def test_what_only_shows_does_not_make_another_backend() -> None:
    first = record()
    assert first.same_backend(record(description="other", tools={"exclude": ["a"]}, required_roles=["x"]))
    assert not first.same_backend(record(headers={"A": "b"}))
    assert not first.same_backend(record(isolation=Isolation.USER))


# ---------------------------------------------------------------------------------------------------------- permission


@pytest.mark.parametrize(
    ("user", "roles", "required", "read", "write"),
    [
        ("ann", [], [], True, True),  # who created it
        ("bob", [], [], False, False),
        ("bob", ["mcp.admin"], [], True, True),
        ("bob", ["engineer"], ["engineer", "other"], True, False),
        ("bob", ["other"], ["engineer"], False, False),
        ("bob", [], [EVERYONE], True, False),
        ("bob", ["Engineer"], ["engineer"], False, False),
        ("Ann", [], [], False, False),
        ("bob", [EVERYONE], ["engineer"], False, False),
        ("bob", ["engineer"], [], False, False),
    ],
)
def test_who_may_read_and_who_may_write(
    user: str, roles: list[str], required: list[str], read: bool, write: bool
) -> None:
    resource = record(created_by="ann", required_roles=required)
    assert can_access(resource, user, roles) is read
    assert can_access(resource, user, roles, "write") is write


def test_a_user_called_like_the_file_is_not_the_creator_of_its_servers() -> None:
    resource = McpServerResource(name="time", command="uvx", created_by="servers.toml")
    assert not can_access(resource, "servers.toml", [], "read")
    assert not can_access(resource, "servers.toml", [], "write")


@pytest.mark.parametrize("issuer", ["local", "tokens", "https://login.example.com"])
def test_a_creator_is_a_user_of_one_issuer(issuer: str) -> None:
    ann = Identity("ann/lee", "Ann", issuer=issuer)
    resource = record(created_by=ann.key)
    assert may(ann, "read", resource) and may(ann, "write", resource)
    for other in (replace(ann, issuer="another"), replace(ann, user_id="ann"), replace(ann, user_id=ann.key)):
        assert not may(other, "read", resource) and not may(other, "write", resource)
    assert creator_name(resource.created_by) == "ann/lee" and creator_name("servers.toml") == "servers.toml"
