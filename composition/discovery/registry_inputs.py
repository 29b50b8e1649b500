"""The inputs of a registry entry become texts: what is fixed, what was given, defaults; and what is still to be given.

`registry_packages` comes in with an entry's inputs and with what somebody set. Nobody runs a shell on what comes out.
Still a stranger wrote the entry and perhaps somebody else the values: a text of the entry never refers to a secret, and
a value that was given never becomes an option.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from composition.clients.secret_values import has_secret_name
from composition.discovery.found import Need, NeedKind
from composition.discovery.registry_document import Input
from providers.errors import ConfigurationError

Values = Mapping[str, Sequence[str]]
"""What was set, by the name of the need; an input that may be repeated takes several."""

_TERM = re.compile(r"\{\{([^{}]{1,200})\}\}|\{([^{}\s]{1,200})\}")
_PLACEHOLDER = re.compile(
    r"<[^<>]*>|\[[^\[\]]*\]|\{[^{}]*\}|(?:https?://)?(?:your|my|path/to|/path/to|/absolute/path|absolute/path|"
    r"/users/(?:username|your|me)\b|x{3,}|change[_-]?me|insert|replace)(?:[^a-z0-9].*|[_/-].*)?|.*(?:_here|-here)",
    re.I,
)
_SECRET_NAME = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass
class Filling:
    """The filling in of one entry. `needs` is all that can be given; `missing` what has to be and is not.

    Attributes:
        server: its name with us; the names of its secrets begin with it.
        values: what was set.
    """

    server: str
    values: Values
    needs: dict[str, Need] = field(default_factory=dict)
    missing: dict[str, Need] = field(default_factory=dict)

    def text(self, item: Input, key: str, shape: re.Pattern[str] | None = None) -> str | None:
        """What an input comes to, or None where nothing is given for it."""
        return next(iter(self.texts(item, key, shape)), None)

    def texts(self, item: Input, key: str, shape: re.Pattern[str] | None = None) -> list[str]:
        """The same for one that may be repeated.

        Args:
            key: what it is called where it has no name.
            shape: what a value that was given has to look like here.

        Raises:
            ConfigurationError: what was set for it is not allowed.
        """
        fixed = item.value if item.value else None
        if fixed is not None and not _is_placeholder(fixed) and "${" not in fixed:
            filled = self._filled_in(fixed, item, shape)
            return [] if filled is None else [filled]
        return self._asked(_suggesting(item), key, shape)

    def _filled_in(self, template: str, item: Input, shape: re.Pattern[str] | None) -> str | None:
        """A template with its variables; None where one of them has no value."""
        is_whole = True

        def fill(match: re.Match[str]) -> str:
            nonlocal is_whole
            name, *filters = (match[1] or match[2]).split("|")  # Docker's own entries have filters there
            variable = item.variables.get(match[2] or "") or item.variables.get(name)
            if variable is None and match[1]:
                raise ConfigurationError("its entry has a template without its variable")
            if variable is None:
                return match[0]
            is_needed = variable.is_required or item.is_required
            found = self.texts(replace(variable, name=name, is_required=is_needed), name, shape)
            is_whole = is_whole and bool(found)
            return ":".join(found[:1] * (2 if "volume" in filters else 1))

        filled = _TERM.sub(fill, template)
        return filled if is_whole else None

    def _asked(self, item: Input, key: str, shape: re.Pattern[str] | None) -> list[str]:
        name = item.name.lstrip("-") or key
        is_secret = item.is_secret or has_secret_name(name)
        if is_secret:
            return self._secret(item, name)
        default = item.default if item.default and "${" not in item.default else None
        need = Need(
            name,
            NeedKind.CONFIG,
            item.description,
            item.format,
            item.is_required,
            default,
            item.placeholder or None,
            item.name or None,
            item.choices,
        )
        self.needs[name] = need
        given = list(self.values.get(name, ()))
        for value in given:
            _check_given(need, value, shape)
        if len(given) > 1 and not item.is_repeated:
            raise ConfigurationError(f"'{name}' takes one value, and has {len(given)}")
        if given or default is not None:
            return given or [str(default)]
        if item.is_required:
            self.missing[name] = need
        return []

    def _secret(self, item: Input, name: str) -> list[str]:
        """A reference to the secret: always to one that has to be there, to another if it was set to anything."""
        secret = _SECRET_NAME.sub("-", name if name.startswith(f"{self.server}.") else f"{self.server}.{name}")
        is_wanted = item.is_required or name in self.values
        need = Need(
            secret, NeedKind.SECRET, item.description, item.format, is_wanted, None, item.placeholder or None, name
        )
        self.needs[secret] = need
        for value in self.values.get(name, ()):
            if value != f"${{secret:{secret}}}":
                raise ConfigurationError(
                    f"'{name}' is a secret, which is not given on a command line. Set {name}='${{secret:{secret}}}' "
                    f"to use it, and give the value with: server.py secret set {secret}"
                )
        if not is_wanted:
            return []
        self.missing[secret] = need
        return [f"${{secret:{secret}}}"]


def _suggesting(item: Input) -> Input:
    """What stands there as a value and is none, such as `<YOUR_KEY>`, is an example of one."""
    shown = [text for text in (item.value, item.default) if text and (_is_placeholder(text) or "${" in text)]
    if not shown:
        return item
    default = None if item.default in shown else item.default
    return replace(item, default=default, placeholder=item.placeholder or shown[0], is_required=True)


def _is_placeholder(text: str) -> bool:
    return len(text) <= 200 and not _TERM.search(text) and bool(_PLACEHOLDER.fullmatch(text))


def _check_given(need: Need, value: str, shape: re.Pattern[str] | None) -> None:
    if "\0" in value or "\n" in value or "\r" in value:
        raise ConfigurationError(f"'{need.name}' may not hold a line break or a NUL")
    if value.startswith("-"):
        raise ConfigurationError(f"'{need.name}' may not begin with '-': the server would take it for an option")
    if "${" in value:
        raise ConfigurationError(f"'{need.name}' may not hold '${{': only a secret's own input refers to a secret")
    if need.choices and value not in need.choices:
        raise ConfigurationError(f"'{need.name}' must be one of {', '.join(need.choices)}")
    if need.type == "number" and not re.fullmatch(r"[+]?[0-9]+(?:\.[0-9]+)?", value):
        raise ConfigurationError(f"'{need.name}' must be a number")
    if need.type == "boolean" and value not in ("true", "false"):
        raise ConfigurationError(f"'{need.name}' must be true or false")
    if shape and not shape.fullmatch(value):
        raise ConfigurationError(f"'{need.name}' has a sign in it that may not stand there")


def arguments(filling: Filling, items: Sequence[Input]) -> list[str]:
    """The words of a command line. Each stays one word: nobody splits it again.

    Raises:
        ConfigurationError: what was set is not allowed, or the entry names an option that is none.
    """
    words: list[str] = []
    for place, item in enumerate(items, 1):
        if item.is_named:
            words += _named(filling, item)
        else:
            words += filling.texts(item, _key(item.hint) or f"argument{place}")
    if any("${secret:" in word for word in words):
        raise ConfigurationError("its entry wants a secret on a command line, which others on the machine can read")
    return words


def _named(filling: Filling, item: Input) -> list[str]:
    if not re.fullmatch(r"--?[A-Za-z0-9?][A-Za-z0-9_.:-]*", item.name):
        raise ConfigurationError("its entry has a named argument whose name is no option")
    if _is_bare(item):
        return [item.name]
    texts = filling.texts(item, item.name.lstrip("-"))
    if item.format == "boolean" and not item.value:
        return [item.name] if texts[:1] == ["true"] else []
    if item.name.startswith("--"):
        return [f"{item.name}={text}" for text in texts]
    return [word for text in texts for word in (item.name, text)]


def _is_bare(item: Input) -> bool:
    """An option without a value, and without a word about one."""
    if item.value == "" and not item.default:
        return True
    asks = item.is_required or item.description or item.choices or item.placeholder or item.hint
    return item.value is None and item.default is None and not asks and item.format == "string"


def _key(hint: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", hint).strip("_.-")[:60]
