"""From an entry of a catalog, and what a person gave for it, to a resource of ours.

The sources of catalogs come in; the forms and the templates are asked. Nothing is guessed: what is missing is named,
and what our containers do not do is said. An entry is a stranger's: it names no secret but its own, and what it asks of
this machine (folders, users, networks) is checked here as a resource, and again where a container is made.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from composition.discovery.catalog import Entry
from composition.discovery.catalog_form import Answers
from composition.discovery.found import Found, Need, NeedKind, Source, own_volume
from composition.tables import check
from providers.container_keys import INTERNET, NONE
from providers.resource import Isolation, McpServerResource, TransportType
from providers.templates import (
    TemplateError,
    Unset,
    Value,
    as_items,
    as_text,
    has_terms,
    paths_in,
    rendered,
    variables_in,
)

_TRANSPORTS = {
    "sse": TransportType.SSE,
    "http": TransportType.STREAMABLE_HTTP,
    "streamable": TransportType.STREAMABLE_HTTP,
    "streaming": TransportType.STREAMABLE_HTTP,
    "streamable-http": TransportType.STREAMABLE_HTTP,
}
_REFERENCE = re.compile(r"\$\{secret:([^}]*)\}?")
_ENGINES = ("/var/run/docker.sock", "/run/docker.sock")
_ON_THE_ENGINE = "it wants the socket of the Docker engine, with which a container would be master of this machine"
_ON_COMMAND_LINE = "it wants a secret on the command line of its container, where others can read it"
_EXTRA_HOSTS = "it wants names of other machines (extraHosts), which containers here do not get"


@dataclass(frozen=True)
class Given:
    """What a person gave for an entry.

    Attributes:
        values: by key, as in `--set key=value`; texts are read as the entry's form wants them.
        secrets: the names of secrets that have a value, and of optional ones that are wanted.
        without: the names of secrets that this server is to run without; an entry cannot say "one of these".
        is_writable: whether the folders of this machine that it is given may be written to.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    secrets: Collection[str] = ()
    without: Collection[str] = ()
    is_writable: bool = False


NOTHING = Given()


def converted(original: str, entry: Entry, name: str, given: Given = NOTHING) -> Found:
    """What an entry becomes.

    Args:
        original: its name in the catalog, by which its templates call its values.
        name: what it is to be called with us.

    Raises:
        ConfigurationError: a value was given that the entry does not ask for, or one of a wrong type.
    """
    conversion = _Conversion(original, entry, name, given)
    kind = {"server": "container", "poci": "containers per call"}.get(entry.kind, entry.kind)
    shown = Found(
        name,
        original,
        Source.CATALOG,
        kind,
        entry.title or original,
        entry.description,
        tools=tuple(tool.name for tool in entry.tools if tool.name),
    )
    problem = conversion.run()
    needs, missing = conversion.needs()
    resource = {} if problem else conversion.resource
    return replace(
        shown,
        resource=resource,
        needs=needs,
        missing=missing,
        problem=problem,
        notes=tuple(dict.fromkeys(conversion.notes)),
    )


class _Conversion:
    """One entry on its way. Each step adds keys to the resource, and names what it lacks."""

    def __init__(self, original: str, entry: Entry, name: str, given: Given) -> None:
        self._original, self._entry, self._name, self._given = original, entry, name, given
        callings = {original, original.replace(".", "_"), *(form.name for form in entry.config if form.name)}
        self._prefixes = sorted((f"{each}." for each in callings), key=len, reverse=True)  # the longest one is meant
        texts = [*(each.value for each in entry.env), *entry.command, *entry.volumes, entry.user, *self._remote_texts()]
        self._answers = Answers(
            entry.config, given.values, [self._key(path) for text in texts for path in paths_in(text)]
        )
        self._unset: list[str] = []
        self._secrets: dict[str, Need] = {}
        self._variables: dict[str, str] = {}
        self.resource: dict[str, Any] = {}
        self.notes: list[str] = []
        self._read_secrets()

    def run(self) -> str | None:
        """Fill in `resource`; why it cannot run here, as a sentence, or None."""
        try:
            match self._entry.kind:
                case "server":
                    problem = self._container()
                case "remote":
                    problem = self._elsewhere()
                case "poci":
                    problem = self._programs()
                case _:
                    return "its entry is of a type that is not known here"
        except TemplateError as error:
            return f"its entry {error}"
        return problem or self._foreign_secret() or self._refusal()

    def needs(self) -> tuple[tuple[Need, ...], tuple[Need, ...]]:
        """All that may be given, and that of it which is missing."""
        lacking = dict.fromkeys(self._unset)
        fields = [each.need() for each in self._answers.fields.values()]
        fields = [replace(each, is_required=each.is_required or each.name in lacking) for each in fields]
        missing = [each for each in fields if each.is_required and self._answers.lookup(each.name) is None]
        one_of = [Need(words, description="one of these") for words in self._answers.unmet()]
        secrets = [each for each in self._secrets.values() if each.is_required and each.name not in self._given.secrets]
        return (*self._secrets.values(), *fields), (*secrets, *missing, *one_of)

    # --------------------------------------------------------------------------------------------------- secrets

    def _read_secrets(self) -> None:
        """The entry's own secrets, each as a reference: under our server's name, so that no entry reaches another's."""
        for secret in self._entry.secrets:
            name = self._own_name(secret.name)
            is_required = secret.required is not False and bool(secret.env) and name not in self._given.without
            if secret.env and (is_required or name in self._given.secrets):
                self._variables[secret.env] = f"${{secret:{name}}}"
            self._secrets[name] = Need(
                name,
                NeedKind.SECRET,
                secret.description,
                is_required=is_required,
                example=secret.example or None,
                variable=secret.env or None,
            )
        self._filled_by_secrets = dict(self._variables)
        known = {*self._variables, *(variable.name for variable in self._entry.env)}
        known |= {secret.env for secret in self._entry.secrets}
        for variable in self._asked_for():
            if variable not in known:  # it is told nowhere, and will not be had from this machine's environment
                name = self._own_name(variable.lower())
                self._variables[variable] = f"${{secret:{name}}}"
                self._secrets[name] = Need(name, NeedKind.SECRET, variable=variable)

    def _own_name(self, declared: str) -> str:
        key = declared.removeprefix(f"{self._original}.")
        return re.sub(r"[^A-Za-z0-9_.-]", "_", f"{self._name}.{key}")[:128]

    def _asked_for(self) -> list[str]:
        constants = [each.value for each in self._entry.env if not has_terms(each.value)]
        return [
            name for text in (*constants, *self._entry.command, *self._remote_texts()) for name in variables_in(text)
        ]

    def _foreign_secret(self) -> str | None:
        for text in _texts(self.resource):
            for reference in _REFERENCE.finditer(text):
                if not reference[1].startswith(f"{self._name}."):
                    return "it asks for a secret that is not its own"
        return None

    # ---------------------------------------------------------------------------------------------------- values

    def _key(self, path: str) -> str:
        prefix = next((each for each in self._prefixes if path.startswith(each)), "")
        return path.removeprefix(prefix)

    def _lookup(self, path: str) -> Value | None:
        return self._answers.lookup(self._key(path))

    def _value(self, text: str, variables: Mapping[str, str] | None = None, *, needed: bool = False) -> Value | None:
        """A text of the entry with its values; None, and named where it is `needed`, while some are not given."""
        value = rendered(text, self._lookup, variables)
        if isinstance(value, Unset):
            self._unset += [self._key(path) for path in value.paths] if needed else []
            return None
        return value

    # ------------------------------------------------------------------------------------------------- containers

    def _container(self) -> str | None:
        entry = self._entry
        if not entry.image:
            return "its entry names no image"
        if entry.extra_hosts:
            return _EXTRA_HOSTS
        self._put("docker_image", entry.image)
        self._put("args", self._command())
        self._put("isolation", str(Isolation.SESSION if entry.long_lived else Isolation.CALL))
        self._house()
        return _ON_COMMAND_LINE if any(_REFERENCE.search(text) for text in self.resource.get("args", [])) else None

    def _house(self) -> None:
        """What a container has around it, be it a server's or a program's."""
        entry = self._entry
        self._put("env", self._environment())
        self._put("docker_volumes", [each for text in entry.volumes for each in self._volumes(text)])
        self._put("docker_user", as_text(self._value(entry.user) or ""))
        self._put("docker_network", NONE if entry.disable_network else INTERNET)
        if entry.allow_hosts and not entry.disable_network:
            hosts = ", ".join(entry.allow_hosts)
            self.notes.append(f"It asks to reach only {hosts}. The gateway cannot hold it to that.")

    def _programs(self) -> str | None:
        """Tools that are programs, each in an image of its own: what stands in `{{…}}` are arguments of a call."""
        programs = [(tool.name, tool, tool.container) for tool in self._entry.tools]
        if not programs:
            return "its entry names no tools"
        image, tools = "", dict[str, dict[str, Any]]()
        for name, tool, container in programs:
            if container is None or not container.image:
                return f"its entry names no image for the tool '{name}'"
            if any(volume.partition(":")[0] in _ENGINES for volume in container.volumes):
                return _ON_THE_ENGINE
            image = image or container.image
            program = {
                "description": tool.description,
                "parameters": tool.parameters,
                "image": container.image if container.image != image else "",
                "args": container.command,
                "volumes": [self._program_volume(text) for text in container.volumes],
                "user": container.user,
            }
            tools[name] = {key: value for key, value in program.items() if value not in ("", [], None)}
        self._put("docker_image", image)
        self._put("docker_tools", tools)
        self._house()
        return None

    def _environment(self) -> dict[str, str]:
        env = dict(self._filled_by_secrets)
        for variable in self._entry.env:
            value = self._value(variable.value, None if has_terms(variable.value) else {**self._variables, **env})
            if value is not None and value not in ("", [], {}):
                env[variable.name] = as_text(value)
        return env

    def _command(self) -> list[str]:
        """The arguments. One that is not given is left out with its own option (`--level={{…}}`); where the option
        stands before it as an argument of its own, it has to be given."""
        arguments: list[str] = []
        option = ""
        for text in self._entry.command:
            value = self._value(text, self._variables, needed=option.startswith("-") and "=" not in option)
            arguments += as_items(value) if value is not None else []
            option = text
        return arguments

    def _volumes(self, text: str) -> list[str]:
        """A volume of the entry, as we write it. Where a folder is mounted at a place that the entry names, the server
        was written with it, so that it has to be given."""
        value = self._value(text, needed=re.search(r"\}\}\s*:", text) is not None)
        return [self._volume(item) for item in as_items(value)] if value is not None else []

    def _program_volume(self, text: str) -> str:
        """A volume of a program. Where a call says which folder, that is filled in then."""
        if not text.startswith("{{"):
            return self._volume(text)
        self.notes.append("Its calls name folders of this machine. They have to lie below docker_allowed_paths.")
        has_mode = text.rstrip("}").endswith((":ro", ":rw"))
        return f"{text}:rw" if self._given.is_writable and not has_mode else text

    def _volume(self, text: str) -> str:
        """One volume. What is named by the entry, and not by the person who adds it, is the server's own."""
        source, _, rest = text.partition(":")
        _, has_mode, _ = rest.partition(":")
        is_given = not {source, text}.isdisjoint(self._answers.texts)
        if source.startswith(("/", "~", ".")):
            self.notes += [] if is_given else [f"It asks for '{source}' of this machine."]
            return f"{text}:rw" if self._given.is_writable and not has_mode else text
        volume = source if is_given or not source else own_volume(self._name, source)
        self.notes.append(f"It keeps data in the Docker volume '{volume}'.")
        return f"{volume}:{rest}" if has_mode else f"{volume}:{rest}:rw"

    # --------------------------------------------------------------------------------------------------- elsewhere

    def _remote_texts(self) -> list[str]:
        remote = self._entry.remote
        return [remote.url, *(remote.headers or {}).values()] if remote else []

    def _elsewhere(self) -> str | None:
        remote, old = self._entry.remote, self._entry.sse_endpoint
        if not (remote and remote.url) and not old:
            return "its entry names no address"
        text, headers = (remote.url, remote.headers or {}) if remote and remote.url else (old, {})
        transport = _TRANSPORTS.get(remote.transport_type.lower() if remote and remote.url else "sse")
        if transport is None:
            return "it speaks a transport that is not known here"
        fill = partial(self._value, variables=self._variables, needed=True)
        url = fill(text)
        filled = {name: as_text(value) for name, header in headers.items() if (value := fill(header)) is not None}
        self._put("url", as_text(url or ""))
        self._put("transport_type", str(transport))
        self._put("headers", filled | self._login(filled))
        self._needs_what_it_names()
        return _address_problem(as_text(url)) if url else None

    def _login(self, headers: Mapping[str, str]) -> dict[str, str]:
        """The header with the token of a server that one logs in to."""
        if not self._entry.oauth or "authorization" in {name.lower() for name in headers}:
            return {}
        provider = next(iter(self._entry.oauth.providers), None)
        name = self._own_name(provider.secret if provider and provider.secret else "access_token")
        about = f"an access token of {provider.provider if provider else self._original}"
        text = f"{about}: the gateway does not log in for you (OAuth)"
        self._secrets[name] = Need(name, NeedKind.SECRET, text)
        return {"Authorization": f"Bearer ${{secret:{name}}}"}

    def _needs_what_it_names(self) -> None:
        """A server elsewhere gets a secret only in its address or in a header."""
        named = {match[1] for text in _texts(self.resource) for match in _REFERENCE.finditer(text)}
        for name, secret in self._secrets.items():
            self._secrets[name] = replace(secret, is_required=secret.is_required and name in named)

    # ------------------------------------------------------------------------------------------------------ result

    def _put(self, key: str, value: Any) -> None:
        if value not in ("", [], {}):
            self.resource[key] = value

    def _refusal(self) -> str | None:
        """Why our resources cannot be so."""
        self._put("description", self._entry.description)
        if not ({"docker_image", "url"} & self.resource.keys()):
            return None  # its address is yet to be given
        table = {"name": self._name, **self.resource}
        _, problems = check(McpServerResource, table, table)
        told = [f"'{'.'.join(map(str, problem.key or ()))}' {problem.text}" for problem in problems]
        return f"it cannot be a server here: {'; '.join(told)}" if told else None


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner)]
    return [value] if isinstance(value, str) else []


def _address_problem(url: str) -> str | None:
    """A stranger's entry leads to a server on the web, never to one in the operator's own network."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        is_web = parts.scheme == "https" and not parts.username and "." in host
    except ValueError:
        return "its address cannot be used"
    try:
        is_web = is_web and ip_address(host).is_global
    except ValueError:  # a name, as it should be
        is_web = is_web and not host.lower().rstrip(".").endswith((".localhost", ".local", ".internal"))
    return None if is_web else "its address is not one of the web that begins with https://"
