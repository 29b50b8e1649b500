"""The commands for secrets: `secret set`, `secret list` and `secret remove`.

The command line comes in. A value comes from a prompt or from stdin, never from the command line, which everybody
on the machine can read; and no value is ever shown.
"""

from __future__ import annotations

import getpass
import json
import sys
from functools import partial
from typing import Any

from anyio import to_thread

from composition.columns import in_columns
from composition.parts import open_secrets
from composition.records import configured_store
from composition.servers_file import Configuration, load_configuration
from composition.starting import FAILED, OK, run, servers_path
from providers.errors import ConfigurationError
from providers.identity import Identity, local_identity
from providers.resource import McpServerResource
from providers.secret_names import named_in
from providers.secrets import MAX_VALUE_BYTES, Owner, SecretStore


def register(commands: Any) -> None:
    """Add these commands to the command line."""
    secret = commands.add_parser("secret", help="set, list or remove the values of ${secret:NAME}")
    actions = secret.add_subparsers(dest="action", metavar="ACTION", required=True)
    put = actions.add_parser("set", help="keep a value, from a prompt or from stdin")
    put.set_defaults(run=_set)
    remove = actions.add_parser("remove", help="forget a value")
    remove.set_defaults(run=_remove)
    for command in (put, remove):
        command.add_argument("name", metavar="NAME", help="as in ${secret:NAME}")
        command.add_argument("--server", help="the server for which a user has a value of his own (per_user = true)")
        command.add_argument("--user", help="whose it is; with --server (default: the local user)")
        command.add_argument("--issuer", help="who vouches for that user: iss of the token, or tokens (default: local)")
    show = actions.add_parser("list", help="names, where each comes from, and which servers need it; never a value")
    show.add_argument("--json", action="store_true", help="for programs")
    show.set_defaults(run=_list)


def _set(options: Any) -> int:
    store, owner = _store(), _owner(options)
    if sys.stdin.isatty():
        value = getpass.getpass(f"Value of {options.name}: ")
    else:
        value = _text(sys.stdin.buffer.read(MAX_VALUE_BYTES + 3))
    store.set(options.name, value, owner)
    sys.stderr.write(f"'{options.name}' is kept in the {store.keeper}. Sessions that open from now on have it.\n")
    return OK


def _text(data: bytes) -> str:
    """What came on stdin, without the end of its line."""
    try:
        return data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ConfigurationError("what came on stdin is not text in UTF-8. Nothing was kept") from None


def _remove(options: Any) -> int:
    store = _store()
    if store.remove(options.name, _owner(options)):
        return OK
    sys.stderr.write(f"'{options.name}' is not in the {store.keeper}. `server.py secret list` shows what there is.\n")
    return FAILED


def _owner(options: Any) -> Owner | None:
    if options.server is None:
        if options.user or options.issuer:
            raise SystemExit("--user and --issuer need --server: a user's value is for one server")
        return None
    local = local_identity()
    if options.user is None:
        return Owner(local.key, options.server)
    return Owner(Identity(options.user, options.user, issuer=options.issuer or local.issuer).key, options.server)


def _list(options: Any) -> int:
    return run(partial(_list_all, options, load_configuration(servers_path())))


async def _list_all(options: Any, configuration: Configuration) -> int:
    async with configured_store(configuration) as store:
        stored = await store.list_all() if store else {}
    servers = [*{**stored, **configuration.resources}.values()]
    rows = await to_thread.run_sync(_rows, servers, open_secrets(configuration.settings))
    if options.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return OK
    if not rows:
        sys.stdout.write("No server needs a secret, and none is set.\n")
        return OK
    cells = [["NAME", "FROM", "OF", "NEEDED BY"]]
    cells += [[row["name"], row["source"] or "missing", row["owner"] or "-", ", ".join(row["servers"])] for row in rows]
    sys.stdout.write("\n".join(in_columns(cells)) + "\n")
    return OK


def _rows(resources: list[McpServerResource], store: SecretStore) -> list[dict[str, Any]]:
    needed: dict[str, list[str]] = {}
    for resource in resources:
        for name in named_in(resource):
            needed.setdefault(name, []).append(resource.name)
    rows = []
    for name, owner, source in store.names():
        whose = f"{owner.user} for {owner.server}" if owner else ""
        servers = [server for server in needed.get(name, []) if owner is None or server == owner.server]
        rows.append({"name": name, "source": source, "owner": whose, "servers": servers})
    per_user = {resource.name for resource in resources if resource.per_user}
    for name, servers in needed.items():
        lacking = [server for server in servers if server not in per_user]
        if lacking and store.get(name) is None:
            rows.append({"name": name, "source": "", "owner": "", "servers": lacking})
    return rows


def _store() -> SecretStore:
    return open_secrets(load_configuration(servers_path()).settings)
