"""The unified tool registry over REST: `/tools` and `/tools/{name}`, as far as the caller may see it.

`routes` comes in. The tools are those of the registry's own lists; nothing is kept here. Each says what it costs a
model to know it, as `cost` estimates.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from composition.api.problems import absent
from composition.api.requests import page
from composition.cost import tokens_of
from composition.gateway import Gateway
from composition.mount import Mount
from providers.caller import Caller
from providers.components import OfferedTool
from providers.identity import Identity

_IN_FULL = ("title", "inputSchema", "outputSchema", "annotations")


async def list_tools(gateway: Gateway, request: Request, identity: Identity) -> Response:
    """The tools of all servers that the caller may read, without their schemas."""
    caller = await gateway.registry.caller()
    offers = await gateway.registry.offers(caller) if caller else []
    items = [(name, _shown(tool, mount)) for mount, offer in offers for name, tool in offer.tools.items()]
    shown, headers = page(request, items)
    return JSONResponse(shown, headers=headers)


async def show_tool(gateway: Gateway, request: Request, identity: Identity) -> Response:
    """One tool with its schemas."""
    name, caller = str(request.path_params["name"]), await gateway.registry.caller()
    found = gateway.registry.find(name, caller) if caller else None
    tool = await _tool(gateway, found[0], name, caller) if found and caller else None
    if tool is None or found is None:
        raise absent()
    return JSONResponse(_shown(tool, found[0]) | {key: tool.form[key] for key in _IN_FULL if key in tool.form})


async def _tool(gateway: Gateway, mount: Mount, name: str, caller: Caller) -> OfferedTool | None:
    listing = await mount.catalogue.get(caller, mount.resource.timeouts.list)
    if listing is not None:
        return mount.offer(listing, gateway.registry.names(mount)).tools.get(name)
    if (error := mount.catalogue.error(caller)) is not None:
        raise error.again()
    return None


def _shown(tool: OfferedTool, mount: Mount) -> dict[str, Any]:
    return {
        "name": tool.name,
        "server": mount.resource.name,
        "kind": str(mount.resource.kind),
        "description": tool.form.get("description"),
        "tokens": tokens_of(tool.form),
    }
