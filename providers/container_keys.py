"""What may stand in the container keys of a record: types that refuse all that Docker must not see. Pure values.

`resource` comes in, for its fields; nobody is called. What has to be looked up on this machine, such as where a
path really leads, is the business of `mounts`, and of `placement` when a container is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from posixpath import normpath
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, ValidationInfo


class PullPolicy(StrEnum):
    """When an image is fetched: if it is not there, never, or at each start of the gateway."""

    MISSING = "missing"
    NEVER = "never"
    ALWAYS = "always"


class StartPolicy(StrEnum):
    """When a container is started: by the first use, or with the gateway."""

    LAZY = "lazy"
    EAGER = "eager"


ALLOWED_CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETGID",
    "SETUID",
)
"""Those that a server may need within its own files and processes; none of them reaches the host."""

NONE, OWN, INTERNET = "none", "own", "internet"
"""The networks with a meaning: no network; one of the server's own, without a way out; the same with a way out."""

_SEGMENT = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_DOMAIN = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?"
_IMAGE = re.compile(
    rf"(?:(?=[^/]*[.:\[]|localhost/){_DOMAIN}/)?{_SEGMENT}(?:/{_SEGMENT})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_PERSON = re.compile(r"[0-9]{1,10}|[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_MEMORY = re.compile(r"([0-9]{1,15})([kmgKMG]?)[bB]?")
_SECRET = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_UNIT = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
_LEAST_MEMORY, _MOST_MEMORY = 6 * 2**20, 2**50  # the first is Docker's own limit
_LONGEST_PATH = 4096
_HIGHEST_ID = 2**31 - 1

_OF_THE_HOST = ("host", "bridge", "default", "nat")
_OF_THE_KERNEL = ("/proc", "/sys", "/dev", "/run/secrets")


class Volume(NamedTuple):
    """One entry of docker_volumes. `source` is a path of the host, or the name of a volume."""

    source: str
    target: str
    is_read_only: bool

    @property
    def is_bind(self) -> bool:
        return self.source.startswith(("/", "~", "."))


def parse_volume(text: str) -> Volume:
    """An entry of docker_volumes: `source:target`, `source:target:ro` or `source:target:rw`.

    Raises:
        ValueError: it is none; the message is a predicate.
    """
    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not source or not target or mode not in ("", "ro", "rw"):
        raise ValueError('must be "source:/target", with ":rw" at the end where the server may write')
    if len(text) > _LONGEST_PATH or not text.isprintable():
        raise ValueError("has a path that is too long, or has a sign in it that nobody can see")
    volume = Volume(source, normpath(target), mode != "rw")
    if not volume.is_bind and not _NAME.fullmatch(source):
        raise ValueError("has a source that is neither a path (/srv/data) nor the name of a volume")
    if not target.startswith("/") or target.startswith("//") or ".." in target.split("/") or volume.target == "/":
        raise ValueError("has a target that is not a path within the container, such as /data")
    if is_within(volume.target, _OF_THE_KERNEL):
        raise ValueError(f"has a target that is not for mounting ({', '.join(_OF_THE_KERNEL)})")
    return volume


def is_within(path: str, folders: tuple[str, ...]) -> bool:
    """Whether a path is one of these folders, or lies in one; all are as `normpath` writes them."""
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def bytes_of(memory: str) -> int:
    """The number of bytes that `512m` stands for.

    Raises:
        ValueError: it is no size, or too small for a container; the message is a predicate.
    """
    match = _MEMORY.fullmatch(memory)
    size = int(match[1]) * _UNIT[match[2].lower()] if match else 0
    if not _LEAST_MEMORY <= size <= _MOST_MEMORY:
        raise ValueError('must be a size of at least 6m, such as "512m" or "2g"')
    return size


def port_of(text: str) -> int:
    """The port that `8000/tcp` stands for.

    Raises:
        ValueError: it is none; the message is a predicate.
    """
    number, _, protocol = text.partition("/")
    if not re.fullmatch(r"[0-9]{1,5}", number) or protocol not in ("", "tcp") or not 0 < int(number) < 65536:
        raise ValueError('must be a port of the container, such as "8000/tcp"')
    return int(number)


def _check_image(image: str) -> None:
    if len(image) > 512 or not _IMAGE.fullmatch(image):
        raise ValueError('must be an image as "docker pull" takes it, such as "mcp/time:1.0"')


def _check_network(network: str) -> None:
    if network in _OF_THE_HOST or network.startswith(("container:", "ns:")):
        raise ValueError(
            f'may not be \'{network}\': a server has a network of its own. Use "none", "own", "internet", '
            "or the name of a network that you made for it"
        )
    if not _NAME.fullmatch(network):
        raise ValueError('must be "none", "own", "internet" or the name of a network')


def tamed_user(user: str) -> str | None:
    """A user as Docker is to be given it, or None where it is root, of root's group, or no user at all.

    Docker takes for a number what Go's `Atoi` reads (`00` and `+0` are 0) and for a name what the image's /etc/passwd
    has. A number without a group would get group 0 unless that file says otherwise, so it gets its own number.
    """
    person, colon, group = user.partition(":")
    parts = [person, group] if colon else [person]
    if not all(_PERSON.fullmatch(part) for part in parts):
        return None
    parts = [str(int(part)) if part.isdigit() else part for part in parts]
    if any(part in ("0", "root") or (part.isdigit() and int(part) > _HIGHEST_ID) for part in parts):
        return None
    return ":".join([*parts, *(parts if not colon and person.isdigit() else [])])


def _check_user(user: str) -> None:
    if not all(_PERSON.fullmatch(part) for part in user.split(":", 1)):
        raise ValueError('must be a user of the image, as a name or a number: "1000" or "1000:1000"')
    if tamed_user(user) is None:
        raise ValueError(
            'may not be root, nor of root\'s group: no server runs as that. Use a number such as "1000:1000"; '
            "what it has to read or write must be open to that user"
        )


def _check_capability(capability: str) -> None:
    if capability not in ALLOWED_CAPABILITIES:
        raise ValueError(
            f"asks for a capability that no server gets: it reaches beyond the container. "
            f"Allowed: {', '.join(ALLOWED_CAPABILITIES)}"
        )


def _check_path(path: str) -> None:
    if not re.fullmatch(r"/[A-Za-z0-9_.~/-]{0,200}", path):
        raise ValueError('must be the path of a URL, such as "/mcp"')


def _check_secret_name(name: str) -> None:
    if not _SECRET.fullmatch(name):
        raise ValueError("has a secret whose name is not that of a file: use letters, digits, '_', '-' and '.'")


def _unless_unexpanded(check: Callable[[str], object]) -> AfterValidator:
    """A disabled server keeps its `${VAR}` as written: there is no value yet that could be checked."""

    def validate(value: str, info: ValidationInfo) -> str:
        if not ("${" in value and info.data.get("is_enabled") is False):
            check(value)
        return value

    return AfterValidator(validate)


def _check_program(command: tuple[str, ...]) -> tuple[str, ...]:
    if command and (not command[0] or command[0].startswith("-")):
        raise ValueError("must begin with a program of the image, not with an option")
    if any("\0" in part for part in command):
        raise ValueError("must not hold a NUL character")
    return command


def _check_one_port(ports: tuple[str, ...]) -> tuple[str, ...]:
    if len(ports) > 1:
        raise ValueError("has several ports; a server speaks MCP on one. Keep that one")
    return ports


def _check_targets(volumes: tuple[str, ...]) -> tuple[str, ...]:
    targets = [normpath(volume.split(":")[1]) for volume in volumes if volume.count(":") and "${" not in volume]
    if len(set(targets)) < len(targets):
        raise ValueError("has two volumes for one place in the container. Keep one of them")
    return volumes


Image = Annotated[str, _unless_unexpanded(_check_image)]
Network = Annotated[str, _unless_unexpanded(_check_network)]
User = Annotated[str, _unless_unexpanded(_check_user)]
Memory = Annotated[str, _unless_unexpanded(bytes_of)]
UrlPath = Annotated[str, _unless_unexpanded(_check_path)]
SecretName = Annotated[str, _unless_unexpanded(_check_secret_name)]
Volumes = Annotated[tuple[Annotated[str, _unless_unexpanded(parse_volume)], ...], AfterValidator(_check_targets)]
Capabilities = tuple[Annotated[str, _unless_unexpanded(_check_capability)], ...]
Ports = Annotated[tuple[Annotated[str, _unless_unexpanded(port_of)], ...], AfterValidator(_check_one_port)]
Program = Annotated[tuple[str, ...], AfterValidator(_check_program)]
