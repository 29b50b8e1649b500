"""The commands for those who have a chat client with servers already: `import`, `connect`, `disconnect`, `export`.

They print names and steps for people, or JSON for programs; never the value of a secret.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from composition.clients.connecting import Change, connect, disconnect
from composition.clients.exporting import exported
from composition.clients.importing import Outcome, Plan, Step, carry_out, plan_import
from composition.clients.kinds import CLIENTS, FASTMCP, Client
from composition.clients.secret_keeping import SecretKeeper
from composition.clients.servers_writing import servers_in
from composition.parts import open_secrets
from composition.servers_file import load_configuration
from composition.starting import FAILED, OK, servers_path
from providers.container_log import harmless
from providers.errors import ConfigurationError


def keeper_of() -> SecretKeeper:
    """The secret store of the gateways with this servers.toml."""
    return open_secrets(load_configuration(servers_path()).settings)


def register(commands: Any) -> None:
    """Add these commands to the command line."""
    importing = commands.add_parser("import", help="take over the servers of a chat client's configuration")
    importing.add_argument("file", metavar="FILE", nargs="?", type=Path, help="the client's file, or --client alone")
    importing.add_argument("--client", choices=[*CLIENTS, FASTMCP.kind], help="whose file it is, if that is not plain")
    importing.add_argument("--write", action="store_true", help="add them to servers.toml; without it they are shown")
    importing.add_argument("--json", action="store_true", help="print JSON")
    importing.set_defaults(run=_import)
    for name, run, what in (
        ("connect", _connect, "write this gateway into a chat client's configuration"),
        ("disconnect", _disconnect, "take it out again, and put back what was moved"),
    ):
        parser = commands.add_parser(name, help=what)
        parser.add_argument("client", metavar="CLIENT", choices=list(CLIENTS), help=", ".join(CLIENTS))
        parser.add_argument("--path", type=Path, help="the client's file, where it is not in the usual place")
        if name == "connect":
            parser.add_argument("--move", action="store_true", help="take out the servers that the gateway has too")
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.set_defaults(run=run)
    exporting = commands.add_parser("export", help="print the servers of servers.toml as another client's mcpServers")
    exporting.set_defaults(run=_export)


def _client(kind: str | None) -> Client | None:
    return {**CLIENTS, FASTMCP.kind: FASTMCP}[kind] if kind else None


# ----------------------------------------------------------------------------------------------------------- import


def _import(options: argparse.Namespace) -> int:
    client = _client(options.client)
    path = options.file or (client.path() if client else None)
    if path is None:
        raise ConfigurationError(
            "Name the file of a chat client, or whose file it is: server.py import --client cursor"
        )
    keeper = keeper_of() if options.write or servers_path().exists() else None
    plan = plan_import(path.expanduser(), client, servers_path(), keeper=keeper)
    outcome = carry_out(plan, keeper) if options.write else None
    if options.json:
        sys.stdout.write(json.dumps(_as_json(plan, outcome), indent=2) + "\n")
    else:
        _say(_for_people(plan, outcome))
    return FAILED if any(each.step is Step.REFUSED for each in plan.planned) else OK


def _as_json(plan: Plan, outcome: Outcome | None) -> dict[str, Any]:
    done: dict[str, Any] = {"written": outcome is not None}
    if outcome:
        done |= {"added": list(outcome.added), "backup": str(outcome.backup or ""), "unset": list(outcome.unset)}
    return {
        "file": str(plan.file.path),
        "client": plan.file.client.kind,
        "servers_toml": str(plan.servers_toml),
        "servers": [each.shown for each in plan.planned],
        **done,
    }


def _for_people(plan: Plan, outcome: Outcome | None) -> list[str]:
    lines = [f"{plan.file.path} ({plan.file.client.title})", ""]
    names = [each.entry.name if each.step is Step.ADD else each.entry.original for each in plan.planned]
    width = max(map(len, names), default=0)
    for each, name in zip(plan.planned, names, strict=True):
        entry = each.entry
        lines.append(f"  {name:<{width}}  {each.step}{f': {each.why}' if each.why else ''}")
        if each.step is not Step.ADD:
            continue
        indent = " " * (width + 6)
        lines += [f"{indent}was '{entry.original}'"] if entry.original != entry.name else []
        lines += [f"{indent}secret {name} = ********" for name in sorted(entry.secrets)]
        lines += [f"{indent}secret {name}, which you have to give" for name in sorted(entry.wanted)]
        lines += [f"{indent}{note}" for note in entry.notes]
    lines += [] if plan.planned else ["  It holds no servers."]
    return [*lines, "", *_what_was_done(plan, outcome)]


def _what_was_done(plan: Plan, outcome: Outcome | None) -> list[str]:
    if outcome is None:
        return ["Nothing was changed. With --write the new ones are added to " + str(plan.servers_toml) + "."]
    if not outcome.added:
        return ["There was nothing to add."]
    lines = [f"Added to {plan.servers_toml}: {', '.join(outcome.added)}."]
    lines += [f"What it was before is in {outcome.backup}."] if outcome.backup else []
    lines += [f"Kept in the secret store: {', '.join(outcome.kept)}."] if outcome.kept else []
    lines += [f"Still to be set: server.py secret set {name}" for name in outcome.unset]
    return lines


# ---------------------------------------------------------------------------------------------- connect, disconnect


def _place(options: argparse.Namespace) -> tuple[Client, Path]:
    client = CLIENTS[options.client]
    return client, (options.path.expanduser() if options.path else client.path())


def _connect(options: argparse.Namespace) -> int:
    client, path = _place(options)
    change = connect(client, path, servers_path(), move=options.move, keeper=keeper_of() if options.move else None)
    said = [f"{client.title} {'starts' if change.is_change else 'already starts'} this gateway: {path}"]
    said += [f"Moved to the gateway: {', '.join(change.names)}."] if change.names else []
    said += [f"Beside it stay: {', '.join(change.kept)}."] if change.kept else []
    said += [f"What it was before is in {change.backup}."] if change.backup else []
    said += [f"Restart {client.title}. Back again: server.py disconnect {client.kind}"] if change.is_change else []
    return _tell(options, change, said)


def _disconnect(options: argparse.Namespace) -> int:
    client, path = _place(options)
    change = disconnect(client, path)
    said = [f"{client.title} {'no longer starts' if change.is_change else 'does not start'} this gateway: {path}"]
    said += [f"Put back: {', '.join(change.names)}."] if change.names else []
    said += [f"That file is gone. What it held is in {' and '.join(map(str, change.left))}."] if change.left else []
    said += [f"Restart {client.title}."] if change.is_change else []
    return _tell(options, change, said)


def _tell(options: argparse.Namespace, change: Change, said: list[str]) -> int:
    facts = {"client": options.client, "file": str(change.path), "changed": change.is_change}
    facts |= {"servers": list(change.names), "backup": str(change.backup or "")}
    facts |= {"left": list(map(str, change.left))} if change.left else {}
    if options.json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
    else:
        _say(said)
    return OK


def _say(lines: list[str]) -> None:
    """For people. A name in a client's file may be a stranger's: no terminal obeys it."""
    sys.stdout.write("".join(harmless(line) + "\n" for line in lines))


# ----------------------------------------------------------------------------------------------------------- export


def _export(options: argparse.Namespace) -> int:
    entries, left_out = exported(servers_in(servers_path()))
    sys.stdout.write(json.dumps({"mcpServers": entries}, indent=2, ensure_ascii=False) + "\n")
    for name, why in left_out.items():
        sys.stderr.write(harmless(f"{name}: {why}") + "\n")
    return OK
