"""A registry entry becomes a resource, for npm, PyPI and container packages and for remote servers.

`registry_client` and the commands come in; `registry_inputs` fills in what was set. What cannot run here is told with
the reason. The identifier of a package is checked for its kind before it becomes a word of a command line, and of the
options that an entry asks of `npx`, `uvx` or Docker only harmless ones are taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from composition.discovery.found import Found, Source, State, fitting_name, own_volume
from composition.discovery.registry_document import Input, Package, ServerDocument, Transport
from composition.discovery.registry_inputs import Filling, Values, arguments
from providers.container_keys import parse_volume
from providers.errors import ConfigurationError
from providers.resource import McpServerResource

Keys = dict[str, Any]

_NPM = re.compile(r"(?:@[a-z0-9][a-z0-9._~-]*/)?[A-Za-z0-9][A-Za-z0-9._~-]*")
_PYPI = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?(?:\[[A-Za-z0-9_,-]{1,80}\])?")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+!_-]{0,99}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")
_IN_A_URL = re.compile(r"[A-Za-z0-9._~-]+")
_PUBLIC = {
    "npm": ("", "https://registry.npmjs.org"),
    "pypi": ("", "https://pypi.org", "https://pypi.org/simple"),
}
_UNRUNNABLE = {
    "nuget": "it is a .NET package (NuGet), and the gateway starts none",
    "mcpb": "it is an MCP bundle (.mcpb), which a desktop program unpacks",
    "cargo": "it is a Rust crate, which has to be compiled first",
    "go": "it is a Go module, which has to be compiled first",
}
_DOCKER_NOISE = ("-i", "--interactive", "--rm", "--init", "-t", "--tty", "-it", "--pull")


def ways(document: ServerDocument, values: Values | None = None, called: str | None = None) -> list[Found]:
    """Each way to run a server, in the order of its entry: packages, then remotes. Never empty.

    Args:
        values: what somebody set, by the names of the needs.
        called: what it is to be called here; none means a name that fits.

    Raises:
        ConfigurationError: what was set is not allowed.
    """
    found = [_way(document, package.kind, _of_package(package), values, called) for package in document.packages]
    found += [_way(document, "remote", _of_remote(remote), values, called) for remote in document.remotes]
    if document.status == "deleted":
        found = [_refused(each, "it was deleted from the registry") for each in found]
    return found or [_refused(_bare(document, "none", called), "its entry names neither a package nor an address")]


def best_way(
    document: ServerDocument, values: Values | None = None, kind: str | None = None, called: str | None = None
) -> Found:
    """The way with the least in its way; of equal ones the first.

    Raises:
        ConfigurationError: there is none of that kind, or what was set is not allowed.
    """
    found = [each for each in ways(document, values, called) if kind in (None, each.kind)]
    if not found:
        kinds = ", ".join(dict.fromkeys(each.kind for each in ways(document, values)))
        raise ConfigurationError(f"'{document.name}' is not offered as '{kind}', but as: {kinds}")
    order = list(State)
    return min(found, key=lambda each: (order.index(each.state), len(each.missing)))


Convert = Callable[[Filling], Keys]


def _way(document: ServerDocument, kind: str, convert: Convert, values: Values | None, called: str | None) -> Found:
    bare = _bare(document, kind, called)
    filling = Filling(bare.name, values or {})
    try:
        keys = convert(filling)
    except ConfigurationError as error:
        if not isinstance(error, _Unrunnable) and not str(error).startswith("its entry"):
            raise  # a mistake of whoever set the values
        return _refused(bare, str(error))
    if document.description:
        keys["description"] = " ".join(document.description.replace("${", "$ {").split())[:500]
    missing = tuple(filling.missing.values())
    problem = None if any(need.kind == "config" for need in missing) else _problem(bare.name, keys)
    notes = ("its publisher says that it is deprecated.",) if document.status == "deprecated" else ()
    return _with(
        bare, resource=keys, needs=tuple(filling.needs.values()), missing=missing, problem=problem, notes=notes
    )


def _bare(document: ServerDocument, kind: str, called: str | None) -> Found:
    return Found(
        name=called or fitting_name(document.name.rpartition("/")[2]),
        original=document.name,
        source=Source.REGISTRY,
        kind=kind,
        title=document.title,
        description=document.description,
        version=document.version,
        tools=document.tools,
    )


def _with(found: Found, **changes: Any) -> Found:
    return Found(**{**{name: getattr(found, name) for name in Found.__dataclass_fields__}, **changes})


def _refused(found: Found, problem: str) -> Found:
    return _with(found, problem=problem, missing=())


def _problem(name: str, keys: Keys) -> str | None:
    """What a record of ours has against it; it quotes nothing of the entry."""
    try:
        McpServerResource.model_validate({"name": name, **keys})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"its entry does not make a server: {where} {first['msg'].removeprefix('Value error, ')}".strip()
    return None


class _Unrunnable(ConfigurationError):
    """Why a package does not run here; a sentence without a full stop."""


# ------------------------------------------------------------------------------------------------------- packages


def _of_package(package: Package) -> Convert:
    return lambda filling: _package(package, filling)


def _package(package: Package, filling: Filling) -> Keys:
    if package.kind in _UNRUNNABLE:
        raise _Unrunnable(_UNRUNNABLE[package.kind])
    if package.kind == "oci":
        return _container(package, filling)
    if package.kind not in ("npm", "pypi"):
        raise _Unrunnable("it is a kind of package that the gateway does not know")
    if package.transport.kind != "stdio":
        raise _Unrunnable("it is a program that serves HTTP by itself. Start it, and add its address as a url")
    if package.base_url.rstrip("/") not in _PUBLIC[package.kind]:
        raise _Unrunnable("it lies in a package index of its own, which the gateway does not ask")
    _check_runtime(package, filling)
    command, args = _npx(package) if package.kind == "npm" else _uvx(package)
    keys: Keys = {"command": command, "args": [*args, *arguments(filling, package.arguments)]}
    environment = _environment(filling, package.environment)
    return keys | ({"env": environment} if environment else {})


def _npx(package: Package) -> tuple[str, list[str]]:
    return "npx", ["-y", _identified(package, _NPM, "npm") + (f"@{_version(package)}" if package.version else "")]


def _uvx(package: Package) -> tuple[str, list[str]]:
    identifier = _identified(package, _PYPI, "PyPI")
    if not package.version or package.version == "latest":
        return "uvx", [identifier] if "[" not in identifier else ["--from", identifier, identifier.partition("[")[0]]
    return "uvx", ["--from", f"{identifier}=={_version(package)}", identifier.partition("[")[0]]


def _identified(package: Package, shape: re.Pattern[str], index: str) -> str:
    if len(package.identifier) > 214 or not shape.fullmatch(package.identifier):
        raise _Unrunnable(f"its identifier is not the name of a package of {index}")
    return package.identifier


def _version(package: Package) -> str:
    if not _VERSION.fullmatch(package.version):
        raise _Unrunnable("its version is not one version of a package")
    return package.version


def _check_runtime(package: Package, filling: Filling) -> None:
    """Options of npx and uvx can name other packages, other indexes and whole commands. None is taken over but those
    that we give ourselves."""
    for word in arguments(filling, package.runtime_arguments):
        if word not in ("-y", "--yes", package.identifier, f"{package.identifier}@{package.version}"):
            raise _Unrunnable("its entry asks for options of npx or uvx that are not taken from strangers")


def _environment(filling: Filling, items: tuple[Input, ...]) -> dict[str, str]:
    if not all(_VARIABLE.fullmatch(item.name) for item in items):
        raise _Unrunnable("its entry has a variable whose name is none")
    texts = {item.name: filling.text(item, item.name) for item in items}
    return {name: text for name, text in texts.items() if text is not None}


# ----------------------------------------------------------------------------------------------------- containers


def _container(package: Package, filling: Filling) -> Keys:
    keys: Keys = {"docker_image": _image(package)}
    if any(item.is_named and item.name in ("--rm", "-e", "-p", "-v") for item in package.arguments):
        raise _Unrunnable("its entry gives options of 'docker run' as arguments of the server itself")
    words = arguments(filling, package.arguments)
    if {"--rm", "-i", "run"} & set(words[:3]):
        raise _Unrunnable("its entry gives options of 'docker run' as arguments of the server itself")
    environment = _environment(filling, package.environment)
    volumes: list[str] = []
    for item in package.runtime_arguments:
        _docker_option(item, filling, environment, volumes, keys)
    keys |= {key: value for key, value in (("args", words), ("env", environment), ("docker_volumes", volumes)) if value}
    return keys | _served(package.transport)


def _image(package: Package) -> str:
    image, base = (
        package.identifier,
        urlsplit(package.base_url if "//" in package.base_url else f"//{package.base_url}"),
    )
    if base.hostname not in (None, "docker.io", "index.docker.io", "registry-1.docker.io", "hub.docker.com"):
        first = image.partition("/")[0]
        image = image if "." in first or ":" in first else f"{base.netloc}/{image}"
    if "@" in image or not package.version:
        return image
    if _DIGEST.fullmatch(package.version):
        return f"{image}@{package.version}"
    if ":" in image.rpartition("/")[2]:
        return image
    if not _TAG.fullmatch(package.version):
        raise _Unrunnable("its version is not the tag of an image")
    return f"{image}:{package.version}"


def _docker_option(item: Input, filling: Filling, environment: dict[str, str], volumes: list[str], keys: Keys) -> None:
    """One option of `docker run`. What would open the container, such as --privileged, makes it not runnable."""
    if item.name in _DOCKER_NOISE or (not item.is_named and item.value in ("run", *_DOCKER_NOISE)):
        return
    if item.name not in ("-e", "--env", "-v", "--volume", "--mount", "-u", "--user"):
        raise _Unrunnable("its entry asks Docker for an option that no server gets here")
    for text in filling.texts(item, item.name.lstrip("-")):
        name, sign, value = text.partition("=")
        match item.name:
            case "-e" | "--env" if sign:
                environment.setdefault(name, value)
            case "-v" | "--volume" | "--mount":
                volume = _mounted(text) if item.name == "--mount" else _writable(text)
                volumes.append(volume if _is_given(text, filling) else _own(volume, filling))
            case "-u" | "--user":
                keys["docker_user"] = text
            case _:
                raise _Unrunnable("its entry asks Docker for a variable of the machine that it runs on")


def _own(volume: str, filling: Filling) -> str:
    """A volume that is named by the entry, and not by the person who adds it, is the server's own."""
    source, _, rest = volume.partition(":")
    if not source or _is_given(source, filling) or source.startswith(("/", "~", ".")):
        return volume
    return f"{own_volume(filling.server, source)}:{rest}"


def _is_given(text: str, filling: Filling) -> bool:
    return any(text in given for given in filling.values.values())


def _writable(text: str) -> str:
    """Docker mounts for writing unless told otherwise, and we for reading: the entry means what Docker does."""
    return text if text.endswith((":ro", ":rw")) else f"{text}:rw"


def _mounted(text: str) -> str:
    parts = dict(part.partition("=")[::2] for part in text.split(","))
    source = parts.get("src") or parts.get("source")
    target = parts.get("dst") or parts.get("target") or parts.get("destination")
    if parts.get("type", "bind") not in ("bind", "volume") or not source or not target:
        raise _Unrunnable("its entry asks Docker for a mount that is neither a folder nor a volume")
    volume = f"{source}:{target}:{'ro' if {'readonly', 'ro'} & set(parts) else 'rw'}"
    try:
        parse_volume(volume)
    except ValueError:
        raise ConfigurationError("a folder that was set for it cannot be mounted. Give a whole path") from None
    return volume


def _served(transport: Transport) -> Keys:
    """How a container over HTTP is reached; one over stdio needs nothing."""
    if transport.kind == "stdio":
        return {}
    try:
        parts = urlsplit(transport.url)
        port, path = parts.port, parts.path
    except ValueError:
        raise _Unrunnable("the port on which its container serves is not said") from None
    if transport.kind not in ("streamable-http", "sse") or not port:
        raise _Unrunnable("the port on which its container serves is not said")
    kind = "streamable_http" if transport.kind == "streamable-http" else "sse"
    return {"transport_type": kind, "docker_ports": [f"{port}/tcp"], "docker_path": path or "/"}


# -------------------------------------------------------------------------------------------------------- remotes


def _of_remote(remote: Transport) -> Convert:
    return lambda filling: _remote(remote, filling)


def _remote(remote: Transport, filling: Filling) -> Keys:
    if remote.kind not in ("streamable-http", "sse"):
        raise _Unrunnable("it is reached in a way that the gateway does not speak")
    address = Input("url", value=remote.url, is_required=True, variables=remote.variables)
    url = filling.text(address, "url", _IN_A_URL)
    headers = {item.name: filling.text(item, item.name) for item in remote.headers if item.name}
    keys: Keys = {"transport_type": "streamable_http" if remote.kind == "streamable-http" else "sse"}
    keys |= {"url": url} if url else {}
    given = {name: text for name, text in headers.items() if text is not None}
    return keys | ({"headers": given} if given else {})
