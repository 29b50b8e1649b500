"""Where the engine is: the operator's word, Docker's variables, or the current context."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from providers.engine import DEFAULT_HOST, find_engine, own_container_id
from providers.errors import ConfigurationError


def context(folder: Path, name: str, host: str, *, with_tls: bool = False) -> None:
    digest = hashlib.sha256(name.encode()).hexdigest()
    meta = folder / "contexts" / "meta" / digest
    meta.mkdir(parents=True)
    (meta / "meta.json").write_text(json.dumps({"Endpoints": {"docker": {"Host": host}}}))
    if with_tls:
        files = folder / "contexts" / "tls" / digest / "docker"
        files.mkdir(parents=True)
        (files / "ca.pem").touch()


def test_the_operator_comes_first_then_variables_then_the_context(tmp_path: Path) -> None:
    context(tmp_path, "work", "unix:///work.sock")
    (tmp_path / "config.json").write_text('{"currentContext": "work"}')
    environ = {"DOCKER_CONFIG": str(tmp_path), "DOCKER_HOST": "tcp://engine:2375"}
    assert find_engine("unix:///mine.sock", environ).host == "unix:///mine.sock"
    assert find_engine(None, environ).host == "tcp://engine:2375"
    del environ["DOCKER_HOST"]
    assert find_engine(None, environ).host == "unix:///work.sock"
    assert find_engine(None, {**environ, "DOCKER_CONTEXT": "default"}).host == DEFAULT_HOST
    assert find_engine(None, {"HOME": str(tmp_path / "nobody")}).host == DEFAULT_HOST


def test_tls_comes_from_variables_or_the_context(tmp_path: Path) -> None:
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).touch()
    environ = {"DOCKER_HOST": "tcp://engine:2376", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path)}
    address = find_engine(None, environ)
    assert address.tls is not None and address.tls.is_verified and address.tls.key == str(tmp_path / "key.pem")
    assert address.tcp == ("engine", 2376) and not address.is_local
    context(tmp_path, "far", "tcp://far:2376", with_tls=True)
    far = find_engine(None, {"DOCKER_CONFIG": str(tmp_path), "DOCKER_CONTEXT": "far"})
    assert far.tls is not None and far.tls.ca is not None and far.tls.ca.endswith("ca.pem")


@pytest.mark.parametrize(
    "host", ["ssh://me@host", "npipe:////./pipe/docker", "nonsense", "unix://", "tcp://:2375", "tcp://h:x"]
)
def test_what_cannot_be_spoken_to_is_told(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"DOCKER_HOST names a Docker engine that the gateway cannot speak to"):
        find_engine(None, {"DOCKER_HOST": host})


def test_a_context_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="context 'gone' was not found"):
        find_engine(None, {"DOCKER_CONFIG": str(tmp_path), "DOCKER_CONTEXT": "gone"})


def test_a_gateway_knows_the_container_that_it_runs_in(tmp_path: Path) -> None:
    container_id = "a1" * 32
    mounts, mark = tmp_path / "mountinfo", tmp_path / "mark"
    mounts.write_text(f"1 2 0:1 /var/lib/docker/containers/{container_id}/hostname /etc/hostname rw\n")
    assert own_container_id(mounts, mark) is None
    mark.touch()
    assert own_container_id(mounts, mark) == container_id
    mounts.write_text("1 2 0:1 / / rw\n")
    assert own_container_id(mounts, mark) is None
