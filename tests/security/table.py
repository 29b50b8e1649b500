"""Who may do what: every method of MCP and every route, for each of five people, in two tables.

| outcome | what came |
|---|---|
| `401`, `404` … | that status; a 404 has the bytes of one for a server that is not there |
| `works` | what the server, or the gateway, has to say |
| `nothing` | a result with the bytes of one where there is no such server |
| `absent` | an error with the bytes of one about a server that is not there |
| `unknown` | the protocol has no such method in this era |
"""

from __future__ import annotations

from typing import Any

from tests.helpers.rpc import HANDSHAKE, NEWEST
from tests.security.house import PEOPLE, hello_params

Json = dict[str, Any]

COLUMNS = ("anonymous", "stranger", "stranger alone", "reader", "creator", "admin")
"""`alone` is at `/adapters/mine/mcp`. There and at `/mcp` the others get the same."""

OF_MCP = """
initialize                    2025  401  nothing  404  works    works    works
initialize                    2026  401  nothing  404  works    works    works
server/discover               2025  401  unknown  404  unknown  unknown  unknown
server/discover               2026  401  nothing  404  works    works    works
ping                          2025  401  works    404  works    works    works
ping                          2026  401  unknown  404  unknown  unknown  unknown
tools/list                    2025  401  nothing  404  works    works    works
tools/list                    2026  401  nothing  404  works    works    works
tools/call                    2025  401  absent   404  works    works    works
tools/call                    2026  401  absent   404  works    works    works
prompts/list                  2025  401  nothing  404  works    works    works
prompts/list                  2026  401  nothing  404  works    works    works
prompts/get                   2025  401  absent   404  works    works    works
prompts/get                   2026  401  absent   404  works    works    works
resources/list                2025  401  nothing  404  works    works    works
resources/list                2026  401  nothing  404  works    works    works
resources/templates/list      2025  401  nothing  404  works    works    works
resources/templates/list      2026  401  nothing  404  works    works    works
resources/read                2025  401  absent   404  works    works    works
resources/read                2026  401  absent   404  works    works    works
resources/subscribe           2025  401  absent   404  works    works    works
resources/subscribe           2026  401  unknown  404  unknown  unknown  unknown
resources/unsubscribe         2025  401  nothing  404  works    works    works
resources/unsubscribe         2026  401  unknown  404  unknown  unknown  unknown
completion/complete           2025  401  nothing  404  works    works    works
completion/complete           2026  401  nothing  404  works    works    works
completion/complete template  2025  401  nothing  404  works    works    works
completion/complete template  2026  401  nothing  404  works    works    works
logging/setLevel              2025  401  works    404  works    works    works
logging/setLevel              2026  401  unknown  404  unknown  unknown  unknown
subscriptions/listen          2025  401  unknown  404  unknown  unknown  unknown
subscriptions/listen          2026  401  nothing  404  works    works    works
GET                           2025  401  works    404  works    works    works
GET                           2026  401  405      404  405      405      405
DELETE                        2025  401  works    404  works    works    works
DELETE                        2026  401  405      404  405      405      405
"""

PARAMS: dict[str, Json] = {
    "initialize": hello_params(),
    "tools/call": {"name": "mine_echo", "arguments": {"text": "hi"}},
    "prompts/get": {"name": "mine_summarize", "arguments": {"topic": "x"}},
    "resources/read": {"uri": "data://mine/greeting"},
    "resources/subscribe": {"uri": "data://mine/greeting"},
    "resources/unsubscribe": {"uri": "data://mine/greeting"},
    "completion/complete": {
        "ref": {"type": "ref/prompt", "name": "mine_summarize"},
        "argument": {"name": "topic", "value": "x"},
    },
    "completion/complete template": {
        "ref": {"type": "ref/resource", "uri": "data://mine/item/{id}"},
        "argument": {"name": "id", "value": "x"},
    },
    "logging/setLevel": {"level": "info"},
    "subscriptions/listen": {
        "notifications": {"toolsListChanged": True, "resourceSubscriptions": ["data://mine/greeting"]}
    },
}
"""What is sent; where a server is named, it is `mine`."""

RAW = {
    *("initialize", "server/discover", "subscriptions/listen", "resources/subscribe", "resources/unsubscribe"),
    *("completion/complete", "completion/complete template"),
}
"""What is served, or says what servers there are, on FastMCP 4.x only."""

ABOUT_NO_SERVER = {"ping", "logging/setLevel", "GET", "DELETE"}
"""Everybody gets the same from the gateway itself."""


def rows_of_mcp() -> dict[tuple[str, str], dict[str, str]]:
    """By method and era: what each column expects."""
    rows = {}
    for line in OF_MCP.strip().splitlines():
        *method, year, anonymous, stranger, alone, reader, creator, admin = line.split()
        version = HANDSHAKE if year == "2025" else NEWEST
        expected = (anonymous, stranger, alone, reader, creator, admin)
        rows[" ".join(method), version] = dict(zip(COLUMNS, expected, strict=True))
    return rows


URL = {"url": "http://127.0.0.1:9/mcp"}
CODE = {"command": "sh", "args": ["-c", "true"]}
IMAGE = {"imageName": "mcp/time"}
GUESTS = {"requiredRoles": ["guest"]}
STALE = {"If-Match": '"1-2"'}

Request = tuple[str, str, Any, dict[str, str]]

OF_REST: dict[str, tuple[Request, tuple[int, int, int, int, int]]] = {
    # {mine} was made by carl, for guests; each row has one of its own
    "list": (("GET", "/adapters", None, {}), (401, 200, 200, 200, 200)),
    "list, one page": (("GET", "/adapters?limit=1", None, {}), (401, 200, 200, 200, 200)),
    "list, HEAD": (("HEAD", "/adapters", None, {}), (401, 200, 200, 200, 200)),
    "list, another method": (("PUT", "/adapters", URL, {}), (401, 405, 405, 405, 405)),
    "make": (("POST", "/adapters", {"name": "{new}", **URL}, {}), (401, 201, 201, 201, 201)),
    "make, taken": (("POST", "/adapters", {"name": "{mine}", **URL}, {}), (401, 409, 409, 409, 409)),
    "make, with a command": (("POST", "/adapters", {"name": "{new}", **CODE}, {}), (401, 403, 403, 403, 201)),
    "make, with an image": (("POST", "/adapters", {"name": "{new}", **IMAGE}, {}), (401, 403, 403, 403, 201)),
    "make, with a secret": (
        ("POST", "/adapters", {"name": "{new}", **URL, "headers": {"X-Key": "${secret:key}"}}, {}),
        (401, 403, 403, 403, 201),
    ),
    "make, with no sense": (("POST", "/adapters", {"nonsense": 1}, {}), (401, 400, 400, 400, 400)),
    "show": (("GET", "/adapters/{mine}", None, {}), (401, 404, 200, 200, 200)),
    "show, HEAD": (("HEAD", "/adapters/{mine}", None, {}), (401, 404, 200, 200, 200)),
    "show, known": (("GET", "/adapters/{mine}", None, {"If-None-Match": "*"}), (401, 404, 304, 304, 304)),
    "replace": (("PUT", "/adapters/{mine}", URL | GUESTS, {}), (401, 404, 403, 200, 200)),
    "replace, stale": (("PUT", "/adapters/{mine}", URL | GUESTS, STALE), (401, 404, 403, 412, 412)),
    "replace, with a command": (("PUT", "/adapters/{mine}", CODE | GUESTS, {}), (401, 404, 403, 403, 200)),
    "replace, with an image": (("PUT", "/adapters/{mine}", IMAGE | GUESTS, {}), (401, 404, 403, 403, 200)),
    "replace, with no sense": (("PUT", "/adapters/{mine}", {"nonsense": 1}, {}), (401, 404, 403, 400, 400)),
    "replace, for whom": (("PUT", "/adapters/{mine}", URL, {}), (401, 404, 403, 200, 403)),
    "patch": (("PATCH", "/adapters/{mine}", {"description": "other"}, {}), (401, 404, 403, 200, 200)),
    "patch, stale": (("PATCH", "/adapters/{mine}", {"description": "other"}, STALE), (401, 404, 403, 412, 412)),
    "patch, with a command": (("PATCH", "/adapters/{mine}", {"url": None, **CODE}, {}), (401, 404, 403, 403, 200)),
    "patch, with the environment": (
        ("PATCH", "/adapters/{mine}", {"url": None, **CODE, "env": {"LD_PRELOAD": "/x"}}, {}),
        (401, 404, 403, 403, 200),
    ),
    "patch, for whom": (("PATCH", "/adapters/{mine}", {"requiredRoles": ["*"]}, {}), (401, 404, 403, 200, 403)),
    "switch off": (("PATCH", "/adapters/{mine}", {"isEnabled": False}, {}), (401, 404, 403, 200, 200)),
    "remove": (("DELETE", "/adapters/{mine}", None, {}), (401, 404, 403, 204, 204)),
    "remove, stale": (("DELETE", "/adapters/{mine}", None, STALE), (401, 404, 403, 412, 412)),
    "status": (("GET", "/adapters/{mine}/status", None, {}), (401, 404, 200, 200, 200)),
    "logs": (("GET", "/adapters/{mine}/logs", None, {}), (401, 404, 403, 409, 409)),
    "logs, followed": (("GET", "/adapters/{mine}/logs?follow=true&tail=5", None, {}), (401, 404, 403, 409, 409)),
    "restart": (("POST", "/adapters/{mine}/restart", None, {}), (401, 404, 403, 200, 200)),
    "restart, by GET": (("GET", "/adapters/{mine}/restart", None, {}), (401, 405, 405, 405, 405)),
    "tools": (("GET", "/tools", None, {}), (401, 200, 200, 200, 200)),
    "one tool": (("GET", "/tools/every_echo", None, {}), (401, 404, 200, 200, 200)),
    "no tool": (("GET", "/tools/every_nothing", None, {}), (401, 404, 404, 404, 404)),
    "the document": (("GET", "/openapi.json", None, {}), (200, 200, 200, 200, 200)),
    "where tokens are": (
        ("GET", "/.well-known/oauth-protected-resource/mcp", None, {}),
        (200, 200, 200, 200, 200),
    ),
    "where tokens are, of one server": (
        ("GET", "/.well-known/oauth-protected-resource/adapters/{mine}/mcp", None, {}),
        (200, 200, 200, 200, 200),
    ),
    "alive": (("GET", "/livez", None, {}), (200, 200, 200, 200, 200)),
    "ready": (("GET", "/readyz", None, {}), (200, 200, 200, 200, 200)),
    "nothing there": (("GET", "/admin", None, {}), (404, 404, 404, 404, 404)),
}
"""A request, and the status that each of `PEOPLE` gets."""

assert all(len(statuses) == len(PEOPLE) for _, statuses in OF_REST.values())
