"""What patterns of `dynamic_allow` cover, and what they never do."""

from __future__ import annotations

from typing import Any

import pytest

from composition.dynamic_rules import AllowList, what_it_is
from composition.servers_file import load_configuration
from providers.errors import ConfigurationError
from providers.resource import McpServerResource

pytestmark = pytest.mark.core


def covers(pattern: str, **keys: Any) -> bool:
    return AllowList([pattern] if pattern else []).covers(McpServerResource(name="one", **keys))


NPM = {"command": "npx", "args": ("-y", "@scope/server@1.2.3", "--folder", "/srv")}
PYPI = {"command": "uvx", "args": ("--from", "mcp-server-time==1.0", "mcp-server-time")}
IMAGE = {"docker_image": "mcp/time:1@sha256:" + "a" * 64}


@pytest.mark.parametrize(
    ("pattern", "keys", "is_covered"),
    [
        ("npm:@scope/*", NPM, True),
        ("npm:@scope/server", NPM, True),
        ("npm:@scope/server@1.2.3", NPM, True),
        ("npm:@scope/server@2*", NPM, False),
        ("npm:@other/*", NPM, False),
        ("pypi:@scope/*", NPM, False),
        ("pypi:mcp-server-*", PYPI, True),
        ("pypi:mcp-server-time==1.0", PYPI, True),
        ("pypi:mcp-server-time", {"command": "uvx", "args": ("mcp-server-time",)}, True),
        ("pypi:*", {"command": "uvx", "args": ("--index", "mcp-server-time")}, False),
        ("pypi:*", {"command": "python", "args": ("-m", "evil")}, False),
        ("npm:*", {"command": "npx", "args": ("-c", "evil")}, False),
        ("image:mcp/*", IMAGE, True),
        ("image:mcp/time", IMAGE, True),
        ("image:mcp/*", {"docker_image": "evil.example.com/mcp/time"}, False),
        ("", PYPI, False),
        ("remote:https://*.example.com/*", PYPI, False),
    ],
)
def test_a_pattern_says_what_runs(pattern: str, keys: dict[str, Any], is_covered: bool) -> None:
    assert covers(pattern, **keys) is is_covered


@pytest.mark.parametrize(
    ("pattern", "url", "is_covered"),
    [
        ("", "https://anywhere.example.org/mcp", True),
        ("pypi:*", "https://anywhere.example.org/mcp", True),
        ("remote:https://*.example.com/*", "https://one.example.com/mcp", True),
        ("remote:https://*.example.com", "https://one.example.com/mcp", True),
        ("remote:https://*.example.com/*", "http://one.example.com/mcp", False),
        ("remote:https://*.example.com/*", "https://evil.org/one.example.com/mcp", False),
        ("remote:https://*.example.com/*", "https://evil.org?.example.com/mcp", False),
        ("remote:https://*.example.com/*", "https://example.com.evil.org/mcp", False),
        ("remote:https://one.example.com/api/*", "https://one.example.com/other", False),
    ],
)
def test_addresses_are_free_until_some_are_listed(pattern: str, url: str, is_covered: bool) -> None:
    assert covers(pattern, url=url) is is_covered


@pytest.mark.parametrize(
    "variable",
    ["UV_INDEX", "UV_DEFAULT_INDEX", "PYTHONPATH", "NODE_OPTIONS", "npm_config_registry", "PATH", "HTTPS_PROXY"],
)
def test_no_pattern_covers_variables_that_lead_to_other_programs(variable: str) -> None:
    assert not covers("pypi:*", **PYPI, env={variable: "x"})


def test_no_pattern_covers_folders_of_this_machine() -> None:
    assert not covers("image:mcp/*", **IMAGE, docker_volumes=["/srv/data:/data:ro"])
    assert not covers("image:mcp/*", **IMAGE, docker_volumes=["others-data:/data:rw"])
    assert covers("image:mcp/*", **IMAGE, docker_volumes=["apollos-mcp-one_data:/data:rw"])
    assert not covers("image:mcp/*", **IMAGE, docker_volumes=["apollos-mcp-one-more_data:/data:rw"])
    assert covers("pypi:*", **PYPI, env={"GITHUB_TOKEN": "${secret:one.token}"})


def test_every_program_of_a_server_has_to_be_covered() -> None:
    say = {"args": ["{{words}}"], "parameters": {"type": "object", "properties": {"words": {}}}}
    assert covers("image:mcp/*", **IMAGE, docker_tools={"say": say})
    assert not covers("image:mcp/*", **IMAGE, docker_tools={"say": say, "other": {**say, "image": "evil/other"}})
    assert not covers("image:mcp/*", **IMAGE, docker_tools={"say": {**say, "volumes": ["{{words}}:/data"]}})
    tools = {"say": {**say, "image": "evil/other", "volumes": ["{{words}}:/data"]}}
    told = what_it_is(McpServerResource.model_validate({"name": "one", **IMAGE, "docker_tools": tools}))
    assert "tool say runs evil/other '{{words}}', with '{{words}}:/data'" in told


def test_who_approves_sees_what_it_is() -> None:
    container = McpServerResource(
        name="one", **IMAGE, docker_volumes=["/srv:/data:ro"], env={"API_KEY": "hidden", "MODE": "a; name: b"}
    )
    told = "\n".join(what_it_is(container))
    assert "mcp/time:1@sha256" in told and "/srv:/data:ro" in told and "network: internet" in told
    assert "API_KEY" in told and "hidden" not in told and "'MODE=a; name: b'" in told


@pytest.mark.parametrize("pattern", ["mcp/*", "command:sh", "image:", ":x"])
def test_a_pattern_that_is_none_is_refused(tmp_path: Any, pattern: str) -> None:
    file = tmp_path / "servers.toml"
    file.write_text(f'[gateway]\ndynamic_allow = ["{pattern}"]\n')
    with pytest.raises(ConfigurationError, match="dynamic_allow"):
        load_configuration(file, {})


def test_no_server_has_the_name_of_the_own_tools(tmp_path: Any) -> None:
    file = tmp_path / "servers.toml"
    file.write_text('[gateway]\ndynamic = true\n[servers.gateway]\ncommand = "x"\n')
    with pytest.raises(ConfigurationError, match="has the name of the gateway's own tools"):
        load_configuration(file, {})
