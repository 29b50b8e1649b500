"""What a container may do: the configuration that Docker is given, and what is refused. No engine is needed."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from providers.container_keys import Volume, bytes_of, parse_volume, port_of
from providers.hardening import (
    NOBODY,
    ImageFacts,
    Placement,
    container_config,
    fingerprint,
    image_facts,
    network_problem,
    relaxations,
    user_of,
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
    ("of_image", "used"),
    [
        ("", NOBODY), ("root", NOBODY), ("root:app", NOBODY), ("0:0", NOBODY), ("00", NOBODY), ("000:1", NOBODY),
        ("+0", NOBODY), ("-0", NOBODY), ("0x0", NOBODY), (" root", NOBODY), ("root ", NOBODY), ("app:0", NOBODY),
        ("app:00", NOBODY), ("app:root", NOBODY), ("1000:0", NOBODY), ("1000:", NOBODY), (":1000", NOBODY),
        ("a:b:c", NOBODY), ("\u0660", NOBODY), ("app\n", NOBODY), ("99999999999", NOBODY), ("4294967296", NOBODY),
        ("x" * 100_000, NOBODY), ("1000", "1000:1000"), ("01000", "1000:1000"), ("1000:7", "1000:7"), ("node", "node"),
        ("app", "app"), ("nonroot", "nonroot"), ("65532", "65532:65532"), ("www-data:www-data", "www-data:www-data"),
    ],
)  # fmt: skip
def test_no_image_runs_as_root_nor_in_its_group(of_image: str, used: str) -> None:
    """Docker takes for a number what Go's Atoi reads, and gives a number without a group root's."""
    assert user_of(server(), ImageFacts(id="x", user=of_image)) == used


@pytest.mark.parametrize(
    ("chosen", "used"), [("7:7", "7:7"), ("7", "7:7"), ("007:8", "7:8"), ("app", "app"), ("app:staff", "app:staff")]
)
def test_an_operator_chooses_who_a_server_runs_as(chosen: str, used: str) -> None:
    assert user_of(server(docker_user=chosen), ImageFacts(id="x", user="root")) == used


@pytest.mark.parametrize("user", ["root", "0", "00", "0:0", "000:1", "1000:0", "app:00", "app:root", "root:app"])
def test_no_operator_makes_a_server_root(user: str) -> None:
    assert 'Use a number such as "1000:1000"' in refusal(docker_user=user)


def tmpfs(declared: tuple[str, ...], *volumes: str) -> set[str]:
    placement = Placement(volumes=tuple(parse_volume(text) for text in volumes))
    return set(host(server(), ImageFacts(id="x", volumes=declared), placement)["Tmpfs"]) - {"/tmp"}


def test_what_an_image_declares_as_a_volume_is_memory_unless_it_is_mounted() -> None:
    assert tmpfs(("/data", "/cache")) == {"/data", "/cache"}
    assert tmpfs(("/data", "/cache"), "named:/data") == {"/cache"}
    assert tmpfs(("/data/",), "named:/data") == set()
    assert tmpfs(("/tmp", "/tmp/", "/tmp/cache")) == {"/tmp/cache"}


def test_declared_volumes_are_compared_as_docker_compares_them() -> None:
    assert tmpfs(("/data/", "//data", "/./data", "/x/../data")) == {"/data"}


@pytest.mark.parametrize(
    "declared",
    ["/", "//", "/data/..", "/proc", "/sys/fs", "/dev", "/etc", "/etc/", "/data/../etc", "/usr", "/usr/lib", "/lib64",
     "/bin", "/run/secrets", "data", "", "/a\nb"],
)  # fmt: skip
def test_nothing_empty_is_put_over_what_a_server_needs(declared: str) -> None:
    assert tmpfs((declared,)) == set()


@pytest.mark.parametrize(
    ("inspected", "told"),
    [
        ({"Name": "bridge", "Driver": "bridge"}, "is the id of the network 'bridge'"),
        ({"Name": "mine2", "Driver": "bridge"}, "is the id of the network 'mine2'"),
        ({"Name": "mine", "Driver": "host"}, "is the engine's own"),
        ({"Name": "mine", "Driver": "null"}, "is the engine's own"),
        ({"Name": "mine", "Driver": "bridge", "Labels": {"apollos.mcp.instance": "x"}}, "for one server alone"),
        ({"Name": "mine", "Driver": "bridge", "Labels": None}, None),
        ({"Name": "mine", "Driver": "macvlan", "Labels": {"a": "b"}}, None),
    ],
)
def test_a_network_is_what_its_name_says(inspected: dict[str, Any], told: str | None) -> None:
    problem = network_problem("mine", inspected)
    assert problem is None if told is None else told in (problem or "")


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
    assert "NUL" in refusal(docker_command=["sh", "a\0b"])


def test_one_place_in_the_container_has_one_volume() -> None:
    assert "one place in the container" in refusal(docker_volumes=["a:/data", "b:/data/"])


@pytest.mark.parametrize(
    "memory",
    [
        "1k",
        "0",
        "-1",
        "512",
        "many",
        "5mb",
        "1e9",
        "infinite",
        "512\u212a",
        "\u0665\u0661\u0662m",
        "9" * 15 + "g",
        "9" * 5000,
    ],
)
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
    ["/a\0:/b", "/a\n:/b", "/a:/b\u202e", "/a:/b\t", f"/{'a' * 5000}:/b", f"/a:/{'b' * 5000}", "\U0001f4a9:/b", "/a://b",
     "", "/a", "/a:", ":/b", "/a:b", "/a:/", "/a:/../etc", "/a:/b/../..", "/a:/proc", "/a:/sys/x", "/a:/dev",
     "/a:/run/secrets", "/a:/b:exec", "/a:/b:ro:z", "-a:/b", "a b:/c", "$x:/c"],
)  # fmt: skip
def test_what_is_no_volume_is_refused(volume: str) -> None:
    with pytest.raises(ValueError, match=r"has a|must be"):
        parse_volume(volume)


def test_volumes_are_read_only_unless_said_otherwise() -> None:
    assert parse_volume("/srv:/data") == Volume("/srv", "/data", True)
    assert parse_volume("/srv:/data/:ro") == Volume("/srv", "/data", True)
    assert parse_volume("named:/data:rw") == Volume("named", "/data", False)
