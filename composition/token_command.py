"""The commands for static tokens: `token add`, `token list` and `token revoke`. They work beside a running gateway,
which reads the file again with the next request.

The command line comes in. `providers.tokens` has the file; where it is stands in `[gateway.auth]` of servers.toml. The
token itself goes to stdout, once; all that is said to a person goes to stderr.
"""

from __future__ import annotations

import argparse
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from composition.columns import in_columns
from composition.servers_file import load_configuration
from composition.starting import FAILED, OK, servers_path
from providers.errors import ConfigurationError
from providers.tokens import StaticToken, TokenFile

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LONGEST = timedelta(days=36500)
_HEADER = ("ID", "USER", "NAME", "ROLES", "CREATED", "EXPIRES")


def register(commands: Any) -> None:
    """Add these commands to the command line."""
    group = commands.add_parser("token", help="make, list and revoke the tokens of a small team")
    actions = group.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="make a token and print it, once")
    add.add_argument("user", metavar="USER", help="the user's id, which is the same in each token of this user")
    add.add_argument("--name", help="the user's name (default: the id)")
    add.add_argument("--role", action="append", default=[], dest="roles", metavar="R", help="a role; may be repeated")
    add.add_argument(
        "--expires", type=_lifetime, metavar="90d", help="until it expires, in m, h, d or w (default: never)"
    )
    add.set_defaults(run=_add)
    actions.add_parser("list", help="print a table of the tokens").set_defaults(run=_list)
    revoke = actions.add_parser("revoke", help="end a token at once")
    revoke.add_argument("id", metavar="ID", help="the token's id, which 'token list' shows")
    revoke.set_defaults(run=_revoke)


def _lifetime(text: str) -> timedelta:
    match = re.fullmatch(r"([1-9][0-9]{0,6})([mhdw])", text)
    lifetime = timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else timedelta()
    if not timedelta() < lifetime <= _LONGEST:
        raise argparse.ArgumentTypeError(f"'{text}' is no time; write for example 12h, 90d or 52w")
    return lifetime


def _file() -> TokenFile:
    path = servers_path()
    tokens = load_configuration(path).settings.auth.tokens
    if tokens is None:
        raise ConfigurationError(
            f'{path}: names no file of tokens. Write [gateway.auth] and under it tokens = "tokens.json"'
        )
    return TokenFile(Path(tokens))


def _add(options: argparse.Namespace) -> int:
    file = _file()
    token, made = file.add(options.user, options.name or options.user, options.roles, options.expires)
    roles = f"the roles {', '.join(made.roles)}" if made.roles else "no roles"
    sys.stderr.write(f"Token {made.id} of user '{made.user}' with {roles}, {_until(made)}. It is shown this once:\n")
    sys.stdout.write(f"{token}\n")
    return OK


def _until(token: StaticToken) -> str:
    return f"until {_day(token.expires_at)}" if token.expires_at else "without an end"


def _day(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _list(options: argparse.Namespace) -> int:
    file = _file()
    rows = [_HEADER, *map(_row, file.read() if file.path.exists() else [])]
    sys.stdout.write("\n".join(in_columns(rows)) + "\n")
    return OK


def _row(token: StaticToken) -> tuple[str, ...]:
    expires = "never" if token.expires_at is None else _day(token.expires_at)
    ended = " (expired)" if token.has_expired else ""
    name = "".join(sign if sign.isprintable() else "?" for sign in token.name)
    return token.id, token.user, name, ",".join(token.roles), _day(token.created_at), expires + ended


def _revoke(options: argparse.Namespace) -> int:
    revoked = _file().revoke(options.id)
    if revoked is None:
        sys.stderr.write(f"There is no token '{options.id}'. 'server.py token list' shows those there are.\n")
        return FAILED
    sys.stderr.write(
        f"Token {revoked.id} of user '{revoked.user}' is revoked; what it has open ends within a second.\n"
    )
    return OK
