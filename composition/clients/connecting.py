"""The commands `connect` and `disconnect`: the gateway goes into a client's configuration, and out of it again.

`client_commands` comes in. The client's file keeps its text but for what has to change. Beside it lies a copy of what
it was, and, as long as the gateway is connected, a record of the entries that were moved to the gateway. If nobody has
changed the file since, `disconnect` puts the copy back, byte for byte; else it puts back the entries. Both may hold
secrets and are for their owner alone. All of it blocks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composition.clients.gateway_entry import NAME, gateway_entry
from composition.clients.importing import is_gateway, same_server
from composition.clients.jsonc import Document, parse, with_member, with_raw_member, without_member
from composition.clients.kinds import Client
from composition.clients.reading import read_client_file, read_text
from composition.clients.secret_keeping import SecretKeeper
from composition.clients.servers_writing import put_private, replace_text, servers_in
from providers.errors import ConfigurationError

BACKUP, RECORD = ".apollos-backup", ".apollos-moved.json"


@dataclass(frozen=True)
class Change:
    """What was done to a client's file. `names` are the entries that were moved, or put back."""

    path: Path
    is_change: bool
    names: tuple[str, ...] = ()
    backup: Path | None = None
    kept: tuple[str, ...] = ()
    """Entries of the client that stay beside the gateway."""
    left: tuple[Path, ...] = ()
    """What still holds the entries of a client's file that is gone."""


def connect(
    client: Client, path: Path, servers_toml: Path, *, move: bool = False, keeper: SecretKeeper | None = None
) -> Change:
    """Write the gateway into a client's file; done twice, it changes nothing the second time.

    Args:
        move: whether entries whose servers the gateway has too are taken out.
        keeper: has the secrets of those servers; an entry with other ones is another account, and stays.

    Raises:
        ConfigurationError: the file cannot be read or written, or holds another server under our name.
    """
    is_new = not path.exists()
    read = "" if is_new else read_text(path)
    document = _document(client, path, read)
    servers = _servers(document, client)
    if NAME in servers and not is_gateway(_flat(servers[NAME])):
        raise ConfigurationError(f"{path}: has a server '{NAME}' that is not this gateway. Give that another name")
    text = with_member(document, [client.key], NAME, gateway_entry(client))
    moved = _movable(client, path, servers, servers_toml, keeper) if move and not is_new else []
    raw = {name: _raw(document, client, name) for name in moved}
    for name in moved:
        text = without_member(_document(client, path, text), [client.key], name)
    expected = {key: value for key, value in servers.items() if key not in moved} | {NAME: gateway_entry(client)}
    _check(client, path, text, expected)
    others = tuple(name for name in expected if name != NAME)
    if text == document.text:
        return Change(path, False, kept=others)
    if (read_text(path) if path.exists() else "") != read:
        raise ConfigurationError(
            f"{path}: was written to by somebody else just now. Nothing was changed: run this again"
        )
    backup = _remember(path, document.text, text, raw, is_new=is_new)
    replace_text(path, text)
    return Change(path, True, tuple(moved), backup, others)


def disconnect(client: Client, path: Path) -> Change:
    """Take the gateway out of a client's file, and put back what `connect` moved; done twice, it changes nothing.

    Raises:
        ConfigurationError: the file cannot be read or written.
    """
    record = _recorded(path)
    if not path.exists():
        return _gone(client, path, record) if record else Change(path, False)
    document = _document(client, path, read_text(path))
    is_copy_there = record.get("is_new") or path.with_name(path.name + BACKUP).exists()
    if is_copy_there and record.get("after") == _fingerprint(document.text):
        return _as_it_was(path, record)
    servers = _servers(document, client)
    text, is_ours = document.text, NAME in servers and is_gateway(_flat(servers[NAME]))
    if is_ours:
        text = without_member(document, [client.key], NAME)
    expected = {key: value for key, value in servers.items() if not (is_ours and key == NAME)}
    put_back = [name for name in record.get("moved", {}) if name not in servers]
    for name in put_back:
        raw = record["moved"][name]
        text = with_raw_member(_document(client, path, text), [client.key], name, raw)
        expected[name] = parse(raw).root.value
    _check(client, path, text, expected)
    if text != document.text:
        replace_text(path, text)
    _forget(path)
    return Change(path, text != document.text, tuple(put_back))


def _as_it_was(path: Path, record: Mapping[str, Any]) -> Change:
    """Nobody has touched the file since `connect`: it becomes what it was, or goes, if there was none."""
    if record.get("is_new"):
        path.unlink()
    else:
        replace_text(path, read_text(path.with_name(path.name + BACKUP)))
    _forget(path)
    path.with_name(path.name + BACKUP).unlink(missing_ok=True)
    return Change(path, True, tuple(record["moved"]))


def _gone(client: Client, path: Path, record: Mapping[str, Any]) -> Change:
    """Somebody has removed the file since `connect`. What it held is its owner's, and stays; a record that holds no
    more than the copy goes, so that it does not come to life in a file that the client makes anew."""
    copy = path.with_name(path.name + BACKUP)
    copied = _servers(_document(client, copy, read_text(copy)), client) if copy.exists() else {}
    if record["moved"].keys() <= copied.keys():
        _forget(path)
    left = (copy, path.with_name(path.name + RECORD))
    return Change(path, False, left=tuple(each for each in left if each.exists()))


def _forget(path: Path) -> None:
    path.with_name(path.name + RECORD).unlink(missing_ok=True)


def _document(client: Client, path: Path, text: str) -> Document:
    try:
        document = parse(text if text.strip() else "{}\n", comments=client.comments)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    if not isinstance(document.root.value, dict):
        raise ConfigurationError(f"{path}: is not an object. Is it the right file?")
    return document


def _servers(document: Document, client: Client) -> dict[str, Any]:
    node = document.at([client.key])
    if node is not None and not isinstance(node.value, dict):
        raise ConfigurationError(f"key '{client.key}' must be an object with a server under each name")
    return dict(node.value) if node is not None else {}


def _flat(entry: Any) -> Mapping[str, Any]:
    return entry if isinstance(entry, dict) else {}


def _raw(document: Document, client: Client, name: str) -> str:
    node = document.at([client.key, name])
    assert node is not None  # it is one of the servers of this document
    return document.text[node.start : node.end]


def _movable(
    client: Client, path: Path, servers: Mapping[str, Any], servers_toml: Path, keeper: SecretKeeper | None
) -> list[str]:
    """Entries of which the gateway has the same server, so that nothing is lost without them."""
    known = servers_in(servers_toml)
    entries = read_client_file(path, client).entries
    return [
        entry.original
        for entry in entries
        if entry.original in servers
        and not entry.problem
        and entry.original != NAME
        and same_server(entry, known, keeper)
    ]


def _check(client: Client, path: Path, text: str, expected: Mapping[str, Any]) -> None:
    """The text as the client will read it is what it has to be; else it is not written."""
    if _servers(_document(client, path, text), client) != expected:
        raise ConfigurationError(f"{path}: is written in a way that cannot be edited safely. Nothing was changed")


# ------------------------------------------------------------------------------------------------- what was there


def _remember(path: Path, before: str, after: str, moved: Mapping[str, str], *, is_new: bool) -> Path | None:
    """Keep a copy of the file and the text of the entries that go. Of a second `connect` only the latter, and if the
    file was edited in between, nothing will put the whole copy back."""
    record, backup = path.with_name(path.name + RECORD), path.with_name(path.name + BACKUP)
    known = _recorded(path)
    if not known and not is_new:
        put_private(backup, before)
    is_untouched = not known or known.get("after") == _fingerprint(before)
    facts = {
        "is_new": known.get("is_new", is_new),
        "after": _fingerprint(after) if is_untouched else "",
        "moved": {**known.get("moved", {}), **moved},
    }
    put_private(record, json.dumps(facts, indent=2) + "\n")
    return None if is_new else backup


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _recorded(path: Path) -> dict[str, Any]:
    record = path.with_name(path.name + RECORD)
    try:
        known = json.loads(record.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        known = None
    moved = known.get("moved") if isinstance(known, dict) else None
    if not isinstance(moved, dict) or not all(isinstance(each, str) for each in moved.values()):
        raise ConfigurationError(
            f"{record}: cannot be read. What was moved is in {path.name}{BACKUP}; remove the record"
        )
    return dict(known)
