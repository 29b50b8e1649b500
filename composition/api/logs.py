"""What a server in a container wrote: `/adapters/{name}/logs`.

`routes` comes in. The lines come from the container supervisor, with secrets replaced by their names. They may tell of
any user's calls, so they are for who may write the server. Whoever follows them must have that right all the while.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from composition.api import access
from composition.api.problems import Refusal
from composition.api.requests import flag, number
from composition.gateway import Gateway, GatewayState
from providers.container_log import harmless
from providers.errors import BackendError, ConfigurationError
from providers.identity import Identity
from providers.process import mask_for
from providers.resource import McpServerResource, may

logger = logging.getLogger(__name__)

DEFAULT_TAIL, MOST_LINES = 100, 5_000
_FOLLOW_EVERY = 0.5


async def show_logs(gateway: Gateway, request: Request, identity: Identity) -> Response:
    """The last lines, and with `follow` those to come."""
    resource = await access.writable(gateway, str(request.path_params["name"]), identity)
    tail, is_followed = number(request, "tail", DEFAULT_TAIL, least=0, most=MOST_LINES), flag(request, "follow")
    if not resource.is_container:
        raise Refusal(
            409, "Only servers in containers have logs here. What a process says is in the gateway's own log."
        )
    lines = await gateway.containers.log_lines(resource, tail or 0)
    if is_followed:
        return StreamingResponse(_followed(gateway, resource, identity, lines), media_type="text/plain")
    return PlainTextResponse(await _told(gateway, resource, lines))


async def _told(gateway: Gateway, resource: McpServerResource, lines: list[str]) -> str:
    """Without secrets, also those that the record only refers to: who may write it need not know them."""
    try:
        referred = await anyio.to_thread.run_sync(gateway.secrets.values_in, resource) if lines else []
    except ConfigurationError as error:
        logger.error("%s", error)
        raise Refusal(503, "What is a secret cannot be told at the moment. The gateway's log says why.") from None
    mask = mask_for(resource, referred)
    return "".join(harmless(mask(line)) + "\n" for line in lines)


async def _followed(
    gateway: Gateway, resource: McpServerResource, identity: Identity, lines: list[str]
) -> AsyncIterator[str]:
    newest, now = "", resource
    while True:
        try:
            text = await _told(gateway, now, lines)
        except Refusal:
            return
        newest = max([newest, *lines])
        yield text
        await anyio.sleep(_FOLLOW_EVERY)
        found = gateway.registry.resource(resource.name)
        if gateway.state is not GatewayState.RUNNING or found is None or not may(identity, "write", found):
            return
        now = found
        try:
            lines = [line for line in await gateway.containers.log_lines(now, MOST_LINES) if line > newest]
        except BackendError:
            lines = []  # the engine may come back
