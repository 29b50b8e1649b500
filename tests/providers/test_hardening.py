"""What a container may do: the configuration that Docker is given, and what is refused. No engine is needed."""

from __future__ import annotations

import random
import socket
import string
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from providers.container_keys import Volume, bytes_of, parse_volume, port_of
from providers.errors import BackendUnavailable
from providers.hardening import (
    NOBODY,
    ImageFacts,
    Placement,
    check_mounts,
    container_config,
    fingerprint,
    image_facts,
    mount_problem,
    relaxations,
    user_of,
    volume_problem,
)
from providers.resource import McpServerResource

IMAGE = ImageFacts(id="sha256:" + "0" * 64)


def server(**keys: Any) -> McpServerResource:
    return McpServerResource.model_validate({"name": "files", "docker_image": "mcp/files", **keys})


def host(resource: McpServerResource, image: ImageFacts = IMAGE, placement: Placement | None = None) -> dict[str, Any]:
    found: dict[str, Any] = container_config(resource, image, placement or Placement())["HostConfig"]
    return found


def refusal(**keys: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        server(**keys)
    return " ".join(str(error["ctx"]["error"]) for error in caught.value.errors() if "ctx" in error)


# ---------------------------------------------------------------------------------------------------- what is given


def test_a_server_over_stdio_gets_no_network_no_port_and_no_log() -> None:
    config = container_config(server(args=["/data"]), IMAGE, Placement())
    assert config["HostConfig"]["NetworkMode"] == "none"
    assert config["HostConfig"]["PortBindings"] == {}
    assert config["HostConfig"]["LogConfig"]["Type"] == "none"
    assert (config["Image"], config["Cmd"], config["User"]) == (IMAGE.id, ["/data"], NOBODY)
    assert "Entrypoint" not in config


def test_a_server_over_http_is_published_on_loopback_alone() -> None:
    web = server(docker_ports=["8000/tcp"])
    config = container_config(web, IMAGE, Placement(network="n", publishes=True))
    assert config["HostConfig"]["PortBindings"] == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}
    assert config["HostConfig"]["NetworkMode"] == "n"
    assert not config["OpenStdin"]
    assert host(web, placement=Placement(network="n"))["PortBindings"] == {}  # reached over the network


@pytest.mark.parametrize(
    ("of_image", "chosen", "used"),
    [("", None, NOBODY), ("root", None, NOBODY), ("0:0", None, NOBODY), ("1000", None, "1000"), ("1000", "7:7", "7:7")],
)
def test_nobody_runs_as_root_unless_an_operator_says_so(of_image: str, chosen: str | None, used: str) -> None:
    assert user_of(server(docker_user=chosen), ImageFacts(id="x", user=of_image)) == used


def test_what_an_image_declares_as_a_volume_is_memory_unless_it_is_mounted() -> None:
    image = ImageFacts(id="x", volumes=("/data", "/cache", "/"))
    assert set(host(server(), image)["Tmpfs"]) == {"/tmp", "/data", "/cache"}
    assert set(host(server(docker_volumes=["named:/data"]), image)["Tmpfs"]) == {"/tmp", "/cache"}


def test_secrets_are_files_and_no_part_of_the_configuration() -> None:
    resource = server(docker_secrets={"token": "canary-4711"}, env={"LEVEL": "info"})
    config = container_config(resource, IMAGE, Placement(secrets_folder="/dev/shm/x"))
    assert "canary-4711" not in str(config)
    assert "canary-4711" not in repr(resource)
    assert config["Env"] == ["HOME=/tmp", "LEVEL=info", "TOKEN_FILE=/run/secrets/token"]
    [mount] = config["HostConfig"]["Mounts"]
    assert (mount["Source"], mount["Target"], mount["ReadOnly"]) == ("/dev/shm/x", "/run/secrets", True)


def test_labels_of_an_image_are_not_even_read() -> None:
    inspected = {
        "Id": "x",
        "Config": {"Labels": {"apollos.mcp.server": "y"}, "User": "5"},
        "RepoDigests": ["a@sha256:1"],
    }
    assert image_facts(inspected) == ImageFacts(id="x", digest="sha256:1", user="5")


def test_equal_configurations_have_equal_fingerprints() -> None:
    plain = fingerprint(container_config(server(), IMAGE, Placement()))
    assert plain == fingerprint(container_config(server(description="other words"), IMAGE, Placement()))
    assert plain != fingerprint(container_config(server(docker_memory="1g"), IMAGE, Placement()))


def test_each_relaxation_is_named() -> None:
    assert relaxations(server()) == []
    assert relaxations(McpServerResource(name="local", command="x")) == []
    relaxed = server(docker_network="internet", docker_read_only=False, docker_capabilities=["CHOWN"], docker_pids=9)
    assert relaxations(relaxed) == [
        "docker_pids=9",
        "docker_read_only=False",
        "docker_capabilities=CHOWN",
        "docker_network=internet",
    ]


# --------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("key", ["privileged", "devices", "docker_devices", "security_opt", "pid_mode", "cap_add"])
def test_there_is_no_key_for_what_nobody_may(key: str) -> None:
    with pytest.raises(ValidationError, match=r"Extra inputs are not permitted"):
        server(**{key: "x"})


@pytest.mark.parametrize(
    "network", ["host", "bridge", "default", "container:abc", "ns:/proc/1/ns/net", "-x", "a b", ""]
)
def test_networks_of_the_host_and_of_others_are_refused(network: str) -> None:
    assert refusal(docker_network=network)


@pytest.mark.parametrize("capability", ["ALL", "SYS_ADMIN", "SYS_PTRACE", "NET_ADMIN", "NET_RAW", "chown", "CAP_CHOWN"])
def test_capabilities_that_reach_beyond_the_container_are_refused(capability: str) -> None:
    assert "Allowed: CHOWN" in refusal(docker_capabilities=[capability])


@pytest.mark.parametrize(
    "image",
    ["-v", "--privileged", "a b", "A/b", "x;y", "../x", "http://x/y", "x@sha256:1", "x:", "", "ä", "x\ny", "x y"],
)
def test_what_is_no_image_never_reaches_docker(image: str) -> None:
    with pytest.raises(ValidationError):
        server(docker_image=image)


@pytest.mark.parametrize(
    "image", ["time", "mcp/time", "mcp/time:1.0", "ghcr.io/a/b_c:x", "127.0.0.1:5000/a", f"a@sha256:{'0' * 64}"]
)
def test_images_are_named_as_docker_names_them(image: str) -> None:
    assert server(docker_image=image).docker_image == image


@pytest.mark.parametrize("user", ["-u", "a b", "1000:1000:1000", "root;", "1000:"])
def test_what_is_no_user_is_refused(user: str) -> None:
    assert refusal(docker_user=user)


def test_an_option_is_no_program() -> None:
    assert "not with an option" in refusal(docker_command=["--init"])


@pytest.mark.parametrize("memory", ["1k", "0", "-1", "512", "many", "5mb", "1e9", "infinite"])
def test_memory_is_a_size(memory: str) -> None:
    with pytest.raises(ValueError, match="at least 6m"):
        bytes_of(memory)


def test_sizes_and_ports_are_read() -> None:
    assert [bytes_of(size) for size in ("512m", "1G", "6291456", "7000kb")] == [2**29, 2**30, 6 * 2**20, 7000 * 1024]
    assert [port_of(port) for port in ("8000/tcp", "80")] == [8000, 80]
    for port in ("0", "70000", "80/udp", "x", "8000:80", "-1", ""):
        with pytest.raises(ValueError, match="port of the container"):
            port_of(port)


@pytest.mark.parametrize(
    "volume",
    ["", "/a", "/a:", ":/b", "/a:b", "/a:/", "/a:/../etc", "/a:/b/../..", "/a:/proc", "/a:/sys/x", "/a:/dev",
     "/a:/run/secrets", "/a:/b:exec", "/a:/b:ro:z", "-a:/b", "a b:/c", "$x:/c"],
)  # fmt: skip
def test_what_is_no_volume_is_refused(volume: str) -> None:
    with pytest.raises(ValueError, match=r"has a|must be"):
        parse_volume(volume)


def test_volumes_are_read_only_unless_said_otherwise() -> None:
    assert parse_volume("/srv:/data") == Volume("/srv", "/data", True)
    assert parse_volume("/srv:/data/:ro") == Volume("/srv", "/data", True)
    assert parse_volume("named:/data:rw") == Volume("named", "/data", False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for folder in ("home/.ssh", "home/.aws", "home/work", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "home/work/up").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "home/work/keys").symlink_to(tmp_path / "home/.ssh")
    return tmp_path / "home"


def problem(source: str, home: Path, allowed: list[str] | None = None, forbidden: tuple[str, ...] = ()) -> str | None:
    allowed = ["/"] if allowed is None else allowed
    return mount_problem(Volume(source, "/data", True), allowed, forbidden, home=str(home))


def test_a_folder_below_an_allowed_one_is_mounted(home: Path) -> None:
    assert problem(f"{home}/work", home, [str(home)]) is None
    assert problem(f"{home}/work/../work", home, [f"{home}/work"]) is None
    assert problem("named", home, []) is None


@pytest.mark.parametrize(
    "source",
    ["/", "//", "/etc", "/etc/ssl", "/proc/1", "/sys", "/dev", "/run", "/var/run", "/var/run/docker.sock", "/boot",
     "/var", "/var/lib/docker/volumes", "/srv/../etc", "/./etc/", "/run/../etc/passwd"],
)  # fmt: skip
def test_the_host_itself_is_never_mounted(home: Path, source: str) -> None:
    """However generous the operator is: all of `/` is allowed here."""
    assert "no container may see that" in (problem(source, home) or "")


@pytest.mark.parametrize(
    "source", ["{home}", "{home}/.ssh", "{home}/.aws/x", "{home}/work/keys", "{home}/work/../.ssh"]
)
def test_credentials_and_what_holds_them_are_never_mounted(home: Path, source: str) -> None:
    assert "no container may see that" in (problem(source.format(home=home), home) or "")


def test_a_link_out_of_the_allowed_folder_is_refused(home: Path) -> None:
    assert "below none of docker_allowed_paths" in (problem(f"{home}/work/up", home, [f"{home}/work"]) or "")
    assert "there are none" in (problem(f"{home}/work", home, []) or "")


def test_a_folder_whose_name_only_begins_alike_is_not_below(home: Path) -> None:
    assert problem(f"{home}/work-2", home, [f"{home}/work"])


def test_the_engines_socket_is_never_mounted_wherever_it_is(home: Path) -> None:
    engine = f"{home}/work/engine.sock"
    assert problem(f"{home}/work", home, ["/"], (engine,))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{home}/work/other.sock")
        assert "a socket" in (problem(f"{home}/work/other.sock", home) or "")


def test_a_mount_is_looked_at_again_when_a_container_is_made(home: Path) -> None:
    check_mounts(server(docker_volumes=[f"{home}/work:/data"]), [str(home)], ())
    with pytest.raises(BackendUnavailable, match="is not there"):
        check_mounts(server(docker_volumes=[f"{home}/gone:/data"]), [str(home)], ())
    with pytest.raises(BackendUnavailable, match="no container may see that"):
        check_mounts(server(docker_volumes=["/etc:/data"]), ["/"], ())


def test_a_volume_with_options_is_refused() -> None:
    assert volume_problem(None) is None
    assert "driver options" in (volume_problem({"o": "bind", "device": "/etc"}) or "")


def test_fuzzed_names_and_values_never_get_through_unchecked() -> None:
    """Whatever passes is made of letters, digits and the few signs that its key allows."""
    dice = random.Random(4711)
    alphabet = string.printable + "äß\0\u202e/:.-_@"
    passed = 0
    for _ in range(4_000):
        text = "".join(dice.choice(alphabet) for _ in range(dice.randint(0, 12)))
        for key in ("docker_image", "docker_network", "docker_user", "docker_memory", "docker_path", "name"):
            try:
                found = getattr(server(**{key: text}), key)
            except ValidationError:
                continue
            passed += 1
            assert found == text
            assert not text.startswith("-") and text.isascii() and not set(text) & set(" \t\n\r\0;$`|&<>'\"\\*?(){}")
    assert passed > 100
