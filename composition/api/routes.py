"""The door of the REST API: its routes, who comes through, and what a failure looks like from outside.

`http` comes in once, with FastMCP's application. The routes stand in it, behind its Host and Origin guard and its
authentication, and whoever has no good token gets the same challenge as at `/mcp`. Handlers get the gateway, the
request and a verified identity; what they raise becomes a problem here. One that is about to change something awaits
`request.state.admit()` first: then it is in the audit before it is done.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from starlette.applications import Starlette
from starlette.authentication import UnauthenticatedUser
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from composition.api import problems
from composition.api.adapters import (
    list_adapters,
    make_adapter,
    patch_adapter,
    remove_adapter,
    replace_adapter,
    show_adapter,
)
from composition.api.logs import show_logs
from composition.api.openapi import document
from composition.api.status import restart, show_status
from composition.api.tools import list_tools, show_tool
from composition.gateway import Gateway
from composition.names import SEPARATOR
from providers.audit import Asked, rule_of_all
from providers.audit_log import AuditFailed
from providers.errors import GatewayError, NotAuthenticated
from providers.identity import Identity

Handler = Callable[[Gateway, Request, Identity], Awaitable[Response]]

ROUTES: dict[str, dict[str, Handler]] = {
    "/adapters": {"GET": list_adapters, "POST": make_adapter},
    "/adapters/{name}": {
        "GET": show_adapter,
        "PUT": replace_adapter,
        "PATCH": patch_adapter,
        "DELETE": remove_adapter,
    },
    "/adapters/{name}/status": {"GET": show_status},
    "/adapters/{name}/logs": {"GET": show_logs},
    "/adapters/{name}/restart": {"POST": restart},
    "/tools": {"GET": list_tools},
    "/tools/{name}": {"GET": show_tool},
}

_HEADERS = {"Cache-Control": "private, no-cache", "X-Content-Type-Options": "nosniff"}


def install(app: Starlette, gateway: Gateway, mcp_path: str) -> None:
    """Put the API's routes into FastMCP's application, behind those that are there.

    Args:
        mcp_path: where MCP is served: who may not come in there is turned away here in the same words.
    """
    challenge = next(
        (route.endpoint for route in app.routes if isinstance(route, Route) and route.path == mcp_path), None
    )
    described = document(ROUTES, has_auth=gateway.mcp.auth is not None)

    async def describe(request: Request) -> Response:
        return JSONResponse(described)

    for path, methods in ROUTES.items():
        app.router.routes.append(Route(path, _guarded(_Endpoint(gateway, methods, challenge), gateway, challenge)))
    app.router.routes.append(Route("/openapi.json", describe, methods=["GET"]))
    app.add_exception_handler(404, _no_such_path)


def _guarded(endpoint: ASGIApp, gateway: Gateway, challenge: Any) -> ASGIApp:
    """The endpoint behind FastMCP's own check of tokens, the one of `/mcp`; bare where there is no authentication."""
    if gateway.mcp.auth is None:
        return endpoint
    guarded = copy.copy(challenge)
    guarded.app = endpoint
    return guarded  # type: ignore[no-any-return]


async def _no_such_path(request: Request, error: Exception) -> Response:
    return problems.response(problems.Refusal(404, "There is nothing at this address."))


class _Endpoint:
    """One path, as an ASGI application.

    Args:
        challenge: sends the words with which `/mcp` turns away who has no good token.
    """

    def __init__(self, gateway: Gateway, methods: Mapping[str, Handler], challenge: Any) -> None:
        self._gateway, self._challenge = gateway, challenge
        self._methods = {**methods, **({"HEAD": methods["GET"]} if "GET" in methods else {})}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            identity = self._gateway.registry.identity()
        except NotAuthenticated:  # the token is good, and names nobody
            await self._challenge({**scope, "user": UnauthenticatedUser()}, receive, send)
            return
        asked, allow, rule = self._judged(request, identity)
        is_written = False

        async def admit() -> None:
            nonlocal is_written
            await self._gateway.audit.decision(scope, asked, identity, rule, allow=True)
            is_written = True

        request.state.admit = admit
        try:
            response = await self._respond(request, identity)
            if response.status_code < 400 and not is_written:
                await admit()
        except AuditFailed as error:
            response = problems.response(problems.Refusal(503, str(error)))
        except GatewayError as error:
            response = problems.response(problems.refusal_of(error))
        if not is_written:
            await self._write_refusal(scope, asked, identity, rule if not allow else f"status {response.status_code}")
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        await response(scope, receive, send)

    async def _write_refusal(self, scope: Scope, asked: Asked, identity: Identity, rule: str) -> None:
        with suppress(AuditFailed):  # what is refused is refused, written or not
            await self._gateway.audit.decision(scope, asked, identity, rule, allow=False)

    def _judged(self, request: Request, identity: Identity) -> tuple[Asked, bool, str]:
        """What the audit is told of a request: before it is carried out, because afterwards a server may be gone."""
        name = request.path_params.get("name")
        asked = Asked(f"{request.method} {request.scope['route'].path}", target=name)
        if name is None:
            return asked, True, rule_of_all(identity)
        asked.server = str(name).partition(SEPARATOR)[0]
        return asked, *self._gateway.registry.judge(asked.server, identity)

    async def _respond(self, request: Request, identity: Identity) -> Response:
        handler = self._methods.get(request.method)
        if handler is None:
            allowed = ", ".join(sorted(self._methods))
            raise problems.Refusal(405, f"This address takes {allowed}.", headers={"Allow": allowed})
        await self._gateway.start()
        return await handler(self._gateway, request, identity)
