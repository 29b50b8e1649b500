"""A Docker engine of the tests' own, beside the one that all of them share: to be hung, killed and started again.

It keeps out of everybody's way: folders, sockets, a bridge and a containerd of its own, and no rule in the packet
filter, so that what it publishes is reached through Docker's proxy on loopback. It needs root. Where it
is ended, nothing of it is left.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import docker

from tests.helpers.certificates import Authority, authority
from tests.helpers.ports import free_port
from tests.helpers.processes import is_running

START_TIMEOUT = STOP_TIMEOUT = 40.0
BRIDGE_ADDRESS = "198.18.0.1/24"
"""Set aside for measurements (RFC 2544), so that no machine's own network is hit."""
PROGRAMS = ("dockerd", "containerd", "docker", "ip")


def problem() -> str | None:
    """Why there can be no such engine here, if that is so."""
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"{' and '.join(missing)} not installed"
    return None if os.geteuid() == 0 else "only root can start one"


class OwnEngine:
    """One dockerd with its containerd. It listens on a socket and, over TLS, on a port of loopback.

    Args:
        folder: where it keeps everything; its path has to be short, because sockets are in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = f"unix://{folder}/docker.sock"
        self.tcp = f"tcp://127.0.0.1:{free_port()}"
        self.bridge = f"apollos{os.getpid()}"
        """Its default network. Without one, or with address pools of its own, it would delete the other engine's."""
        self.authority: Authority = authority()
        self._certificates = self.authority.write(folder / "tls", "engine")
        self._containerd: subprocess.Popen[bytes] | None = None
        self._dockerd: subprocess.Popen[bytes] | None = None
        self._given: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<OwnEngine {self.host} {'running' if self._dockerd else 'stopped'}>"

    @property
    def is_running(self) -> bool:
        return self._dockerd is not None

    # --- life

    def start(self, *options: str) -> None:
        """Start it, or start it again.

        Raises:
            RuntimeError: it ended; with its last words.
            TimeoutError: it does not answer.
        """
        if self._containerd is None:
            self._containerd = self._run("containerd", "--config", str(self._containerd_file()))
            _until((self.folder / "containerd.sock").exists, "containerd does not listen")
            _ip("link", "add", self.bridge, "type", "bridge")
            _ip("address", "add", BRIDGE_ADDRESS, "dev", self.bridge)
        (self.folder / "daemon.json").write_text("{}")  # not the machine's own
        self._given = options
        self._dockerd = self._run("dockerd", *self._options(), *options)
        _until(self._answers, f"the engine does not answer:\n{self._last_words('dockerd')}")

    def ensure(self) -> None:
        """As a test wants to find it: running, and with no further options."""
        if self._given and self._dockerd is not None:
            self.stop()
        if self._dockerd is None:
            self.start()

    def restart(self, *options: str) -> None:
        """Stop it, and start it with other options."""
        self.stop()
        self.start(*options)

    def stop(self) -> None:
        """As an operator stops it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Its sockets accept connections, and nobody answers."""
        assert self._dockerd is not None
        os.kill(self._dockerd.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._dockerd.pid, signal.SIGCONT)

    def close(self) -> list[str]:
        """End it for good; what is left of it, which should be nothing."""
        bridges = self._empty() if self.is_running else []
        if self.is_running:
            self.stop()
        if self._containerd is not None:
            _end(self._containerd, signal.SIGTERM)
        if Path("/sys/class/net", self.bridge).exists():
            _ip("link", "delete", self.bridge)
        left = [f"mount {point}" for point in self._mounts() if point != str(self.folder / "data")]
        left += [f"interface {name}" for name in bridges if Path("/sys/class/net", name).exists()]
        left += [f"process {pid}" for pid in self._processes()]
        for point in reversed(self._mounts()):  # each time that it is killed it leaves one on its own folder
            subprocess.run(["umount", "--lazy", point], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
        return left

    def _empty(self) -> list[str]:
        """Remove what it holds; the names of its bridges."""
        with self.client() as client:
            for container in client.containers.list(all=True, ignore_removed=True):
                container.remove(force=True, v=True)
            made = {"type": "custom", "driver": "bridge"}
            networks = client.networks.list(filters=made)
            for network in networks:
                network.remove()
        return [f"br-{network.id[:12]}" for network in networks]

    def _end(self, how: signal.Signals) -> None:
        assert self._dockerd is not None
        _end(self._dockerd, how)
        self._dockerd = None

    # --- what it has

    @contextmanager
    def client(self) -> Iterator[Any]:
        client = docker.DockerClient(self.host, timeout=60)
        try:
            yield client
        finally:
            client.close()

    def load(self, image: str) -> None:
        """Bring an image over from the shared engine."""
        with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saving:
            load = ["docker", "--host", self.host, "load", "--quiet"]
            subprocess.run(load, stdin=saving.stdout, check=True, capture_output=True)

    # --- how it is started

    def _options(self) -> list[str]:
        folder, tls = self.folder, self._certificates
        options = {
            "config-file": folder / "daemon.json",
            "data-root": folder / "data",
            "exec-root": folder / "run",
            "pidfile": folder / "dockerd.pid",
            "containerd": folder / "containerd.sock",
            "tlscacert": tls / "ca.pem",
            "tlscert": tls / "cert.pem",
            "tlskey": tls / "key.pem",
            "tlsverify": "true",
            "bridge": self.bridge,
            "iptables": "false",
            "ip6tables": "false",
            "log-level": "warn",
        }
        hosts = [f"--host={self.host}", f"--host={self.tcp}"]
        return [*hosts, *(f"--{name}={value}" for name, value in options.items())]

    def _containerd_file(self) -> Path:
        folder = self.folder
        text = f"""version = 2
root = {json.dumps(f"{folder}/containerd")}
state = {json.dumps(f"{folder}/shims")}
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = {json.dumps(f"{folder}/containerd.sock")}
"""
        (folder / "containerd.toml").write_text(text)
        return folder / "containerd.toml"

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{program}.log").open("ab") as log:
            return subprocess.Popen(
                [program, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _answers(self) -> bool:
        assert self._dockerd is not None
        if self._dockerd.poll() is not None:
            raise RuntimeError(f"the engine ended:\n{self._last_words('dockerd')}")
        with suppress(OSError), socket.socket(socket.AF_UNIX) as door:
            door.settimeout(1)
            door.connect(self.host.removeprefix("unix://"))
            door.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in door.recv(64)
        return False

    def _last_words(self, program: str) -> str:
        return (self.folder / f"{program}.log").read_text(errors="replace")[-2000:]

    # --- what may be left

    def _mounts(self) -> list[str]:
        points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
        return [point for point in points if point.startswith(f"{self.folder}/")]

    def _processes(self) -> list[int]:
        """Those that were started with a path of ours: proxies and shims."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if str(self.folder).encode() in (folder / "cmdline").read_bytes() and is_running(int(folder.name)):
                    found.append(int(folder.name))
        return found


@contextmanager
def own_engine() -> Iterator[OwnEngine]:
    """An engine for the length of the block.

    Raises:
        AssertionError: something of it is left afterwards.
    """
    engine = OwnEngine(Path(tempfile.mkdtemp(prefix="apollos-engine-", dir="/var/tmp")))
    try:
        engine.start()
        yield engine
    finally:
        left = engine.close()
    assert not left, f"left of an engine that has ended: {left}"


def _end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    process.send_signal(how)
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _until(condition: Callable[[], bool], problem: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(problem)
        time.sleep(0.05)
