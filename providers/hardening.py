"""What a container may do: from a record and its image to the one configuration that Docker is given. No Docker here.

The container manager comes in with `container_config`. Nothing that an operator or an image says is passed on as it
stands: every field of the configuration is written here. Which folders of the host may be mounted is the business of
`mounts`. The documented defaults are in docs/docker.md, and a test reads them back from the engine field by field.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from posixpath import normpath
from typing import Any

from providers.container_keys import NONE, OWN, Volume, bytes_of, is_within, port_of, tamed_user
from providers.ownership import INSTANCE
from providers.resource import McpServerResource, TransportType

NOBODY = "65534:65534"
NOBODY_LISTENS = "127.0.0.1"
SECRETS = "/run/secrets"
_TMPFS = "rw,noexec,nosuid,nodev,size=64m,mode=1777"
_STOP_SECONDS = 5
_OF_THE_SYSTEM = (
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/proc",
    "/sbin",
    "/sys",
    "/usr",
    SECRETS,
)
"""Folders of the image that nothing empty is put over: without what is in them no server runs."""


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
    volumes: tuple[Volume, ...] = ()
    """What is mounted, each path as it was looked at: Docker is given no other."""
    secrets_folder: str | None = None
    """A folder of the host with one file per secret."""
    has_stdin: bool = True
    """Whether a container over stdio is given something to read; without it, its stdin has ended before it starts."""


def container_config(resource: McpServerResource, image: ImageFacts, placement: Placement) -> dict[str, Any]:
    """What Docker is asked to create, without a name and labels. The image is named by its id, so that nobody can
    put another one in its place between looking and creating."""
    over_stdio = resource.transport_type is TransportType.STDIO
    has_stdin = over_stdio and placement.has_stdin
    config: dict[str, Any] = {
        "Image": image.id,
        "User": user_of(resource, image),
        "Env": [f"{name}={value}" for name, value in sorted(_environment(resource, image).items())],
        "Tty": False,
        "OpenStdin": has_stdin,
        "StdinOnce": has_stdin,
        "AttachStdin": has_stdin,
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
        "Tmpfs": dict.fromkeys(_tmpfs_paths(image, placement), _TMPFS),
        "Mounts": _mounts(placement),
        "Devices": [],
        "PidsLimit": resource.docker_pids,
        "Memory": memory,
        "MemorySwap": memory,
        "NanoCpus": round(resource.docker_cpus * 1_000_000_000),
        "Ulimits": [{"Name": "nofile", "Soft": 1024, "Hard": 1024}],
        "NetworkMode": placement.network or "none",
        "Dns": [NOBODY_LISTENS] if network_of(resource) == OWN else [],  # else names would be a way out
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
    """The operator's choice; else the image's, unless that or its group is root; else nobody. Never what was written:
    a number that Docker reads as 0 has many spellings, and one without a group would get root's."""
    return tamed_user(resource.docker_user or image.user) or NOBODY


def _environment(resource: McpServerResource, image: ImageFacts) -> dict[str, str]:
    homeless = user_of(resource, image) == NOBODY and resource.docker_user is None
    secrets = {f"{name.upper()}_FILE": f"{SECRETS}/{name}" for name in resource.docker_secrets}
    return {**({"HOME": "/tmp"} if homeless else {}), **secrets, **resource.env}


def _tmpfs_paths(image: ImageFacts, placement: Placement) -> list[str]:
    """/tmp, and what the image declares as volumes: as such they would be on disk, without a limit. Docker compares
    paths as `normpath` writes them; a path below another one has to be here too, or it would be a volume again."""
    declared = {normpath(f"/{path.lstrip('/')}") for path in image.volumes if path.startswith("/")}
    fit = {path for path in declared if path != "/" and path.isprintable() and not is_within(path, _OF_THE_SYSTEM)}
    return sorted({"/tmp", *fit} - {volume.target for volume in placement.volumes})


def _mounts(placement: Placement) -> list[dict[str, Any]]:
    mounts = [
        {
            "Type": "bind" if volume.is_bind else "volume",
            "Source": volume.source,
            "Target": volume.target,
            "ReadOnly": volume.is_read_only,
            **({"BindOptions": {"Propagation": "rprivate"}} if volume.is_bind else {}),
        }
        for volume in placement.volumes
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


_OF_THE_ENGINE = ("bridge", "host", "none", "ingress", "docker_gwbridge")


def network_problem(name: str, inspected: Mapping[str, Any]) -> str | None:
    """Why no server may be on a network, as a predicate, or None.

    Args:
        name: what the operator wrote.
        inspected: what Docker takes that for.
    """
    if inspected.get("Name") != name:
        return f"is the id of the network '{inspected.get('Name')}'. Write the name of a network that you made"
    if name in _OF_THE_ENGINE or inspected.get("Driver") in ("host", "null"):
        return "is the engine's own: a server has a network of its own. Use 'own', 'internet', or one that you made"
    if INSTANCE in (inspected.get("Labels") or {}):
        return "was made by a gateway for one server alone. Use 'own', 'internet', or one that you made"
    return None


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
