"""The command line: without a command the gateway speaks MCP over stdio; the commands are for people.

Each group of commands is a module that adds its parsers with `register`, and sets in each what is to run. A wrong
configuration ends with exit code 2 and everything that is wrong with it.
"""

from __future__ import annotations

import argparse
import os
import sys

from composition import containers, registering, secret_command, serving, token_command, tools_command
from composition.clients import client_commands
from composition.discovery import catalog_commands, registry_commands
from composition.gateway import VERSION
from composition.logs import log_to_stderr
from composition.starting import FAILED, MISCONFIGURED, UNREAD
from providers.container_log import harmless
from providers.errors import ConfigurationError, GatewayError

GROUPS = (
    serving,
    client_commands,
    registering,
    catalog_commands,
    registry_commands,
    tools_command,
    secret_command,
    token_command,
    containers,
)
"""In the order in which `--help` shows them: that in which somebody new needs them."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="server.py",
        description="The Apollos MCP Gateway: many MCP servers behind one. "
        "Without a command it speaks MCP over stdio, which is what an MCP host starts.",
        epilog="APOLLOS_SERVERS names another servers.toml.",
    )
    parser.add_argument("--log-level", default="warning", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--version", action="version", version=f"Apollos MCP Gateway {VERSION}")
    parser.set_defaults(run=lambda options: serving.speak_stdio(), says=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for group in GROUPS:
        group.register(commands)
    return parser


def parse(arguments: list[str]) -> argparse.Namespace:
    """What was asked for. What follows `--` is for the server that a command is about: argparse would read options
    of ours in it."""
    parser = build_parser()
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options, unknown = parser.parse_known_args(arguments[:end])
    if unknown:
        hint = ". Are they the server's own? Put -- before them" if hasattr(options, "after") else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if arguments[end + 1 :]:
        if not hasattr(options, "after"):
            parser.error("only 'add' takes arguments after --")
        options.after = tuple(arguments[end + 1 :])
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit code. Whoever reads what it prints may go before the end, as `head` does: then it ends
    without a word, too."""
    try:
        try:
            code = _run_command(arguments)
        finally:  # of `--help` too, which leaves by SystemExit
            if not sys.stdout.closed:  # as the SDK leaves it
                sys.stdout.flush()
    except* KeyboardInterrupt:
        code = 130
    except* BrokenPipeError:  # in a group, if a task of the command printed
        code = UNREAD
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more, and would complain
    return code


def _run_command(arguments: list[str] | None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    log_to_stderr("info" if options.says and options.log_level == "warning" else options.log_level)
    try:
        code: int = options.run(options)
        return code
    except ConfigurationError as error:
        _complain(error)
        return MISCONFIGURED
    except GatewayError as error:
        _complain(error)
        return FAILED


def _complain(error: GatewayError) -> None:
    """It may hold the words of a catalog, of a client's file or of whatever answered: no terminal obeys them."""
    sys.stderr.write("\n".join(map(harmless, str(error).split("\n"))) + "\n")
