"""The table: what every flow does, over every transport, in every pairing of eras, towards every kind of client.

All is data here. A cell that no exception names `works`. `test_table` drives each cell against real servers, and
docs/relay.md shows the table as `rendered` makes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

HANDSHAKE, NEWEST = "2025-11-25", "2026-07-28"
ERAS = (HANDSHAKE, NEWEST)
FRONTS = ("stdio", "HTTP")
TRANSPORTS = ("stdio", "HTTP", "SSE", "container, stdio", "container, HTTP")
PAIRS = tuple(product(ERAS, ERAS))
"""The era of the client, and that of the server."""

WORKS = "works"


@dataclass(frozen=True)
class Refused:
    """What the protocol has no such request for: the client gets this JSON-RPC error."""

    code: int
    why: str


@dataclass(frozen=True)
class Impossible:
    """What one of the two eras has no words for."""

    why: str


Expectation = str | Refused | Impossible


@dataclass(frozen=True)
class Cell:
    flow: str
    front: str
    client: str
    transport: str
    server: str

    def __str__(self) -> str:
        return f"{self.flow}: {self.client} over {self.front}, {self.server} over {self.transport}"


FLOWS = {
    "tools": "list and call, with every kind of content, schemas word for word, `_meta` both ways",
    "resources": "list and read, text and binary",
    "templates": "list, and read what they stand for",
    "prompts": "list and get, with arguments and embedded resources",
    "completion": "of a prompt's arguments and of a template's",
    "pagination": "a server's pages arrive as one list, complete",
    "declared": "a server is told what this client can be asked, no more and no less",
    "ping": "from the client",
    "server ping": "from the server, during a call",
    "log level": "`logging/setLevel`: what is beneath it is not heard, and the server knows it",
    "log": "in order, before the answer",
    "progress": "under the client's own token, in order, before the answer",
    "sampling": "all kinds of content, tools, model hints; the real model's name comes back",
    "elicitation, form": "accepted, declined, cancelled",
    "elicitation, URL": "stays a URL",
    "elicitation, URL done": "`notifications/elicitation/complete`",
    "roots": "`roots/list`",
    "roots changed": "`notifications/roots/list_changed`",
    "tools changed": "the client hears of it, and then lists what is new",
    "prompts changed": "the same for prompts",
    "resources changed": "the same for resources and templates",
    "subscription": "to a resource; it ends with the last who wanted it",
    "cancellation": "a call that the client gives up ends in the server",
    "question withdrawn": "the server takes a question back while the client thinks",
    "large result": "8 MiB",
    "too large a result": "more than 16 MiB: an error that names the server and the cap",
    "tool error": "`isError`, as the server said it",
    "protocol error": "code, message and data, as the server said them",
}

_NO_PING = Refused(-32601, "2026-07-28 has no ping")
_NO_LEVEL = Refused(-32601, "2026-07-28 has no `logging/setLevel`: a client names the level in each request")
_NO_SERVER_PING = Impossible("a server of 2026-07-28 sends no requests, so no pings")
_NO_COMPLETE = Impossible("2026-07-28 has no such notification: the answer to the retried call says it")
_NO_ROOTS_CHANGED = Impossible("2026-07-28 has no such notification: roots are asked for when they are needed")
_NO_WITHDRAWAL = Impossible("in 2026-07-28 a question is the answer to a call: it cannot be taken back")

EXCEPTIONS: dict[tuple[str, str, str], Expectation] = {
    # flow, era of the client, era of the server
    ("ping", NEWEST, HANDSHAKE): _NO_PING,
    ("ping", NEWEST, NEWEST): _NO_PING,
    ("log level", NEWEST, HANDSHAKE): _NO_LEVEL,
    ("log level", NEWEST, NEWEST): _NO_LEVEL,
    ("server ping", HANDSHAKE, NEWEST): _NO_SERVER_PING,
    ("server ping", NEWEST, NEWEST): _NO_SERVER_PING,
    ("elicitation, URL done", HANDSHAKE, NEWEST): _NO_COMPLETE,
    ("elicitation, URL done", NEWEST, HANDSHAKE): _NO_COMPLETE,
    ("elicitation, URL done", NEWEST, NEWEST): _NO_COMPLETE,
    ("roots changed", HANDSHAKE, NEWEST): _NO_ROOTS_CHANGED,
    ("roots changed", NEWEST, HANDSHAKE): _NO_ROOTS_CHANGED,
    ("roots changed", NEWEST, NEWEST): _NO_ROOTS_CHANGED,
    ("question withdrawn", HANDSHAKE, NEWEST): _NO_WITHDRAWAL,
    ("question withdrawn", NEWEST, HANDSHAKE): _NO_WITHDRAWAL,
    ("question withdrawn", NEWEST, NEWEST): _NO_WITHDRAWAL,
}
"""These hold over all transports and both fronts."""

SSE_IS_OLD = Impossible("HTTP+SSE is older than 2026-07-28, which does not have it")


def expected(cell: Cell) -> Expectation:
    if cell.transport == "SSE" and cell.server == NEWEST:
        return SSE_IS_OLD
    return EXCEPTIONS.get((cell.flow, cell.client, cell.server), WORKS)


def check(cell: Cell, outcome: str) -> None:
    """Fail where a cell did not go as expected."""
    expectation = expected(cell)
    if isinstance(expectation, Refused):
        assert outcome.startswith(f"refused {expectation.code}:"), outcome
    else:
        assert outcome == expectation


def cells() -> Iterator[Cell]:
    for flow, front, (client, server), transport in product(FLOWS, FRONTS, PAIRS, TRANSPORTS):
        yield Cell(flow, front, client, transport, server)


def rendered() -> str:
    """The table as docs/relay.md shows it: a row for each flow, a column for each pairing of eras."""
    notes: list[str] = []
    rows = [
        f"| {flow} | {meant} | {' | '.join(_shown(EXCEPTIONS.get((flow, *pair), WORKS), notes) for pair in PAIRS)} |"
        for flow, meant in FLOWS.items()
    ]
    head = ["| flow | what is meant | " + " | ".join(f"{client} → {server}" for client, server in PAIRS) + " |"]
    rule = "|---" * (2 + len(PAIRS)) + "|"
    noted = [f"{number}. {note[0].upper()}{note[1:]}." for number, note in enumerate(notes, 1)]
    return "\n".join([*head, rule, *rows, "", *noted])


def _shown(expectation: Expectation, notes: list[str]) -> str:
    if isinstance(expectation, str):
        return expectation
    if expectation.why not in notes:
        notes.append(expectation.why)
    word = "refused" if isinstance(expectation, Refused) else "impossible"
    return f"{word} ({notes.index(expectation.why) + 1})"
