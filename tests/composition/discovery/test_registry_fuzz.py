"""What strangers send, bent at random: registry entries, clients' entries and texts end in an answer, never a crash."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from composition.clients.jsonc import parse, with_member, without_member
from composition.clients.kinds import CLIENTS, FASTMCP
from composition.clients.reading import read_entry
from composition.discovery.found import State
from composition.discovery.registry_document import Unreadable, read_server
from composition.discovery.registry_packages import ways
from providers.errors import ConfigurationError
from providers.resource import McpServerResource
from tests.composition.discovery.test_registry_samples import LISTS

pytestmark = pytest.mark.core

ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 1e300, "", "-x", "--call", "${secret:a.b}", "${HOME}", "{a}", "{{a}}", "\0", "\ud800", "a\nb"),
    *(
        [],
        {},
        [[]],
        {"a": {}},
        "x" * 5000,
        "../..",
        "https://[",
        "file:///etc/passwd",
        {"value": "{a}", "variables": {}},
    ),
)
ROUNDS = 1500


def bent(value: Any, chance: random.Random) -> Any:
    """The value with one of its parts replaced, dropped or doubled."""
    value = copy.deepcopy(value)
    place = value
    while isinstance(place, dict | list) and place:
        key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if chance.random() < 0.3 or not isinstance(place[key], dict | list) or not place[key]:
            match chance.randrange(3):
                case 0:
                    place[key] = chance.choice(ODD)
                case 1:
                    del place[key]
                case _ if isinstance(place, list):
                    place.append(place[key])
                case _:
                    place[chance.choice(["name", "value", "type", "url", "command", "x"])] = place[key]
            break
        place = place[key]
    return value


def test_bent_registry_entries_are_read_or_refused() -> None:
    chance = random.Random(20261123)
    entries = [entry for file in LISTS for entry in json.loads(file.read_text())["servers"]]
    runnable = 0
    for _ in range(ROUNDS):
        entry = bent(bent(chance.choice(entries), chance), chance)
        try:
            found = ways(read_server(entry))
        except Unreadable:
            continue
        for each in found:
            assert "\n" not in each.in_one_line().replace("a\nb", "")
            if each.state is State.RUNNABLE:
                runnable += 1
                McpServerResource.model_validate({"name": each.name, **each.resource})
                assert "${secret:a.b}" not in json.dumps(each.resource)
    assert runnable


def test_bent_entries_of_clients_are_read_or_refused() -> None:
    chance = random.Random(20261123)
    entries: list[dict[str, Any]] = [
        {"command": "x", "args": ["-y", "b", "--key=v"], "env": {"A": "b", "TOKEN": "c"}, "cwd": "/srv"},
        {"url": "https://x.example/mcp?a=b", "headers": {"A": "b"}, "type": "http", "timeout": 5},
        {"command": {"path": "x", "args": ["y"], "env": {"A": "1"}}, "disabled": True},
        {"command": "npx", "args": ["mcp-remote", "https://x.example/mcp", "--header", "A: b"], "env": {"B": "c"}},
    ]
    for _ in range(ROUNDS):
        client = chance.choice([*CLIENTS.values(), FASTMCP])
        raw = bent(bent(chance.choice(entries), chance), chance)
        entry = read_entry(client, Path("/a/client.json"), "a", "a", raw, [{"id": "a"}, 3])
        assert entry.problem or McpServerResource.model_validate({"name": "a", **entry.table, "is_enabled": False})


def test_bent_texts_are_read_or_refused_and_edits_keep_the_rest() -> None:
    chance = random.Random(20261123)
    text = '{ // a\n  "servers": {"a": {"x": [1, "b,}"]}, /* c */ "d": null,},\n  "e": 1.5\n}\n'
    edited = 0
    for _ in range(ROUNDS):
        where, what = chance.randrange(len(text)), chance.choice(list(',:{}[]"/*\n 1at\\'))
        odd = text[:where] + what + text[where + chance.randrange(3) :]
        try:
            document = parse(odd)
            added = with_member(document, ["servers"], "new", {"y": 1})
        except ConfigurationError:
            continue
        edited += 1
        before = document.root.value
        expected = {**before, "servers": {**before.get("servers", {}), "new": {"y": 1}}}
        assert parse(added).root.value == expected
        del expected["servers"]["new"]
        assert parse(without_member(parse(added), ["servers"], "new")).root.value == expected
    assert edited > 50
