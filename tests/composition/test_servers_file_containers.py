"""servers.toml: what a server in a container may say, and what is told before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from composition.servers_file import Configuration, load_configuration
from providers.errors import ConfigurationError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "servers.toml"


def load(file: Path, text: str) -> Configuration:
    file.write_text(text, "utf-8")
    return load_configuration(file, {})


def problems(file: Path, text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(file, text)
    return [problem.replace(f"{file.parent}/", "") for problem in caught.value.problems]


def test_a_volume_begins_at_the_file_and_may_not_lead_out(file: Path) -> None:
    text = f'[gateway]\ndocker_allowed_paths = ["{file.parent}"]\n[servers.a]\ndocker_image = "i"\n'
    text += 'docker_volumes = ["%s:/d"]'
    (file.parent / "data").mkdir()
    found = load(file, text % "./data").resources["a"]
    assert found.docker_volumes == (f"{file.parent}/./data:/d",)
    [told] = problems(file, text % "/etc")
    assert told.startswith("servers.toml:5: [servers.a] key 'docker_volumes' item 1 leads to '/etc'")
    [told] = problems(file, text % "./..")
    assert "docker_allowed_paths" in told or "no container may see that" in told


def test_a_container_is_reached_over_stdio_unless_it_has_a_port(file: Path) -> None:
    found = load(
        file, '[servers.a]\ndocker_image = "i"\n[servers.b]\ndocker_image = "i"\ndocker_ports = ["80"]'
    ).resources
    assert [each.transport_type for each in found.values()] == ["stdio", "streamable_http"]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('docker_ports = ["80", "81"]', "key 'docker_ports' has several ports"),
        ('transport_type = "sse"', "needs the port to reach"),
        ('command = "c"', "has 'command' and 'docker_image'. Keep one of them"),
        ('url = "https://h"', "has 'url' and 'docker_image'. Keep one of them"),
        ("keep = true", "has 'keep', of no use to a container over stdio"),
        ('docker_ports = ["80"]\nkeep = true', 'needs isolation = "shared"'),
        ('pull = "sometimes"', "key 'pull' must be one of missing, never, always; found 'sometimes'"),
        ("privileged = true", "key 'privileged' is unknown"),
        ('docker_user = "00"', "key 'docker_user' may not be root, nor of root's group"),
        ('docker_volumes = ["~no-such-user/x:/d"]', "item 1 begins with a '~' whose folder is not known here"),
        ('docker_volumes = ["/a\\u0000b:/d"]', "item 1 has a path that is too long, or has a sign in it"),
        ('docker_volumes = ["a:/d", "b:/d/"]', "has two volumes for one place in the container"),
        ("docker_pids = 10000000", "key 'docker_pids' must be at most 1000000"),
        ("docker_cpus = 5000", "key 'docker_cpus' must be at most 1024"),
        ('docker_network = "host"', "key 'docker_network' may not be 'host'"),
    ],
)
def test_every_mistake_is_told_with_its_line(file: Path, lines: str, told: str) -> None:
    found = problems(file, f'[servers.a]\ndocker_image = "i"\n{lines}\n')
    assert any(told in problem and problem.startswith("servers.toml:") for problem in found), found


def test_keys_of_containers_are_of_no_use_elsewhere(file: Path) -> None:
    [told] = problems(file, '[servers.a]\ncommand = "c"\ndocker_memory = "1g"\n')
    assert "has 'docker_memory', of no use to a server that is reached by 'command'" in told


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ('state_dir = "state"', "key 'state_dir' must be a whole path, which begins with / or ~"),
        ('state_dir = "~no-such-user/x"', "key 'state_dir' begins with a '~' whose folder is not known here"),
        ('docker_allowed_paths = ["srv"]', "key 'docker_allowed_paths' must be a whole path, which begins with / or ~"),
        ('docker_allowed_paths = ["~no-such-user"]', "begins with a '~' whose folder is not known here"),
        ('docker_allowed_paths = ["/a\\u0000"]', "must be a whole path"),
    ],
)
def test_folders_of_the_gateway_are_whole_paths(file: Path, key: str, told: str) -> None:
    [problem] = problems(file, f"[gateway]\n{key}\n")
    assert problem.startswith("servers.toml:2: [gateway]") and told in problem


@pytest.mark.parametrize("mode", ["ro", "rw"])
@pytest.mark.parametrize("source", [".", "./servers.toml", "./link", "./state", "./state/other/0", "..", "./default"])
def test_no_server_gets_servers_toml_or_the_state_of_any_gateway(
    file: Path, source: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To write servers.toml is to run what one likes on the host; to read it is to have everybody's secrets."""
    monkeypatch.setenv("XDG_STATE_HOME", f"{file.parent}/default")
    (file.parent / "link").symlink_to(file.parent)
    [told] = problems(
        file,
        f'[gateway]\ndocker_allowed_paths = ["/"]\nstate_dir = "{file.parent}/state"\n'
        f'[servers.a]\ndocker_image = "i"\ndocker_volumes = ["{source}:/d:{mode}"]\n',
    )
    assert told.startswith("servers.toml:6: [servers.a] key 'docker_volumes' item 1 leads to '")
    assert "no container may see that" in told


def test_a_servers_toml_that_is_a_link_is_hidden_where_it_lies_and_where_it_leads(file: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a/servers.toml").symlink_to(tmp_path / "b/real.toml")
    for folder in ("a", "b"):
        (tmp_path / "b/real.toml").write_text(
            f'[gateway]\ndocker_allowed_paths = ["/"]\n[servers.a]\ndocker_image = "i"\n'
            f'docker_volumes = ["{tmp_path}/{folder}:/d:rw"]\n'
        )
        with pytest.raises(ConfigurationError, match="no container may see that"):
            load_configuration(tmp_path / "a/servers.toml", {})
