"""What a model may add without anybody's approval: what the operator's patterns in `dynamic_allow` cover.

`dynamic` comes in with what a found server becomes. A pattern says what runs; it covers nothing that would make it
something else: folders of this machine, other networks, variables that tell a package runner where packages are.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from composition.clients.secret_values import has_secret_name
from composition.discovery.found import own_volume
from providers.container_keys import INTERNET, NONE
from providers.container_tool import ContainerTool
from providers.resource import McpServerResource

_STEERING = re.compile(
    r"(?:UV|PIP|PYTHON|NPM|NODE|YARN|LD|DYLD|GIT|XDG|SSL|CURL|DOCKER|APOLLOS|BASH|REQUESTS)(?:_.*|[A-Z]*)"
    r"|PATH|HOME|SHELL|ENV|IFS|TMPDIR|TEMP|TMP|USERPROFILE|APPDATA|PATHEXT|COMSPEC|.*_PROXY|.*_INDEX_URL|.*_REGISTRY",
    re.I,
)
"""Variables that decide which program a package runner gets, and what is loaded into it."""


def runs_here(resource: McpServerResource) -> bool:
    """Whether it runs something on the gateway's machine."""
    return resource.url is None


def subjects(resource: McpServerResource) -> tuple[str, ...]:
    """What patterns are compared with: what runs, with its version and without."""
    if resource.docker_image is not None:
        return _of_image(resource.docker_image)
    match resource.command, list(resource.args):
        case "npx", ["-y", package, *_]:
            name = package[:1] + package[1:].partition("@")[0]
            return tuple(dict.fromkeys((f"npm:{package}", f"npm:{name}")))
        case "uvx", ["--from", package, _, *_]:
            return _of_pypi(package)
        case "uvx", [package, *_] if not package.startswith("-"):
            return _of_pypi(package)
    return ()


def _of_image(image: str) -> tuple[str, ...]:
    bare = image.partition("@")[0]
    name = bare.rpartition(":")[0] if ":" in bare.rpartition("/")[2] else bare
    return tuple(dict.fromkeys(f"image:{each}" for each in (image, bare, name)))


def _of_pypi(package: str) -> tuple[str, ...]:
    name = package.partition("==")[0].partition("[")[0]
    return tuple(dict.fromkeys((f"pypi:{package}", f"pypi:{name}")))


class AllowList:
    """
    Args:
        patterns: as in `dynamic_allow`.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        kinds = [pattern.partition(":")[::2] for pattern in patterns]
        self._addresses = [rest for kind, rest in kinds if kind == "remote"]
        self._programs = [f"{kind}:{rest}" for kind, rest in kinds if kind != "remote"]

    def __repr__(self) -> str:
        return f"<AllowList {len(self._programs)} programs, {len(self._addresses)} addresses>"

    def covers(self, resource: McpServerResource) -> bool:
        """Whether it may be added without approval. Servers elsewhere may, unless the operator lists addresses."""
        if not runs_here(resource):
            return not self._addresses or any(_is_at(resource.url or "", each) for each in self._addresses)
        images = [tool.image for tool in resource.docker_tools.values() if tool.image]
        programs = [subjects(resource), *map(_of_image, images)]
        return all(map(self._names, programs)) and not _goes_further(resource)

    def _names(self, program: tuple[str, ...]) -> bool:
        return any(fnmatchcase(each, pattern) for each in program for pattern in self._programs)


def _is_at(url: str, pattern: str) -> bool:
    """A `*` in the host stands for nothing beyond it: `https://*.example.com/*` is no pattern for other hosts."""
    here, there = urlsplit(url), urlsplit(pattern)
    return (
        here.scheme == there.scheme
        and fnmatchcase(here.netloc.lower(), there.netloc.lower())
        and (there.path in ("", "/*") or fnmatchcase(here.path, there.path))
    )


def _goes_further(resource: McpServerResource) -> bool:
    if resource.docker_image is None:
        return any(_STEERING.fullmatch(name) for name in resource.env)
    volumes = [*resource.docker_volumes, *(each for tool in resource.docker_tools.values() for each in tool.volumes)]
    others = [each for each in volumes if not each.startswith(own_volume(resource.name, ""))]
    return bool(others or resource.docker_network not in (None, INTERNET, NONE) or resource.docker_secrets)


def what_it_is(resource: McpServerResource) -> list[str]:
    """What a person approves, a line each, quoted so that no text of a stranger's looks like one of ours. A value that
    may be secret is not shown."""
    told = [f"name: {resource.name}"]
    if resource.url is not None:
        told.append(f"connects to {shlex.quote(resource.url)}")
    elif resource.docker_image is not None:
        told.append(f"runs the container image {shlex.quote(resource.docker_image)}")
        told += [f"arguments: {shlex.join(resource.args)}"] if resource.args else []
        told.append(f"network: {resource.docker_network or INTERNET}")
        told += [f"folders and volumes: {shlex.join(resource.docker_volumes)}"] if resource.docker_volumes else []
        told += [_of_tool(*each, resource) for each in resource.docker_tools.items()]
    else:
        told.append(f"runs on this machine, with its network: {shlex.join([resource.command or '', *resource.args])}")
    told += [f"variables: {shlex.join(_shown(*each) for each in sorted(resource.env.items()))}"] if resource.env else []
    return told


def _of_tool(name: str, tool: ContainerTool, resource: McpServerResource) -> str:
    runs = shlex.join([tool.image or resource.docker_image or "", *tool.args])
    return f"tool {name} runs {runs}" + (f", with {shlex.join(tool.volumes)}" if tool.volumes else "")


def _shown(name: str, value: str) -> str:
    return name if has_secret_name(name) or "${secret:" in value else f"{name}={value}"
