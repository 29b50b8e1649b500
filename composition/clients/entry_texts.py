"""The texts of a client's entry as servers.toml takes them: variables in our spelling, secrets as references.

`reading` comes in, with one `Texts` for each entry; `secret_values` says what is a secret. A message here names keys
and never what stands there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from composition.clients.kinds import Client, Variables
from composition.clients.secret_values import has_secret_name, is_secret, looks_secret
from providers.errors import ConfigurationError

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_VARIABLES = {
    Variables.NONE: None,
    Variables.BRACED: re.compile(rf"\$\{{(?P<name>{_NAME})(?::-(?P<default>[^}}$]*))?\}}"),
    Variables.ENV: re.compile(rf"\$\{{env:(?P<name>{_NAME})\}}"),
    Variables.DOLLAR: re.compile(rf"\$(?:\{{(?P<name>{_NAME})\}}|(?P<bare>{_NAME}))"),
}
_OF_EDITORS = re.compile(r"\$\{(?P<word>input:[^{}]+|userHome|workspaceFolder|pathSeparator|/)\}")
_SIGN = re.compile(r"\$(?=[A-Za-z_{$])")
_SIGN_BEFORE_MORE = re.compile(r"\$(?=[A-Za-z_{$]|\Z)")
"""The same in a text that one of our variables follows."""
_SECRET_NAME = re.compile(r"[^A-Za-z0-9_.-]+")
_SCHEME = re.compile(r"(?P<scheme>(?:Authorization: *)?(?:Bearer|Basic|Token) +)?(?P<rest>.*)", re.I | re.S)
_PARAMETER = re.compile(r"[?&](?P<name>[^=&#]+)=(?P<value>[^&#]+)")
_FOR_THE_SERVER = re.compile(rf"\$(?:{_NAME}|\{{{_NAME}\}})")
"""A variable that this client does not fill in: the server does so itself."""

_LONGEST = 100_000


class Texts:
    """The texts of one entry. `secrets` are those that were taken out of it, by their new names; `wanted` the names of
    those that it asks its user for."""

    def __init__(self, client: Client, path: Path, server: str, inputs: Sequence[Any]) -> None:
        self.secrets: dict[str, str] = {}
        self.wanted: list[str] = []
        self._client, self._path, self._server = client, path, server
        self._inputs = {
            each["id"]: each for each in inputs if isinstance(each, dict) and isinstance(each.get("id"), str)
        }

    def plain(self, key: str, value: Any) -> str:
        """A text that holds no secret of its own; variables in it may."""
        return self._spelt(_text(key, value))

    def table(self, key: str, value: Any) -> dict[str, str]:
        """Variables of a process, or headers: names with texts."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise ConfigurationError(f"key '{key}' must be an object with a text under each name")
        return {name: self._named(f"{key}.{name[:40]}", name, each) for name, each in value.items() if each is not None}

    def arguments(self, args: Sequence[Any]) -> list[str]:
        """Words of a command line, before any other text of the entry. A secret stands behind an option with a telling
        name, or looks like one.

        Raises:
            ConfigurationError: there is one. Everybody on the machine can read the words of a process.
        """
        words: list[str] = []
        option = ""
        for place, each in enumerate(args, 1):
            text = _text(f"args, item {place}", each)
            name, sign, value = text.partition("=")
            if text.startswith("-") and sign:
                words.append(f"{self._spelt(name)}={self._kept_apart(name.lstrip('-'), value)}")
            elif text.startswith("-"):
                words.append(self._spelt(text))
            elif has_secret_name(option):
                words.append(self._kept_apart(option, text))
            elif option.lower() in ("header", "h") and ":" in text:
                header, _, value = text.partition(":")
                blank = value[: len(value) - len(value.lstrip())]
                words.append(f"{self._spelt(header)}:{blank}{self._kept_apart(header, value.lstrip())}")
            elif option.lower() in ("e", "env") and sign:
                words.append(f"{self._spelt(name)}={self._kept_apart(name, value)}")
            elif re.match(r"https?://", text):
                words.append(self.url(text))
            else:
                words.append(self._kept_apart(option or f"argument{place}", text, by_name=False))
            option = text.lstrip("-") if text.startswith("-") and not sign else ""
            if self.secrets or self.wanted:
                raise ConfigurationError(
                    f"has a secret in its arguments (item {place}), which others on this machine can read. "
                    "Most servers take it from a variable too: put it into 'env'"
                )
        return words

    def url(self, value: Any) -> str:
        """An address; a password in it and parameters with telling names are secrets."""
        text = _text("url", value)
        try:
            password = urlsplit(text).password
        except ValueError:
            raise ConfigurationError("has an address that is none") from None
        before, password_and_sign, after = text.partition(f":{password}@") if password else (text, "", "")
        if password and password_and_sign and not self._has_variable(password):
            return f"{self._spelt(before)}:{self._keep('url-password', password)}@{self._with_query(after)}"
        return self._with_query(text)

    def _with_query(self, text: str) -> str:
        base, mark, query = text.partition("?")
        pieces, position = [self._spelt(base)], 0
        for match in _PARAMETER.finditer(mark + query):
            pieces += [self._spelt((mark + query)[position : match.start("value")])]
            pieces += [self._kept_apart(match["name"], match["value"])]
            position = match.end()
        return "".join([*pieces, self._spelt((mark + query)[position:])])

    # ------------------------------------------------------------------------------------------------------ secrets

    def _named(self, key: str, name: str, value: Any) -> str:
        return self._kept_apart(name, _text(key, value))

    def _kept_apart(self, name: str, text: str, *, by_name: bool = True) -> str:
        """A text, or the reference to the secret that it was. What only refers to a variable is no secret."""
        found = _SCHEME.fullmatch(text)
        scheme, rest = (found["scheme"] or "", found["rest"]) if found else ("", text)
        refers = self._has_variable(rest) or _FOR_THE_SERVER.fullmatch(rest)
        is_one = bool(rest) and not refers and (is_secret(name, rest) if by_name else looks_secret(rest))
        return self._spelt(scheme) + self._keep(name, rest) if is_one else self._spelt(text)

    def _has_variable(self, text: str) -> bool:
        pattern = _VARIABLES[self._client.variables]
        return bool((pattern and pattern.search(text)) or (self._is_editor and _OF_EDITORS.search(text)))

    def _keep(self, name: str, value: str) -> str:
        secret = self._secret_name(name)
        number = 2
        while secret in self.secrets and self.secrets[secret] != value:
            secret, number = self._secret_name(f"{name}-{number}"), number + 1
        self.secrets[secret] = value
        return f"${{secret:{secret}}}"

    def _secret_name(self, name: str) -> str:
        return f"{self._server}.{_SECRET_NAME.sub('-', name)[:60].strip('-.') or 'value'}"

    # ---------------------------------------------------------------------------------------------------- variables

    @property
    def _is_editor(self) -> bool:
        return self._client.variables is Variables.ENV

    def _spelt(self, text: str) -> str:
        """The text with its variables as we write them, and each other '$' doubled where ours would begin."""
        pattern = _VARIABLES[self._client.variables]
        both = "|".join(each.pattern for each in (pattern, _OF_EDITORS if self._is_editor else None) if each)
        if not both:
            return _SIGN.sub("$$", text)
        pieces, position = [], 0
        for match in re.finditer(both, text):
            pieces += [_SIGN_BEFORE_MORE.sub("$$", text[position : match.start()]), self._ours(match.groupdict())]
            position = match.end()
        return "".join([*pieces, _SIGN.sub("$$", text[position:])])

    def _ours(self, found: Mapping[str, str | None]) -> str:
        if word := found.get("word"):
            return self._of_editor(word)
        default = found.get("default")
        ending = f":-{default}" if default is not None else ""
        return f"${{{found.get('name') or found.get('bare')}{ending}}}"

    def _of_editor(self, word: str) -> str:
        match word.partition(":"):
            case ("input", _, name):
                return self._asked(name)
            case ("userHome", _, _):
                return str(Path.home())
            case ("workspaceFolder", _, _) if self._path.parent.name in (".vscode", ".cursor"):
                return str(self._path.absolute().parent.parent)
            case ("workspaceFolder", _, _):
                raise ConfigurationError("needs the folder of a workspace, which the gateway has not. Write the path")
        return "/"

    def _asked(self, name: str) -> str:
        """What VS Code asks its user for: a default, or a secret that has to be set."""
        asks = self._inputs.get(name, {})
        default = asks.get("default")
        if isinstance(default, str) and default and asks.get("password") is not True:
            return _SIGN.sub("$$", default)
        secret = self._secret_name(name)
        if secret not in self.wanted:
            self.wanted.append(secret)
        return f"${{secret:{secret}}}"


def _text(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise ConfigurationError(f"key '{key}' must be a text")
    if any("\ud800" <= sign <= "\udfff" or sign == "\0" for sign in value):
        raise ConfigurationError(f"key '{key}' holds a sign that is none")
    return value
