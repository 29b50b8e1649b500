"""Where the engine is: the operator's word, Docker's variables, or the current context."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from providers.engine import DEFAULT_HOST, find_engine, is_apart, own_container_id
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


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("unix:///var/run/docker.sock", True),
        ("tcp://127.0.0.1:2375", True),
        ("tcp://[::1]:2375", True),
        ("tcp://localhost:2375", True),
        ("tcp://127.9.9.9:2375", True),
        ("tcp://engine:2375", False),
        ("tcp://localhost.example.com:2375", False),
        ("tcp://10.0.0.1:2375", False),
        ("https://0.0.0.0:2376", False),
    ],
)
def test_an_engine_on_loopback_is_on_this_machine(host: str, is_local: bool) -> None:
    assert find_engine(host, {}).is_local is is_local


def test_the_engine_of_a_user_without_a_home_is_dockers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert find_engine(None, {}).host == DEFAULT_HOST
    assert find_engine(None, {"DOCKER_HOST": "tcp://h:1", "DOCKER_TLS_VERIFY": "1"}).tls is not None


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="only Linux tells who listens")
def test_an_engine_outside_of_our_container_is_apart(tmp_path: Path) -> None:
    """A new pid namespace is what a container sees of it: the one who listens cannot be seen from in there."""
    mark, engine = tmp_path / "mark", str(tmp_path / "engine.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(engine)
        listener.listen()
        assert not is_apart(engine, [mark])
        mark.touch()
        assert not is_apart(engine, [mark])  # in the same container
        assert not is_apart(None, [mark])
        code = f"from pathlib import Path; from providers.engine import is_apart; print(is_apart({engine!r}, "
        code += f"[Path({str(mark)!r})]))"
        inside = ["unshare", "--fork", "--pid", *([] if os.geteuid() == 0 else ["--user"]), sys.executable, "-c", code]
        if not shutil.which("unshare") or subprocess.run([*inside[:-3], "true"], capture_output=True).returncode:
            pytest.skip("this machine makes no pid namespaces")
        root = Path(__file__).parents[2]
        done = subprocess.run(inside, capture_output=True, text=True, timeout=30, cwd=root, check=True)
        assert done.stdout.strip() == "True"
