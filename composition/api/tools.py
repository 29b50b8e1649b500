"""The unified tool registry over REST: `/tools` and `/tools/{name}`, as far as the caller may see it.

`routes` comes in. The tools are those of the registry's own lists; nothing is kept here. Each says what it costs a
model to know it: a quarter of the bytes of its name, description and input schema as compact JSON, rounded up.
"""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from composition.api.problems import absent
from composition.api.requests import page
from composition.gateway import Gateway
from composition.mount import SEPARATOR, Mount
from providers.caller import Caller
from providers.components import OfferedTool
from providers.identity import Identity

_BYTES_PER_TOKEN = 4
_IN_FULL = ("title", "inputSchema", "outputSchema", "annotations")


async def list_tools(gateway: Gateway, request: Request, identity: Identity) -> Response:
    """The tools of all servers that the caller may read, without their schemas."""
    mounts = gateway.registry.mounts
    found = [tool for tool in await gateway.registry.list_tools() if isinstance(tool, OfferedTool)]
    items = [(tool.name, _shown(tool, mounts[server])) for tool in found if (server := _server(tool.name)) in mounts]
    shown, headers = page(request, items)
    return JSONResponse(shown, headers=headers)


async def show_tool(gateway: Gateway, request: Request, identity: Identity) -> Response:
    """One tool with its schemas."""
    name, caller = str(request.path_params["name"]), await gateway.registry.caller()
    mount = gateway.registry.route(_server(name), caller)
    tool = await _tool(mount, name, caller) if mount is not None and caller is not None else None
    if tool is None or mount is None:
        raise absent()
    return JSONResponse(_shown(tool, mount) | {key: tool.form[key] for key in _IN_FULL if key in tool.form})


async def _tool(mount: Mount, name: str, caller: Caller) -> OfferedTool | None:
    listing = await mount.catalogue.get(caller, mount.resource.timeouts.list)
    if listing is not None:
        return mount.offer(listing).tools.get(name)
    if (error := mount.catalogue.error(caller)) is not None:
        raise error.again()
    return None


def _server(tool: str) -> str:
    return tool.partition(SEPARATOR)[0]


def _shown(tool: OfferedTool, mount: Mount) -> dict[str, Any]:
    return {
        "name": tool.name,
        "server": mount.resource.name,
        "kind": str(mount.resource.kind),
        "description": tool.form.get("description"),
        "tokens": tokens(tool.form),
    }


def tokens(form: dict[str, Any]) -> int:
    """What a model reads of a tool, in tokens; an estimate that depends on the tool alone."""
    read = {key: form[key] for key in ("name", "description", "inputSchema") if key in form}
    return -(-len(to_json(read)) // _BYTES_PER_TOKEN)
