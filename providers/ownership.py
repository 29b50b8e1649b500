"""Which containers are ours: a gateway's identity at the engine, its proof on each container, and its record of them.

The container manager and the command line come in; called is `private_files`, so every function here blocks and is
run in a thread. An identity is a folder with a key, held by a lock for as long as its gateway lives. The next
gateway with the same servers.toml takes over the first folder whose lock is free, and with it the orphans. Two that run
at once have two folders, and neither can prove that the other's containers are its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from providers.errors import ConfigurationError
from providers.private_files import NO_LINK, private_folder, put, write_new

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
CONTAINER = "apollos.mcp.container"
"""On a network: the container that it was made for, if it is not for all of a server's."""
GATEWAY = "apollos-mcp-gateway"
_MOST_INSTANCES = 100
_KEY_BYTES = 32

logger = logging.getLogger(__name__)
_told: set[Path] = set()
"""Folders that cannot be used: they are looked at again and again, and told of once."""


def default_state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where a program keeps what is to survive it (XDG Base Directory Specification, `XDG_STATE_HOME`). Where nobody
    knows the user's home it is a folder for temporary files, with the user's number in its name."""
    named = environ.get("XDG_STATE_HOME", "")
    if Path(named).is_absolute():  # others are to be ignored, says the specification
        return Path(named) / GATEWAY
    home = environ.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - Path's raises where there is no home
    if Path(home).is_absolute():
        return Path(home) / ".local" / "state" / GATEWAY
    return Path(tempfile.gettempdir()) / f"{GATEWAY}-{os.getuid()}"


def state_folder(chosen: str | None) -> Path:
    """The operator's `state_dir`, or the default."""
    return Path(os.path.expanduser(chosen)) if chosen else default_state_folder()  # noqa: PTH111 - as above


def hidden(state: Path, configuration: Path) -> tuple[str, ...]:
    """What no container may see: servers.toml, because who writes to it runs what he likes on this machine, and who
    reads it has everybody's secrets; and what the gateways of this user keep, their keys before all."""
    return str(configuration.absolute()), str(state), str(default_state_folder())


@dataclass(eq=False)
class Instance:
    """One gateway's identity. `is_held` says whether its lock is ours."""

    folder: Path
    key: bytes = field(repr=False)
    hidden: tuple[str, ...] = field(default=(), repr=False)
    """Paths that none of its containers may see."""
    is_held: bool = False
    marks: Callable[[str, str, str, str], Mapping[str, str]] = field(default=lambda *_: {}, repr=False)
    """Further labels of a container, by server, name, image and scope; see `fence`."""
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
        } | dict(self.marks(server, name, image_id, scope))

    def _proof(self, *facts: Any) -> str:
        """JSON takes whatever a stranger has written, and says where each fact ends."""
        return hmac.new(self.key, json.dumps(facts, default=str).encode(), hashlib.sha256).hexdigest()

    def owns(self, name: str, container_id: str, image_id: str, labels: Mapping[str, Any]) -> bool:
        """Whether a container is ours: its labels prove that we made just this one from just this image, and its id is
        the one that we wrote down. Labels that were copied fit no other name, image or id."""
        facts = (labels.get(SERVER, ""), name, image_id, labels.get(FINGERPRINT, ""), labels.get(SCOPE, ""))
        return self._is_proven(labels, *facts) and self.containers().get(name) in (container_id, "")

    def network_labels(self, server: str, name: str, container: str = "") -> dict[str, str]:
        """The labels of a network that is about to be made, for a server or for one container of it."""
        proof = self._proof("network", server, name, container)
        return {SERVER: server, CONTAINER: container, CREATED_BY: GATEWAY, INSTANCE: self.id, PROOF: proof}

    def owns_network(self, name: str, labels: Mapping[str, Any]) -> bool:
        """Whether a network is ours: labels that were copied fit no other name."""
        return self._is_proven(labels, "network", labels.get(SERVER), name, labels.get(CONTAINER))

    def _is_proven(self, labels: Mapping[str, Any], *facts: Any) -> bool:
        claimed = str(labels.get(PROOF, "")).encode(errors="replace")  # as text it might not be comparable
        return hmac.compare_digest(self._proof(*facts).encode(), claimed)

    # --- record

    def containers(self) -> dict[str, str]:
        """The full id of each container that was made, by name; empty while it is being made."""
        found = self.read().get("containers")
        return {str(name): str(id) for name, id in found.items()} if isinstance(found, dict) else {}

    def remember(self, name: str, container_id: str = "") -> None:
        """Write a container down: its name before it is made, its id before it is started."""
        with self._changing() as record:
            _table(record, "containers")[name] = container_id

    def forget(self, name: str, container_id: str | None = None) -> bool:
        """A container is gone, and its secrets go with it.

        Args:
            container_id: only if the name is still this container's, or that of one which is being made. The command
                line and a gateway may both see the end of one, while the name is given to the next.

        Returns:
            Whether it was known.
        """
        with self._changing() as record:
            known = _table(record, "containers")
            if known.get(name) and container_id not in (None, known[name]):
                return False
            self._drop_secrets(name)
            return known.pop(name, None) is not None

    def note(self, section: str, name: str, facts: Any) -> Any:
        """Write down facts about a server; what was known before."""
        with self._changing() as record:
            table = _table(record, section)
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
    def _alone(self) -> Iterator[None]:
        """The command line writes beside its gateway."""
        with self._writing, (self.folder / "record.lock").open("w") as lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        with self._alone():
            record = self.read()
            before = json.dumps(record, indent=1)
            yield record
            if (after := json.dumps(record, indent=1)) != before:
                put(self.folder / "record.json", after.encode())

    def log_file(self, server: str) -> Path:
        """Where the stderr of a server's stdio containers is kept, for `logs`."""
        return self.folder / f"{server}.log"

    # --- secrets

    def secrets_folder(self, container_name: str) -> Path:
        return self._closed_folder / container_name

    @property
    def _closed_folder(self) -> Path:
        """In memory, where there is such a file system; else beside the record."""
        for folder in (Path("/dev/shm"), Path(os.environ.get("XDG_RUNTIME_DIR") or "/nowhere")):
            if folder.is_dir() and os.access(folder, os.W_OK):
                return folder / f"{GATEWAY}-{self.id}"
        return self.folder / "secrets"

    def write_secrets(self, container_name: str, values: Mapping[str, str]) -> str:
        """Files for one container, in memory: readable by its user, and on the host by nobody else, because the folder
        above is closed to others.

        Raises:
            ConfigurationError: they cannot be kept there, or somebody else could read them.
        """
        try:
            with self._alone(), private_folder(self._closed_folder) as above:
                shutil.rmtree(container_name, ignore_errors=True, dir_fd=above)  # of a gateway that was killed
                os.mkdir(container_name, dir_fd=above)
                folder = os.open(container_name, os.O_RDONLY | os.O_DIRECTORY | NO_LINK, dir_fd=above)
                try:
                    os.fchmod(folder, 0o755)
                    for name, value in values.items():
                        write_new(name, value.encode(errors="surrogateescape"), 0o444, folder)
                finally:
                    os.close(folder)
        except OSError as error:
            problem = f"its secrets cannot be kept in '{self._closed_folder}' ({error.strerror})."
            raise ConfigurationError(problem) from None
        return str(self.secrets_folder(container_name))

    def drop_secrets(self, container_name: str) -> None:
        if self._closed_folder.exists():
            with contextlib.suppress(OSError), self._alone():
                self._drop_secrets(container_name)

    def _drop_secrets(self, container_name: str) -> None:
        if not self._closed_folder.exists():
            return
        with contextlib.suppress(OSError, ConfigurationError):  # what is not ours is left alone
            with private_folder(self._closed_folder) as above:
                shutil.rmtree(container_name, ignore_errors=True, dir_fd=above)
            self._closed_folder.rmdir()  # fails while another container's are in it


def _table(record: dict[str, Any], section: str) -> dict[str, Any]:
    if not isinstance(record.get(section), dict):  # none yet, or damaged
        record[section] = {}
    table: dict[str, Any] = record[section]
    return table


def claim(state: Path, configuration: Path) -> Instance:
    """The first identity of this servers.toml that no living gateway holds; held until released.

    Raises:
        ConfigurationError: nothing can be written there.
    """
    root = folder_for(state, configuration)
    try:
        check_state(state)
        for number in range(_MOST_INSTANCES):
            instance = _hold(root / str(number), hidden(state, configuration))
            if instance is not None:
                return instance
    except OSError as error:
        raise ConfigurationError(
            f"the record of containers cannot be kept in '{root}' ({error.strerror}). "
            'Name a folder under [gateway]: state_dir = "…"'
        ) from None
    raise ConfigurationError(f"more than {_MOST_INSTANCES} gateways run with '{configuration}'")


def abandoned(state: Path, configuration: Path) -> list[Instance]:
    """The identities whose gateways are gone, held until released: their containers are orphans. One whose folder
    cannot be used is passed over."""
    with contextlib.ExitStack() as taken:
        found = []
        for folder in _folders(state, configuration):
            if instance := _held_if_possible(folder, hidden(state, configuration)):
                taken.callback(instance.release)
                found.append(instance)
        taken.pop_all()
    return found


def _held_if_possible(folder: Path, hidden: tuple[str, ...]) -> Instance | None:
    try:
        instance = _hold(folder, hidden)
    except OSError as error:
        if folder not in _told:
            _told.add(folder)
            logger.error(
                "what a gateway left behind in '%s' cannot be looked at (%s), so its containers stay where they are. "
                "Give this user the right to read and write there, or remove the folder.",
                folder,
                error.strerror,
            )
        return None
    _told.discard(folder)
    return instance


def known(state: Path, configuration: Path) -> list[Instance]:
    """All identities of this servers.toml, to look at; none is held."""
    found = []
    for folder in _folders(state, configuration):
        with contextlib.suppress(OSError):  # another user's
            if key := _read_key(folder / "key"):
                found.append(Instance(folder, key, hidden(state, configuration)))
    return found


def _folders(state: Path, configuration: Path) -> list[Path]:
    found = sorted(file.parent for file in folder_for(state, configuration).glob("*/key"))
    if found:
        check_state(state)
    return found


def check_state(state: Path) -> None:
    """Where everybody may write, the folder has to be ours: in one of somebody else's could be their keys.

    Raises:
        ConfigurationError: it is not.
    """
    with contextlib.suppress(FileNotFoundError):  # then nobody but us can make it
        if state.parent.stat().st_mode & stat.S_IWOTH:
            with private_folder(state):
                pass


def folder_for(state: Path, configuration: Path) -> Path:
    """Of what the gateways with one servers.toml keep."""
    return state / hashlib.sha256(str(configuration.absolute()).encode()).hexdigest()[:16]


def _hold(folder: Path, hidden: tuple[str, ...]) -> Instance | None:
    """The identity in a folder, made if there is none yet; None if somebody else holds it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif (folder / "key").exists():
            raise BlockingIOError
        return Instance(folder, _key_in(folder), hidden, is_held=True, _lock=lock)
    except BaseException as error:
        os.close(lock)  # a lock that nobody knows of could not be released
        if isinstance(error, BlockingIOError):
            return None
        raise


def _read_key(file: Path) -> bytes | None:
    """The key in a file, or None if there is none, or not a whole one.

    Raises:
        OSError: it may not be read.
    """
    try:
        text = file.read_text("ascii").strip()
    except (FileNotFoundError, ValueError):
        return None
    return bytes.fromhex(text) if re.fullmatch(rf"[0-9a-f]{{{2 * _KEY_BYTES}}}", text) else None


def _key_in(folder: Path) -> bytes:
    """The key of an identity that we hold; a new one where there is none that can be used."""
    file = folder / "key"
    if key := _read_key(file):
        return key
    if file.exists():
        logger.error(
            "the key in '%s' is damaged, so this gateway takes a new identity. Containers that were made with the old "
            "one are no longer its own and are left alone: look with 'docker ps --all --filter label=%s=%s', and "
            "remove them with 'docker rm --force'.",
            file,
            CREATED_BY,
            GATEWAY,
        )
    key = secrets.token_bytes(_KEY_BYTES)
    put(file, key.hex().encode())
    return key
