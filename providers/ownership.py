"""Which containers are ours: a gateway's identity at the engine, its proof on each container, and its record of them.

The container manager and the command line come in; called is the file system alone, so every function here blocks and
is run in a thread. An identity is a folder with a key, held by a lock for as long as its gateway lives. The next
gateway with the same servers.toml takes over the first folder whose lock is free, and with it the orphans. Two that run
at once have two folders, and neither can prove that the other's containers are its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from providers.errors import ConfigurationError

try:
    import fcntl
except ImportError:  # Windows: nobody can tell there whether an identity is in use, so each gateway makes its own
    fcntl = None  # type: ignore[assignment]

SERVER, TRANSPORT, CREATED_BY = "apollos.mcp.server", "apollos.mcp.transport", "apollos.mcp.created_by"
INSTANCE, PROOF, FINGERPRINT, SCOPE = (
    "apollos.mcp.instance",
    "apollos.mcp.proof",
    "apollos.mcp.fingerprint",
    "apollos.mcp.scope",
)
GATEWAY = "apollos-mcp-gateway"
_MOST_INSTANCES = 100


def default_state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where a program keeps what is to survive it (XDG Base Directory Specification, `XDG_STATE_HOME`)."""
    named = environ.get("XDG_STATE_HOME")
    return (Path(named) if named else Path.home() / ".local" / "state") / GATEWAY


@dataclass(eq=False)
class Instance:
    """One gateway's identity. `is_held` says whether its lock is ours."""

    folder: Path
    key: bytes = field(repr=False)
    is_held: bool = False
    _lock: int | None = field(default=None, repr=False)
    _writing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def id(self) -> str:
        return hashlib.sha256(b"id" + self.key).hexdigest()[:16]

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)  # and with the file the lock
            self._lock, self.is_held = None, False

    # --- proof

    def labels(self, server: str, transport: str, name: str, image_id: str, print_: str, scope: str) -> dict[str, str]:
        """The labels of a container that is about to be made."""
        return {
            SERVER: server,
            TRANSPORT: transport,
            CREATED_BY: GATEWAY,
            INSTANCE: self.id,
            FINGERPRINT: print_,
            SCOPE: scope,
            PROOF: self._proof(server, name, image_id, print_, scope),
        }

    def _proof(self, *facts: str) -> str:
        return hmac.new(self.key, "\n".join(facts).encode(), hashlib.sha256).hexdigest()

    def owns(self, name: str, container_id: str, image_id: str, labels: Mapping[str, str]) -> bool:
        """Whether a container is ours: its labels prove that we made just this one from just this image, and its id is
        the one that we wrote down. Labels that were copied fit no other name, image or id."""
        facts = (labels.get(SERVER, ""), name, image_id, labels.get(FINGERPRINT, ""), labels.get(SCOPE, ""))
        if not hmac.compare_digest(self._proof(*facts), labels.get(PROOF, "")):
            return False
        return self.containers().get(name) in (container_id, "")

    # --- record

    def containers(self) -> dict[str, str]:
        """The full id of each container that was made, by name; empty while it is being made."""
        found = self.read().get("containers")
        return {str(name): str(id) for name, id in found.items()} if isinstance(found, dict) else {}

    def remember(self, name: str, container_id: str = "") -> None:
        """Write a container down: its name before it is made, its id before it is started."""
        with self._changing() as record:
            record.setdefault("containers", {})[name] = container_id

    def forget(self, name: str) -> None:
        with self._changing() as record:
            record.get("containers", {}).pop(name, None)

    def note(self, section: str, name: str, facts: Any) -> Any:
        """Write down facts about a server; what was known before."""
        with self._changing() as record:
            table = record.setdefault(section, {})
            known = table.get(name)
            table[name] = facts
        return known

    def read(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / "record.json").read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        with self._writing, (self.folder / "record.lock").open("w") as lock:
            if fcntl is not None:  # the command line writes beside its gateway
                fcntl.flock(lock, fcntl.LOCK_EX)
            record = self.read()
            yield record
            new = self.folder / "record.new"
            new.write_text(json.dumps(record, indent=1))
            new.replace(self.folder / "record.json")

    def log_file(self, server: str) -> Path:
        """Where the stderr of a server's stdio containers is kept, for `logs`."""
        return self.folder / f"{server}.log"

    def secrets_folder(self, container_name: str) -> Path:
        return _memory_folder() / f"{GATEWAY}-{self.id}" / container_name

    def write_secrets(self, container_name: str, values: Mapping[str, str]) -> str:
        """Files for one container, in memory: readable by its user, and on the host by nobody else, because the folder
        above is closed to others."""
        folder = self.secrets_folder(container_name)
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        for name, value in values.items():
            (folder / name).write_text(value)
            (folder / name).chmod(0o444)
        return str(folder)

    def drop_secrets(self, container_name: str) -> None:
        shutil.rmtree(self.secrets_folder(container_name), ignore_errors=True)
        with contextlib.suppress(OSError):  # another container's are still in it
            self.secrets_folder(container_name).parent.rmdir()


def _memory_folder() -> Path:
    """A file system in memory; where there is none, the state of secrets is that of any temporary file."""
    for folder in (Path("/dev/shm"), Path(os.environ.get("XDG_RUNTIME_DIR") or "/nowhere")):
        if folder.is_dir() and os.access(folder, os.W_OK):
            return folder
    return default_state_folder()


def claim(state: Path, configuration: Path) -> Instance:
    """The first identity of this servers.toml that no living gateway holds; held until released.

    Raises:
        ConfigurationError: nothing can be written there.
    """
    root = _root(state, configuration)
    try:
        for number in range(_MOST_INSTANCES):
            instance = _hold(root / str(number))
            if instance is not None:
                return instance
    except OSError as error:
        raise ConfigurationError(
            f"the record of containers cannot be kept in '{root}' ({error.strerror}). "
            'Name a folder under [gateway]: state_dir = "…"'
        ) from None
    raise ConfigurationError(f"more than {_MOST_INSTANCES} gateways run with '{configuration}'")


def abandoned(state: Path, configuration: Path) -> list[Instance]:
    """The identities whose gateways are gone, held until released: their containers are orphans."""
    found = (_hold(folder) for folder in _folders(state, configuration))
    return [instance for instance in found if instance is not None]


def known(state: Path, configuration: Path) -> list[Instance]:
    """All identities of this servers.toml, to look at; none is held."""
    return [Instance(folder, _key_in(folder)) for folder in _folders(state, configuration)]


def _folders(state: Path, configuration: Path) -> list[Path]:
    return sorted(file.parent for file in _root(state, configuration).glob("*/key"))


def _root(state: Path, configuration: Path) -> Path:
    return state / hashlib.sha256(str(configuration.absolute()).encode()).hexdigest()[:16]


def _hold(folder: Path) -> Instance | None:
    """The identity in a folder, made if there is none yet; None if somebody else holds it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif (folder / "key").exists():
            raise BlockingIOError
    except BlockingIOError:
        os.close(lock)
        return None
    return Instance(folder, _key_in(folder), is_held=True, _lock=lock)


def _key_in(folder: Path) -> bytes:
    file = folder / "key"
    if not file.exists():
        new = folder / f"key.{secrets.token_hex(4)}"
        new.touch(mode=0o600)
        new.write_text(secrets.token_hex(32))
        new.replace(file)
    return bytes.fromhex(file.read_text())
