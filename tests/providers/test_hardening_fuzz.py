"""Whatever stands in servers.toml or in an image, what Docker is given was checked. Seeded; no engine is needed."""

from __future__ import annotations

import json
import posixpath
import random
import re
import string
from typing import Any

import pytest
from pydantic import ValidationError

from providers.container_keys import ALLOWED_CAPABILITIES, parse_volume
from providers.hardening import ImageFacts, Placement, container_config, network_of
from providers.resource import McpServerResource

IMAGE = ImageFacts(id="sha256:" + "0" * 64)


def server(**keys: Any) -> McpServerResource:
    return McpServerResource.model_validate({"name": "files", "docker_image": "mcp/files", **keys})


SOUND: dict[str, tuple[str, ...]] = {
    "name": ("files", "a-1"),
    "docker_image": ("mcp/files:1.0", "ghcr.io/a/b@sha256:" + "0" * 64),
    "docker_network": ("own", "backend_1.net"),
    "docker_user": ("1000:1000", "app", "app:staff"),
    "docker_memory": ("512m", "2g"),
    "docker_path": ("/mcp",),
    "docker_volumes": ("/srv/data:/data:ro", "named:/var/lib/x:rw", "~/x:/y"),
    "docker_capabilities": ("CHOWN", "SETUID"),
    "docker_ports": ("8000/tcp", "80"),
    "docker_command": ("python", "/opt/server"),
    "docker_secrets": ("token", "api-key.txt"),
}
NASTY = (
    "-", "--", "--privileged", "\0", "\n", "\r\n", "\x1b[2J", "\x7f", "..", "/../", "/", "//", ":", ";", "$(id)",
    "`id`", "${HOME}", "|", "&", " ", "\t", "'", '"', "\\", "@", ",", "=", "root", "0", "00", "+0", "0x0",
    "host", "bridge", "ALL", "SYS_ADMIN", "/proc", "/sys", "/run/secrets", "container:x", "\u202e", "\u200b", "\ufeff",
    "\u0430", "\u2215", "\uff0f",
    "\u212a", "\u0660", "\ud800", "\U0001f4a9", "x" * 5_000, "9" * 5_000, "a/" * 3_000,
)  # fmt: skip


def fuzzed(dice: random.Random, key: str) -> str:
    """A sound value with something nasty put into it, put before it, or put in its place; or any signs at all."""
    if dice.random() < 0.2:
        return "".join(dice.choice(string.printable + "\0\u00df\u202e:/.-_@") for _ in range(dice.randint(0, 12)))
    sound, at = dice.choice(SOUND[key]), dice.random()
    if dice.random() < 0.1:
        return sound
    place = round(at * len(sound))
    return sound[:place] + dice.choice(NASTY) + (sound[place:] if dice.random() < 0.8 else "")


def table_of(key: str, text: str) -> dict[str, Any]:
    match key:
        case "docker_volumes" | "docker_capabilities" | "docker_command":
            return {key: [text]}
        case "docker_ports":
            return {key: [text], "transport_type": "sse"}
        case "docker_path":
            return {key: text, "docker_ports": ["80"]}
        case "docker_secrets":
            return {key: {text: "value"}}
    return {key: text}


def check_configuration(resource: McpServerResource) -> None:
    """Every field that holds a word of the operator's, as Docker is given it."""
    volumes = tuple(parse_volume(text) for text in resource.docker_volumes)
    config = container_config(resource, IMAGE, Placement(network_of(resource), bool(resource.docker_ports), volumes))
    given = config["HostConfig"]
    assert config["Image"] == IMAGE.id
    person, _, group = config["User"].partition(":")
    assert all(re.fullmatch(r"[1-9][0-9]{0,9}|[A-Za-z_][A-Za-z0-9_.-]*", part) for part in (person, group or "x"))
    assert "root" not in (person, group)
    assert set(given["CapAdd"]) <= set(ALLOWED_CAPABILITIES)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", given["NetworkMode"])
    assert given["NetworkMode"] not in ("host", "bridge", "default", "nat")
    assert 6 * 2**20 <= given["Memory"] == given["MemorySwap"] <= 2**50
    for mount in given["Mounts"]:
        assert (mount["Source"] + mount["Target"]).isprintable() and len(mount["Source"] + mount["Target"]) <= 4096
        assert mount["Target"] == posixpath.normpath(mount["Target"]) and mount["Target"].startswith("/")
        assert not re.match(r"//|/$|/(proc|sys|dev|run/secrets)(/|$)", mount["Target"])
        assert mount["Type"] == "bind" or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", mount["Source"])
    assert not config.get("Entrypoint", ["x"])[0].startswith("-")
    for port in config.get("ExposedPorts", ()):
        assert re.fullmatch(r"[1-9][0-9]{0,4}/tcp", port)
    assert "\\u0000" not in json.dumps(config)
    secrets = [variable.partition("=")[2] for variable in config["Env"] if "_FILE=" in variable]
    assert all(re.fullmatch(r"/run/secrets/[A-Za-z0-9_][A-Za-z0-9_.-]*", path) for path in secrets)
    assert given["Privileged"] is False and given["CapDrop"] == ["ALL"] and given["Devices"] == []


@pytest.mark.parametrize("key", SOUND)
def test_fuzzed_words_never_reach_docker_unchecked(key: str) -> None:
    """Most are refused; whatever gets through is one word of the few signs that its key allows."""
    dice, passed, refused = random.Random(f"4711 {key}"), 0, 0
    for _ in range(1_500):
        text = fuzzed(dice, key)
        try:
            resource = server(**table_of(key, text))
        except ValidationError:
            refused += 1
            continue
        passed += 1
        check_configuration(resource)
        assert "\0" not in text
        if key not in ("docker_volumes", "docker_command"):  # a folder of the host may have any name that can be seen
            assert text.isascii() and not text.startswith("-") and not set(text) & set(" \t\n\r\0;$`|&<>'\"\\*?(){}")
            assert len(text) <= 512
    assert passed > 20 and refused > 50, (passed, refused)


def test_fuzzed_images_change_nothing_but_their_user_and_what_is_in_memory() -> None:
    dice = random.Random(4711)
    for _ in range(3_000):
        image = ImageFacts("sha256:x", None, fuzzed(dice, "docker_user"), (fuzzed(dice, "docker_path"), "/data"))
        config = container_config(server(), image, Placement())
        who = r"(?!0|root(:|$))[A-Za-z0-9_.-]+"
        assert re.fullmatch(f"{who}(:{who})?", config["User"]), image.user[:50]
        for path in config["HostConfig"].pop("Tmpfs"):
            assert path.isprintable() and path == posixpath.normpath(path) and path != "/"
            assert not re.match(r"/(proc|sys|dev|etc|usr|bin|lib|run/secrets)(/|$)", path)
        usual = container_config(server(), ImageFacts("sha256:x"), Placement())
        del usual["HostConfig"]["Tmpfs"]
        assert {**config, "User": "", "Env": []} == {**usual, "User": "", "Env": []}
