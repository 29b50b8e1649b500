"""A gateway that runs, as a command names it: `--gateway` and `--token-file`, or APOLLOS_GATEWAY and APOLLOS_TOKEN.

`registering`, `remote_records` and `tools_command` come in, also for what to tell a person whom it does not let in;
nobody is called.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from providers.errors import CallerError, ConfigurationError

_MAX_TOKEN = 64 * 1024


class NamedGateway(NamedTuple):
    """Where it is, and who asks; the token is None where the gateway authenticates nobody."""

    address: str
    token: str | None

    def __repr__(self) -> str:
        return f"<NamedGateway {self.address}>"


def add_gateway_options(command: argparse.ArgumentParser, otherwise: str) -> None:
    """Have a command take the options that name a gateway.

    Args:
        otherwise: what it works on without one.
    """
    about = f"a running gateway (default: APOLLOS_GATEWAY, else {otherwise})"
    command.add_argument("--gateway", metavar="URL", help=about)
    command.add_argument("--token-file", metavar="FILE", help="holds the token for it (default: APOLLOS_TOKEN)")


def gateway_named(options: Any) -> NamedGateway | None:
    """The gateway that was named, if one was.

    Raises:
        ConfigurationError: its address or the token is none.
    """
    named = os.environ.get("APOLLOS_GATEWAY", "") if options.gateway is None else options.gateway
    return NamedGateway(address_of(named), _token_in(options.token_file)) if named else None


def refused(gateway: NamedGateway, status: int) -> CallerError | None:
    """Why a gateway lets nobody in, and what to do, by the status of its answer; None where that is another matter."""
    where = "APOLLOS_TOKEN, or into a file and name that with --token-file"
    match status:
        case 401 if gateway.token is None:
            what = f"wants a token. Put yours into {where}"
        case 401:
            what = f"does not take this token: it is wrong, has ended or was revoked. Put another one into {where}"
        case 403:
            what = "does not let this token in (403). Ask its operator for one that may, or for what this one lacks"
        case 421:
            what = "does not answer under this name (421). Use the address in its 'public_url'"
        case _:
            return None
    return CallerError(f"the gateway at {gateway.address} {what}")


def unreached(gateway: NamedGateway, reason: object) -> CallerError:
    """For a gateway from which no answer came."""
    return CallerError(f"the gateway at {gateway.address} cannot be reached ({reason}). Does it run?")


def address_of(text: str) -> str:
    """A gateway's address, however it was written: with or without the `/mcp` that clients use.

    Raises:
        ConfigurationError: it is none, or holds a user or a query, which every list of processes would show.
    """
    address = text.rstrip("/").removesuffix("/mcp")
    try:
        parts = urlsplit(address)
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole or parts.username is not None or parts.query or parts.fragment:
        raise ConfigurationError(
            "--gateway (or APOLLOS_GATEWAY) must be an address such as http://127.0.0.1:8808, without user and query"
        )
    return address


def _token_in(file: str | None) -> str | None:
    """From the file, else from the environment; never from the command line, which every list of processes shows."""
    where, text = "APOLLOS_TOKEN", os.environ.get("APOLLOS_TOKEN") or None
    if file is not None:
        where = f"--token-file {file}"
        try:
            with Path(file).expanduser().open("rb") as opened:
                text = opened.read(_MAX_TOKEN).decode().strip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise ConfigurationError(f"{where}: cannot be read ({reason})") from None
    if text is None:
        return None
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigurationError(f"{where}: does not hold a token: one word, without spaces")
    return text
