"""The command line: without a command the gateway speaks MCP over stdio; the commands are for people.

Each group of commands is a module that adds its parsers with `register`, and sets in each what is to run. A wrong
configuration ends with exit code 2 and everything that is wrong with it.
"""

from __future__ import annotations

import argparse
import sys

from composition import containers, serving
from composition.clients import client_commands
from composition.discovery import catalog_commands, registry_commands
from composition.logs import log_to_stderr
from composition.starting import MISCONFIGURED
from providers.errors import ConfigurationError

GROUPS = (serving, containers, catalog_commands, registry_commands, client_commands)
"""In the order in which `--help` shows them."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="server.py",
        description="The Apollos MCP Gateway: many MCP servers behind one. "
        "Without a command it speaks MCP over stdio, which is what an MCP host starts.",
        epilog="APOLLOS_SERVERS names another servers.toml.",
    )
    parser.add_argument("--log-level", default="warning", choices=["debug", "info", "warning", "error"])
    parser.set_defaults(run=lambda options: serving.speak_stdio(), says=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for group in GROUPS:
        group.register(commands)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit code."""
    options = build_parser().parse_args(arguments)
    log_to_stderr("info" if options.says and options.log_level == "warning" else options.log_level)
    try:
        code: int = options.run(options)
        return code
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return MISCONFIGURED
    except KeyboardInterrupt:
        return 130
