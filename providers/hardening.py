"""What a container may do: from a record and its image to the one configuration that Docker is given. No Docker here.

The container manager comes in with `container_config`, and the reading of servers.toml with `mount_problem`. Nothing
that an operator or an image says is passed on as it stands: every field of the configuration is written here. The
documented defaults are in docs/docker.md, and a test reads them back from the engine field by field.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from providers.container_keys import NONE, OWN, Volume, bytes_of, parse_volume, port_of
from providers.errors import BackendUnavailable
from providers.resource import McpServerResource, TransportType

NOBODY = "65534:65534"
SECRETS = "/run/secrets"
_TMPFS = "rw,noexec,nosuid,nodev,size=64m,mode=1777"
_STOP_SECONDS = 5
_ROOT = ("root", "0")

_OF_THE_HOST = ("/etc", "/proc", "/sys", "/dev", "/boot", "/run", "/var/run", "/var/lib/docker", "/var/lib/containerd")
_CREDENTIALS = (
    ".ssh",
    ".gnupg",
    ".aws",
    ".azure",
    ".kube",
    ".docker",
    ".netrc",
    ".pypirc",
    ".npmrc",
    ".git-credentials",
    ".config/gcloud",
    ".config/gh",
    ".password-store",
    ".local/share/keyrings",
    "Library/Keychains",
)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is read of an image: its id, and what it would like to have. Its labels are not even looked at."""

    id: str
    digest: str | None = None
    user: str = ""
    volumes: tuple[str, ...] = ()


def image_facts(inspected: Mapping[str, Any]) -> ImageFacts:
    """The facts in Docker's answer to an inspection of an image."""
    config, digests = inspected.get("Config") or {}, inspected.get("RepoDigests") or [""]
    return ImageFacts(
        id=inspected["Id"],
        digest=digests[0].partition("@")[2] or None,
        user=config.get("User") or "",
        volumes=tuple(config.get("Volumes") or ()),
    )


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a container is put: decided by the manager, not by the record."""

    network: str | None = None
    """The Docker network to join; None is no network."""
    publishes: bool = False
    """Whether its port is to be had on 127.0.0.1; otherwise it is reached over the network."""
    secrets_folder: str | None = None
    """A folder of the host with one file per secret."""


def container_config(resource: McpServerResource, image: ImageFacts, placement: Placement) -> dict[str, Any]:
    """What Docker is asked to create, without a name and labels. The image is named by its id, so that nobody can
    put another one in its place between looking and creating."""
    over_stdio = resource.transport_type is TransportType.STDIO
    config: dict[str, Any] = {
        "Image": image.id,
        "User": user_of(resource, image),
        "Env": [f"{name}={value}" for name, value in sorted(_environment(resource, image).items())],
        "Tty": False,
        "OpenStdin": over_stdio,
        "StdinOnce": over_stdio,
        "AttachStdin": over_stdio,
        "AttachStdout": over_stdio,
        "AttachStderr": over_stdio,
        "StopTimeout": _STOP_SECONDS,
        "HostConfig": _host_config(resource, image, placement),
    }
    if resource.docker_command:
        config["Entrypoint"] = list(resource.docker_command)
    if resource.args or resource.docker_command:
        config["Cmd"] = list(resource.args)
    if not over_stdio:
        config["ExposedPorts"] = {f"{container_port(resource)}/tcp": {}}
    return config


def _host_config(resource: McpServerResource, image: ImageFacts, placement: Placement) -> dict[str, Any]:
    over_stdio = resource.transport_type is TransportType.STDIO
    memory = bytes_of(resource.docker_memory)
    return {
        "Privileged": False,
        "CapDrop": ["ALL"],
        "CapAdd": sorted(resource.docker_capabilities),
        "SecurityOpt": ["no-new-privileges:true"],  # the seccomp profile stays Docker's own
        "ReadonlyRootfs": resource.docker_read_only,
        "Tmpfs": dict.fromkeys(_tmpfs_paths(resource, image), _TMPFS),
        "Mounts": _mounts(resource, placement),
        "Devices": [],
        "PidsLimit": resource.docker_pids,
        "Memory": memory,
        "MemorySwap": memory,
        "NanoCpus": round(resource.docker_cpus * 1_000_000_000),
        "Ulimits": [{"Name": "nofile", "Soft": 1024, "Hard": 1024}],
        "NetworkMode": placement.network or "none",
        "PortBindings": _port_bindings(resource, placement),
        "PublishAllPorts": False,
        "IpcMode": "private",
        "PidMode": "",
        "UTSMode": "",
        "Init": True,
        "AutoRemove": False,  # an exit code that nobody can read explains nothing
        "RestartPolicy": {"Name": "unless-stopped" if resource.keep else "no", "MaximumRetryCount": 0},
        "LogConfig": {"Type": "none", "Config": {}}
        if over_stdio  # what it says is MCP, and belongs to its caller
        else {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}},
    }


def user_of(resource: McpServerResource, image: ImageFacts) -> str:
    """The operator's choice; else the image's, unless that is root; else nobody."""
    if resource.docker_user is not None:
        return resource.docker_user
    return image.user if image.user and image.user.partition(":")[0] not in _ROOT else NOBODY


def _environment(resource: McpServerResource, image: ImageFacts) -> dict[str, str]:
    homeless = user_of(resource, image) == NOBODY and resource.docker_user is None
    secrets = {f"{name.upper()}_FILE": f"{SECRETS}/{name}" for name in resource.docker_secrets}
    return {**({"HOME": "/tmp"} if homeless else {}), **secrets, **resource.env}


def _tmpfs_paths(resource: McpServerResource, image: ImageFacts) -> list[str]:
    """/tmp, and what the image declares as volumes: as such they would be left behind, one for each container."""
    mounted = {volume.target for volume in volumes_of(resource)}
    return sorted({"/tmp", *(path for path in image.volumes if path.startswith("/") and path != "/")} - mounted)


def volumes_of(resource: McpServerResource) -> list[Volume]:
    return [parse_volume(text) for text in resource.docker_volumes]


def _mounts(resource: McpServerResource, placement: Placement) -> list[dict[str, Any]]:
    mounts = [
        {
            "Type": "bind" if volume.is_bind else "volume",
            "Source": real_path(volume.source) if volume.is_bind else volume.source,
            "Target": volume.target,
            "ReadOnly": volume.is_read_only,
            **({"BindOptions": {"Propagation": "rprivate"}} if volume.is_bind else {}),
        }
        for volume in volumes_of(resource)
    ]
    if placement.secrets_folder:
        mounts.append(
            {
                "Type": "bind",
                "Source": placement.secrets_folder,
                "Target": SECRETS,
                "ReadOnly": True,
                "BindOptions": {"Propagation": "rprivate"},
            }
        )
    return mounts


def _port_bindings(resource: McpServerResource, placement: Placement) -> dict[str, Any]:
    if not placement.publishes:
        return {}
    return {f"{container_port(resource)}/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}


def container_port(resource: McpServerResource) -> int:
    return port_of(resource.docker_ports[0])


def network_of(resource: McpServerResource) -> str:
    """`none`, `own`, `internet`, or the name of a network: none for stdio unless asked, the server's own for HTTP."""
    return resource.docker_network or (NONE if resource.transport_type is TransportType.STDIO else OWN)


def fingerprint(config: Mapping[str, Any]) -> str:
    """Equal for containers that were made alike, so that one may serve in the place of another."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:32]


def relaxations(resource: McpServerResource) -> list[str]:
    """Where a record differs from the defaults, for `check` and the status; nothing for other servers."""
    if not resource.is_container:
        return []
    fields = type(resource).model_fields
    keys = ("docker_memory", "docker_cpus", "docker_pids", "docker_user", "docker_read_only")
    changed = [f"{key}={getattr(resource, key)}" for key in keys if getattr(resource, key) != fields[key].default]
    for key in ("docker_capabilities", "docker_volumes"):
        changed += [f"{key}={value}" for value in getattr(resource, key)]
    network = network_of(resource)
    usual = NONE if resource.transport_type is TransportType.STDIO else OWN
    return [*changed, *([f"docker_network={network}"] if network != usual else [])]


# ----------------------------------------------------------------------------------------------------- what is refused


def real_path(source: str) -> str:
    """Where a path really leads, through `~`, `..` and every symbolic link."""
    return os.path.realpath(Path(source).expanduser())


def mount_problem(
    volume: Volume, allowed: Iterable[str], forbidden: Collection[str] = (), home: str | None = None
) -> str | None:
    """Why a path of the host may not be mounted, as a predicate, or None. It looks at the file system.

    Args:
        allowed: the operator's `docker_allowed_paths`.
        forbidden: more paths that no container may see, such as the engine's socket.
        home: whose credentials are meant; the gateway's own user by default.
    """
    if not volume.is_bind:
        return None
    source = real_path(volume.source)
    for path in _never(home, forbidden):
        if _is_below(source, path) or _is_below(path, source):
            return f"leads to '{source}', which holds '{path}' or lies in it: no container may see that"
    if _is_socket(source):
        return f"leads to '{source}', a socket: who can write to it is not contained"
    folders = [real_path(folder) for folder in allowed]
    if not any(_is_below(source, folder) for folder in folders):
        return (
            f"leads to '{source}', below none of docker_allowed_paths ({', '.join(folders) or 'there are none'}). "
            'Name its folder under [gateway]: docker_allowed_paths = ["…"]'
        )
    return None


def volume_problems(volumes: list[Any], directory: Path, allowed: Collection[str]) -> Iterator[tuple[int, str]]:
    """Make the paths in a list of docker_volumes absolute, from `directory` on, and look where each leads: the place in
    the list, and the predicate, of each that may not be mounted. What is no volume at all is passed over here."""
    for place, text in enumerate(volumes):
        if isinstance(text, str) and text.startswith("."):
            text = volumes[place] = f"{directory}/{text}"
        try:
            volume = parse_volume(text)
        except (ValueError, AttributeError):
            continue  # the model has the words for it
        if problem := mount_problem(volume, allowed):
            yield place, problem


def _never(home: str | None, forbidden: Collection[str]) -> Iterator[str]:
    person = Path(home) if home else Path.home()
    yield from (real_path(path) for path in (*_OF_THE_HOST, *forbidden))
    yield from (real_path(str(person / name)) for name in _CREDENTIALS if (person / name).exists())
    yield from (str(person / name) for name in _CREDENTIALS)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(Path(path).stat().st_mode)
    except OSError:
        return False


def check_mounts(resource: McpServerResource, allowed: Collection[str], forbidden: Collection[str]) -> None:
    """The same once more when a container is made: a link may lead elsewhere by now. It looks at the file system.

    Raises:
        BackendUnavailable: a path may not be mounted, or is not there.
    """
    for volume in volumes_of(resource):
        problem = mount_problem(volume, allowed, forbidden)
        if problem is None and volume.is_bind and not Path(real_path(volume.source)).exists():
            problem = f"names '{volume.source}', which is not there. Create it, or correct 'docker_volumes'"
        if problem:
            raise BackendUnavailable(resource.name, f"a volume in 'docker_volumes' {problem}.", not_sent=True)


def volume_problem(options: Mapping[str, str] | None) -> str | None:
    """Why a named volume that exists may not be mounted: with options it can stand for any folder of the host."""
    if options:
        return "was made with driver options, which can lead anywhere on the host. Use one that was made without"
    return None
