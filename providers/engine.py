"""Where the Docker engine is: what the operator says, what the environment says, or the current Docker context.

The container manager comes in once, at its first call; called are the file system and `ssl`. The same address
serves both sides: the Docker SDK for control, and our own stream for attaching to a container.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import ssl
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from providers.errors import ConfigurationError

DEFAULT_HOST = "unix:///var/run/docker.sock"
_KNOCK_SECONDS = 5.0
_TLS_FILES = {"ca": "ca.pem", "certificate": "cert.pem", "key": "key.pem"}


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM. Without an authority the system's are trusted. Not verified is only what an operator asked for."""

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    is_verified: bool = True

    def context(self) -> ssl.SSLContext:
        """Made for each engine once; it reads files."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.certificate:
            context.load_cert_chain(self.certificate, self.key)
        if not self.is_verified:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """A unix socket, or a TCP port with or without TLS. `source` says who named it, for errors."""

    host: str
    tls: Tls | None = None
    source: str = "Docker's default"

    @property
    def socket_path(self) -> str | None:
        return self.host.removeprefix("unix://") if self.host.startswith("unix://") else None

    @property
    def is_local(self) -> bool:
        """Whether the engine is on this machine, as far as its address tells: what is forwarded looks local."""
        return self.socket_path is not None or _is_loopback(self.tcp[0])

    @property
    def tcp(self) -> tuple[str, int]:
        parts = urlsplit(self.host)
        return parts.hostname or "localhost", parts.port or (2376 if self.tls else 2375)

    def __str__(self) -> str:
        return f"{self.host} ({self.source})"


def find_engine(chosen: str | None = None, environ: Mapping[str, str] = os.environ) -> EngineAddress:
    """The engine that Docker's own command line would use here, unless the operator chose one. It reads files.

    Args:
        chosen: `docker_host` of the gateway's settings.

    Raises:
        ConfigurationError: the address, or the context that names it, cannot be used.
    """
    if chosen:
        return _checked(chosen, _tls_of(environ), "docker_host")
    if host := environ.get("DOCKER_HOST"):
        return _checked(host, _tls_of(environ), "DOCKER_HOST")
    folder = Path(environ.get("DOCKER_CONFIG") or _own_folder(environ))
    context = environ.get("DOCKER_CONTEXT") or _read(folder / "config.json").get("currentContext") or "default"
    return EngineAddress(DEFAULT_HOST) if context == "default" else _from_context(folder, context)


def _own_folder(environ: Mapping[str, str]) -> Path:
    """Docker's folder of this user; where nobody knows the user's home it is one that is not there."""
    return Path(environ.get("HOME") or os.path.expanduser("~")) / ".docker"  # noqa: PTH111 - Path's raises there


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _tls_of(environ: Mapping[str, str]) -> Tls | None:
    """TLS as Docker's variables ask for it."""
    is_verified, folder = bool(environ.get("DOCKER_TLS_VERIFY")), environ.get("DOCKER_CERT_PATH")
    if not is_verified and not folder:
        return None
    return _tls_in(Path(folder or _own_folder(environ)), is_verified)


def _tls_in(folder: Path, is_verified: bool) -> Tls:
    files = {name: str(folder / file) for name, file in _TLS_FILES.items() if (folder / file).is_file()}
    return Tls(**files, is_verified=is_verified)


def _from_context(folder: Path, name: str) -> EngineAddress:
    digest = hashlib.sha256(name.encode()).hexdigest()  # that is how Docker names a context's folder
    endpoint = _read(folder / "contexts" / "meta" / digest / "meta.json").get("Endpoints", {}).get("docker", {})
    host = endpoint.get("Host")
    if not isinstance(host, str):
        raise ConfigurationError(f"Docker context '{name}' was not found. See 'docker context ls'.")
    certificates = folder / "contexts" / "tls" / digest / "docker"
    tls = _tls_in(certificates, not endpoint.get("SkipTLSVerify")) if certificates.is_dir() else None
    return _checked(host, tls, f"Docker context '{name}'")


def _checked(host: str, tls: Tls | None, source: str) -> EngineAddress:
    try:
        parts = urlsplit(host)
        is_usable = bool(parts.path if parts.scheme == "unix" else parts.hostname and parts.port != 0)
    except ValueError:
        is_usable = False
    if not is_usable or parts.scheme not in ("unix", "tcp", "http", "https"):
        raise ConfigurationError(
            f"{source} names a Docker engine that the gateway cannot speak to; it speaks unix:///path and "
            "tcp://host:port. Forward the socket of one over ssh: ssh -L /tmp/engine.sock:/var/run/docker.sock HOST"
        )
    if parts.scheme == "https":
        tls = tls or Tls()
    return EngineAddress(
        host if parts.scheme == "unix" else f"tcp://{parts.netloc}", tls if parts.scheme != "unix" else None, source
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def own_container_id(mounts: Path = Path("/proc/self/mountinfo"), mark: Path = Path("/.dockerenv")) -> str | None:
    """The id of the container that the gateway itself runs in, if it does: Docker mounts files of it into it. Whether
    it is a container of the engine that we speak to is for the engine to say."""
    if not mark.exists():
        return None
    found = re.search(r"/containers/([0-9a-f]{64})/", mounts.read_text())
    return found[1] if found else None


_CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"), Path("/var/run/secrets/kubernetes.io"))


def is_apart(socket_path: str | None, marks: Iterable[Path] = _CONTAINER_MARKS) -> bool:
    """Whether we run in a container and the engine does not run there too: its paths are others than ours then. The
    kernel tells who listens at a socket, and gives a process that we cannot see from in here the number 0.

    Raises:
        OSError: nobody listens at the socket.
    """
    if socket_path is None or not hasattr(socket, "SO_PEERCRED") or not any(mark.exists() for mark in marks):
        return False
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(_KNOCK_SECONDS)
        door.connect(socket_path)
        pid: int = struct.unpack("3i", door.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))[0]
        return pid == 0
