"""From entries to resources: what is given goes where it belongs, what is missing is named, and nothing is invented."""

from __future__ import annotations

from typing import Any

import pytest

from composition.discovery.catalog import Entry
from composition.discovery.catalog_resources import NOTHING, Given, converted
from composition.discovery.found import Found, NeedKind, State
from providers.errors import ConfigurationError
from providers.resource import McpServerResource
from tests.helpers.catalogs import SMALL, shelf_of

pytestmark = pytest.mark.core

SHELF = shelf_of(SMALL)


def small(name: str, given: Given = NOTHING) -> Found:
    return SHELF.find(name, given)


def made(given: Given = NOTHING, name: str = "x", **entry: Any) -> Found:
    """What becomes of an entry with an image."""
    return converted(name, Entry.model_validate({"image": "example/x", **entry}), name, given)


def missing(found: Found) -> list[str]:
    return [need.name for need in found.missing]


def form(**properties: Any) -> list[dict[str, Any]]:
    required = [name for name, schema in properties.items() if schema.pop("needed", False)]
    return [{"name": "x", "properties": properties, "required": required}]


# ------------------------------------------------------------------------------------------------------ containers


def test_an_image_keeps_its_digest_and_gets_the_internet() -> None:
    plain = small("plain")
    assert plain.resource["docker_image"].startswith("example/plain@sha256:aaaa")
    assert (plain.resource["docker_network"], plain.resource["isolation"]) == ("internet", "call")
    assert (plain.state, plain.kind, plain.tools) == (State.RUNNABLE, "container", ("say", "list_words"))


def test_a_secret_is_named_and_never_held() -> None:
    search = small("search")
    assert search.resource["env"] == {"SEARCH_API_KEY": "${secret:search.api_key}", "SEARCH_TRANSPORT": "stdio"}
    assert search.in_one_line() == "needs secret search.api_key"
    assert small("search", Given(secrets=["search.api_key"])).state is State.RUNNABLE


def test_folders_become_arguments_and_volumes() -> None:
    assert small("folders").in_one_line() == "needs config paths"
    folders = small("folders", Given({"paths": ["/srv/a", "/srv/b"]}))
    assert folders.resource["args"] == ["/srv/a", "/srv/b"]
    assert folders.resource["docker_volumes"] == ["/srv/a:/srv/a", "/srv/b:/srv/b"]
    assert folders.resource["docker_network"] == "none"
    writable = small("folders", Given({"paths": "/srv/a"}, is_writable=True))
    assert writable.resource["docker_volumes"] == ["/srv/a:/srv/a:rw"]


def test_an_entry_with_everything() -> None:
    bare = small("Note_Book")
    assert missing(bare) == ["note-book.notes.token", "share", "page.url or feed.url"]
    values = {"share": "/srv/notes", "page.url": "https://x", "user": "1000", "port": "80"}
    book = small("note-book", Given(values, secrets=["note-book.notes.token"]))
    assert (book.name, book.original, book.state) == ("note-book", "Note_Book", State.RUNNABLE)
    assert book.resource["args"] == ["--level", "info", "--port=80"]
    assert book.resource["docker_volumes"] == ["apollos-mcp-note-book_notes-data:/data:rw", "/srv/notes:/share"]
    assert (book.resource["docker_user"], book.resource["isolation"]) == ("1000", "session")
    header = '{"Authorization": "Bearer ${secret:note-book.notes.token}", "Version": {"n": 1}}'
    assert book.resource["env"]["HEADERS"] == header
    assert book.notes == (
        "It keeps data in the Docker volume 'apollos-mcp-note-book_notes-data'.",
        "It asks to reach only api.example.com:443. The gateway cannot hold it to that.",
    )
    McpServerResource.model_validate({"name": book.name, **book.resource})


def test_what_is_optional_and_not_given_is_left_out() -> None:
    entry: dict[str, Any] = {
        "env": [{"name": "A", "value": "{{x.a}}"}, {"name": "B", "value": "{{x.a}}/log"}, {"name": "C", "value": ""}],
        "command": ["--a={{x.a}}", "{{x.a}}", "run"],
        "volumes": ["{{x.a|volume|into}}"],
        "user": "{{x.a}}",
        "config": form(a={"type": "string"}),
    }
    bare = made(**entry)
    assert bare.state is State.RUNNABLE
    assert {"env", "docker_volumes", "docker_user"}.isdisjoint(bare.resource) and bare.resource["args"] == ["run"]


def test_what_cannot_be_left_out_is_asked_for() -> None:
    assert missing(made(command=["--a", "{{x.a}}"], config=form(a={"type": "string"}))) == ["a"]
    assert missing(made(volumes=["{{x.a}}:/data"], config=form(a={"type": "string"}))) == ["a"]
    assert missing(made(volumes=["{{x.nowhere}}:/data"])) == ["nowhere"]
    assert missing(made(config=form(a={"type": "string", "needed": True}))) == ["a"]
    assert missing(made(config=form(a={"type": "string", "needed": True, "default": "d"}))) == []


def test_a_volume_is_the_servers_own_unless_a_person_names_it() -> None:
    hostile = ["{{x.a|or:database}}:/a", "{{x.b|mount_as:/b}}", "other:/c:ro", "/etc:/d", "{{x.e}}"]
    found = made(Given({"b": "mine", "e": "whole:/e:ro"}), volumes=hostile)
    assert found.resource["docker_volumes"] == [
        "apollos-mcp-x_database:/a:rw",
        "mine:/b:rw",
        "apollos-mcp-x_other:/c:ro",
        "/etc:/d",
        "whole:/e:ro",
    ]
    assert "It asks for '/etc' of this machine." in found.notes


def test_values_are_called_by_the_servers_name_however_it_is_written() -> None:
    env = [{"name": "A", "value": "{{com.example.x.key}}"}, {"name": "B", "value": "{{com_example_x.key}}"}]
    for config in ([], [{"name": "com", "properties": {"example": {"type": "string"}}}]):
        entry = Entry.model_validate({"image": "example/x", "env": env, "config": config})
        found = converted("com.example.x", entry, "x", Given({"key": "v"}))
        assert found.resource["env"] == {"A": "v", "B": "v"}


def test_variables_stand_for_earlier_ones_and_for_secrets_that_are_told_nowhere() -> None:
    found = made(env=[{"name": "A", "value": "1"}, {"name": "B", "value": "$A-${TOKEN}"}])
    assert found.resource["env"]["B"] == "1-${secret:x.token}"
    assert missing(found) == ["x.token"]


@pytest.mark.parametrize(
    ("kind", "given", "text"),
    [("boolean", "true", "true"), ("integer", "8080", "8080"), ("number", "0.5", "0.5"), ("string", "true", "true")],
)
def test_values_keep_the_form_of_their_type(kind: str, given: str, text: str) -> None:
    found = made(Given({"a": given}), env=[{"name": "A", "value": "{{x.a}}"}], config=form(a={"type": kind}))
    assert found.resource["env"] == {"A": text}


@pytest.mark.parametrize(
    ("schema", "given", "told"),
    [
        ({"type": "integer"}, "many", "'a' has to be a whole number"),
        ({"type": "boolean"}, "yes", "'a' has to be true or false"),
        ({"type": "number"}, True, "'a' has to be a number"),
        ({"type": "array"}, "[1", "'a' has to be a list"),
        ({"type": "string"}, ["x"], "'a' has to be a text"),
        ({"type": "string", "enum": ["p", "q"]}, "x", "'a' has to be one of p, q"),
    ],
)
def test_a_value_of_a_wrong_type_is_told(schema: dict[str, Any], given: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        made(Given({"a": given}), config=form(a=schema))


def test_a_key_that_does_not_exist_is_told_with_the_one_that_was_meant() -> None:
    with pytest.raises(
        ConfigurationError, match=r"'pathes' is nothing that this server asks for\. Did you mean 'paths'"
    ):
        small("folders", Given({"pathes": "/a"}))


def test_a_secret_may_be_optional_or_done_without() -> None:
    secrets = [{"name": "x.a", "env": "A", "required": False}, {"name": "x.b", "env": "B"}]
    assert made(secrets=secrets).resource["env"] == {"B": "${secret:x.b}"}
    chosen = made(Given(secrets=["x.a"], without=["x.b"]), secrets=secrets)
    assert chosen.resource["env"] == {"A": "${secret:x.a}"} and chosen.state is State.RUNNABLE


def program(**container: Any) -> dict[str, Any]:
    """An entry with one tool, which is a program."""
    parameters = {"type": "object", "properties": {"words": {"type": "array"}, "folder": {"type": "string"}}}
    tool = {"name": "say", "description": "Says it.", "parameters": parameters}
    return {"type": "poci", "image": "", "tools": [tool | {"container": {"image": "example/say"} | container}]}


def test_tools_that_are_programs_become_such() -> None:
    entry = program(command=["{{words|into}}"], volumes=["{{folder}}:{{folder}}", "cache:/cache"], user="1000")
    entry["tools"] += [{**entry["tools"][0], "name": "other", "container": {"image": "example/other"}}]
    found = made(**entry)
    assert found.state is State.RUNNABLE and found.kind == "containers per call" and found.tools == ("say", "other")
    assert found.resource["docker_image"] == "example/say" and found.resource["docker_network"] == "internet"
    say, other = found.resource["docker_tools"].values()
    assert say["volumes"] == ["{{folder}}:{{folder}}", "apollos-mcp-x_cache:/cache:rw"] and say["user"] == "1000"
    assert (say["args"], other["image"]) == (["{{words|into}}"], "example/other") and "image" not in say
    assert any("below docker_allowed_paths" in note for note in found.notes)
    writable = made(Given(is_writable=True), **entry).resource["docker_tools"]["say"]["volumes"]
    assert writable[0] == "{{folder}}:{{folder}}:rw"
    for text in ("{{folder|or:/srv/a}}:/data", "{{words|volume|into}}", "{{folder|mount_as:/data}}"):
        one = program(volumes=[text, "{{folder|mount_as:/own:ro}}"])
        volumes = made(Given(is_writable=True), **one).resource["docker_tools"]["say"]["volumes"]
        assert volumes == [f"{text}:rw", "{{folder|mount_as:/own:ro}}"]


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"image": ""}, "names no image"),
        ({"image": "UPPER/case"}, "'docker_image' must be an image"),
        ({"type": "new"}, "a type that is not known"),
        ({"type": "poci"}, "names no tools"),
        ({"type": "poci", "tools": [{"name": "say"}]}, "names no image for the tool 'say'"),
        (program(volumes=["/var/run/docker.sock:/var/run/docker.sock"]), "wants the socket of the Docker engine"),
        (program(command=["{{other}}"]), "'docker_tools.say' asks for 'other', which is none of its parameters"),
        (program(command=["{{words|shout}}"]), "'docker_tools.say' uses the filter 'shout'"),
        (program(command=["$T", "${secret:x.t}"]), "names a secret in 'docker_tools'"),
        (program(image="UPPER/case"), "'docker_image' must be an image"),
        ({"extraHosts": ["db:10.0.0.1"]}, "names of other machines"),
        ({"user": "root"}, "'docker_user' may not be root"),
        ({"volumes": ["/a:/proc/x"]}, "'docker_volumes.0' has a target that is not for mounting"),
        ({"volumes": ["/a:/b:z"]}, "'docker_volumes.0' must be"),
        ({"command": ["$T"], "secrets": [{"name": "x.t", "env": "T"}]}, "a secret on the command line"),
        ({"command": ["{{x.a|shout}}"]}, "uses the filter 'shout'"),
        ({"env": [{"name": "A", "value": "${secret:other.token}"}]}, "a secret that is not its own"),
        ({"env": [{"name": "A", "value": "{{x.a|or:$}}{secret:other.token}"}]}, "a secret that is not its own"),
        ({"type": "remote"}, "names no address"),
        ({"type": "remote", "remote": {"url": "https://x.example", "transport_type": "ws"}}, "transport"),
    ],
)
def test_what_cannot_run_here_says_why(entry: dict[str, Any], told: str) -> None:
    found = made(**entry)
    assert found.state is State.NOT_RUNNABLE and told in found.in_one_line()
    assert found.resource == {}


def test_no_entry_names_the_secret_of_another_server() -> None:
    thief = made(secrets=[{"name": "github.token", "env": "T"}], name="thief")
    assert thief.resource["env"] == {"T": "${secret:thief.github.token}"}


def test_no_value_names_the_secret_of_another_server() -> None:
    given = Given({"a": "${secret:github.token}"})
    found = made(given, env=[{"name": "A", "value": "{{x.a}}"}], config=form(a={"type": "string"}))
    assert found.problem == "it asks for a secret that is not its own"


# ------------------------------------------------------------------------------------------------------- elsewhere


def test_a_remote_server_has_its_address_and_headers() -> None:
    assert small("weather").resource == {
        "url": "https://weather.example.com/sse",
        "transport_type": "sse",
        "description": "The weather, over there.",
    }
    keyed = small("keyed")
    assert keyed.resource["headers"] == {"Authorization": "Bearer ${secret:keyed.token}"}
    assert (keyed.resource["transport_type"], missing(keyed)) == ("streamable_http", ["keyed.token"])


def test_who_has_to_log_in_is_asked_for_the_token() -> None:
    login = small("login")
    assert login.resource["headers"] == {"Authorization": "Bearer ${secret:login.access}"}
    assert login.missing[0].kind is NeedKind.SECRET and "OAuth" in login.missing[0].description


def test_the_old_way_to_say_an_address_is_read() -> None:
    old = converted("x", Entry.model_validate({"sseEndpoint": "https://x.example.com/sse"}), "x")
    assert (old.resource["url"], old.resource["transport_type"]) == ("https://x.example.com/sse", "sse")


def test_an_address_may_hold_values() -> None:
    entry = Entry.model_validate(
        {
            "type": "remote",
            "remote": {
                "transport_type": "http",
                "url": "https://{{x.site}}.example.com/mcp",
                "headers": {"X-Team": "{{x.team}}"},
            },
        }
    )
    assert missing(converted("x", entry, "x")) == ["site", "team"]
    found = converted("x", entry, "x", Given({"site": "a", "team": "b"}))
    assert found.resource["url"] == "https://a.example.com/mcp" and found.resource["headers"] == {"X-Team": "b"}


@pytest.mark.parametrize(
    "url",
    [
        "http://x.example.com/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://169.254.169.254/latest",
        "https://10.0.0.1/",
        "https://localhost/",
        "https://x.localhost./",
        "https://db.internal/",
        "https://user:password@x.example.com/",
        "https://[x/",
        "file:///etc/passwd",
        "//x.example.com/",
    ],
)
def test_an_address_that_is_not_of_the_web_is_refused(url: str) -> None:
    found = made(type="remote", remote={"transport_type": "sse", "url": url})
    assert found.state is State.NOT_RUNNABLE and "password" not in found.in_one_line()
