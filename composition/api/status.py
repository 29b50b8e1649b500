"""How a server fares: `/adapters/{name}/status`, and `/adapters/{name}/restart`, which begins a new generation of it.

`routes` comes in. The replicas are Microsoft's words; of ours there is one, the gateway's pool. Whoever may use a
server hears whether it is in order. What sessions it has, and what went wrong, concerns others too: that is for who may
write it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from composition.api import access
from composition.api.problems import Refusal
from composition.gateway import Gateway
from providers.connection import ConnectionState
from providers.identity import Identity
from providers.resource import McpServerResource, may

_OF_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")
"""What a page of a browser can send to anybody without being allowed to."""
_COUNTED = (ConnectionState.CONNECTING, ConnectionState.IDLE, ConnectionState.ACTIVE, ConnectionState.DRAINING)


async def show_status(gateway: Gateway, request: Request, identity: Identity) -> Response:
    """How a server fares in this gateway."""
    resource = await access.readable(gateway, str(request.path_params["name"]), identity)
    return JSONResponse(_status(gateway, resource, identity))


async def restart(gateway: Gateway, request: Request, identity: Identity) -> Response:
    """Close a server's sessions once idle, in this gateway, and open new ones from the next call on."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    resource = await access.writable(gateway, str(request.path_params["name"]), identity)
    if media_type in _OF_FORMS:
        raise Refusal(415, "A restart has no body. Send none.")
    await request.state.admit()
    if not gateway.registry.restart(resource.name):
        raise Refusal(409, "The server is switched off. Set isEnabled to true first.")
    return JSONResponse(_status(gateway, resource, identity))


def _status(gateway: Gateway, resource: McpServerResource, identity: Identity) -> dict[str, Any]:
    connections = gateway.pool.connections(resource.name)
    counts = Counter(connection.state for connection in connections)
    mount, failures = gateway.registry.mounts.get(resource.name), gateway.pool.backoff.failures(resource.name)
    generation = mount.target.generation if mount else 0
    is_open = bool(counts[ConnectionState.IDLE] or counts[ConnectionState.ACTIVE])
    is_in_order = mount is not None and not failures
    body: dict[str, Any] = {
        "readyReplicas": int(is_in_order and is_open),
        "updatedReplicas": int(mount is not None and all(each.generation >= generation for each in connections)),
        "availableReplicas": int(is_in_order),
        "image": resource.docker_image or "",
        "replicaStatus": _words(resource, failures),
    }
    if may(identity, "write", resource):
        refusal = gateway.pool.backoff.refusal(mount.target.key) if mount else None
        body["pool"] = {str(state): counts[state] for state in _COUNTED}
        body["health"] = {"failures": failures, "lastError": refusal.problem if refusal else None}
        body["container"] = _container(gateway, resource)
    return body


def _words(resource: McpServerResource, failures: int) -> str:
    if not resource.is_enabled:
        return "Disabled"
    return "Degraded: 0/1 ready" if failures else "Healthy"


def _container(gateway: Gateway, resource: McpServerResource) -> dict[str, Any] | None:
    for launcher in gateway.containers.launchers:
        if launcher.resource.name == resource.name and not launcher.is_replaced:
            return {**launcher.facts(), "pulling": launcher.pulling}
    return None
