"""The routes of adapters: list, make, show, replace, patch, remove. An adapter is a server as the REST API sees it.

`routes` comes in with requests whose caller is known. Each write goes through in this order: may the caller see it, may
he change it, is it the version that he has read, is the body right, is it his to say, does it lead nowhere inside; then
the store has the last word. The registry follows the store, so nothing is mounted here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from composition.api import access, preconditions, problems, shapes
from composition.api.problems import Wrong
from composition.api.remote_urls import check_url
from composition.api.requests import JSON_TYPE, MERGE_PATCH_TYPE, json_object, merged, page
from composition.gateway import Gateway
from composition.settings import unseen
from providers.errors import ReadOnlyServer, VersionConflict
from providers.identity import Identity
from providers.mounts import volume_problems
from providers.resource import McpServerResource, may


async def list_adapters(gateway: Gateway, request: Request, identity: Identity) -> Response:
    """The adapters that the caller may read."""
    known = await gateway.store.list_all()
    readable = ((name, each) for name, each in known.items() if may(identity, "read", each))
    shown, headers = page(request, readable)
    return JSONResponse([shapes.shown(resource) for resource in shown], headers=headers)


async def make_adapter(gateway: Gateway, request: Request, identity: Identity) -> Response:
    """Register a server."""
    wanted = shapes.read(await json_object(request), gateway.settings.timeouts)
    await _check(gateway, identity, wanted, None)
    await access.check_room(gateway, identity)
    wanted = wanted.model_copy(update={"created_by": access.creator_of(identity)})
    await request.state.admit()
    try:
        stored = await gateway.store.upsert(wanted, expected_version=0)
    except (VersionConflict, ReadOnlyServer):
        raise problems.taken() from None
    return _answer(stored, 201, {"Location": f"/adapters/{stored.name}"})


async def show_adapter(gateway: Gateway, request: Request, identity: Identity) -> Response:
    """One adapter."""
    resource = await access.readable(gateway, _name(request), identity)
    if preconditions.is_known(request.headers, resource):
        return Response(status_code=304, headers={"ETag": preconditions.etag(resource)})
    return _answer(resource)


async def replace_adapter(gateway: Gateway, request: Request, identity: Identity) -> Response:
    """Replace what an adapter says of its server. Who made it and when stays."""
    now = await _for_change(gateway, request, identity)
    return await _write(gateway, request, identity, now, await json_object(request))


async def patch_adapter(gateway: Gateway, request: Request, identity: Identity) -> Response:
    """Change some members of an adapter, by a JSON merge patch (RFC 7396)."""
    now = await _for_change(gateway, request, identity)
    patch = await json_object(request, (MERGE_PATCH_TYPE, JSON_TYPE))
    return await _write(gateway, request, identity, now, _patched(now, patch))


async def remove_adapter(gateway: Gateway, request: Request, identity: Identity) -> Response:
    """Remove a server."""
    now = await _for_change(gateway, request, identity)
    await request.state.admit()
    try:
        await gateway.store.delete(now.name, expected_version=now.version)
    except VersionConflict:
        raise _overtaken(request) from None
    return Response(status_code=204)


async def _for_change(gateway: Gateway, request: Request, identity: Identity) -> McpServerResource:
    now = await access.changeable(gateway, _name(request), identity)
    preconditions.check_write(request.headers, now)
    return now


async def _write(
    gateway: Gateway, request: Request, identity: Identity, now: McpServerResource, body: Mapping[str, Any]
) -> Response:
    wanted = shapes.read(body, gateway.settings.timeouts, now)
    await _check(gateway, identity, wanted, now)
    wanted = wanted.model_copy(update={"created_by": now.created_by, "created_at": now.created_at})
    if wanted.same_offer(now):
        return _answer(now)
    # A body and a look-up of addresses take as long as the caller likes. A server that was removed meanwhile and made
    # anew, maybe by somebody else, has the same version again, which is all that the store compares.
    found = await gateway.store.get(now.name)
    if found is None or preconditions.etag(found) != preconditions.etag(now):
        raise _overtaken(request)
    await request.state.admit()
    try:
        return _answer(await gateway.store.upsert(wanted, expected_version=now.version))
    except VersionConflict:
        raise _overtaken(request) from None


async def _check(
    gateway: Gateway, identity: Identity, wanted: McpServerResource, now: McpServerResource | None
) -> None:
    """Whether a record may be stored. Who may say it comes first: what is looked up later tells of this machine and of
    its network."""
    access.check_change(gateway, identity, wanted, now)
    if wanted.docker_volumes:
        found = await anyio.to_thread.run_sync(_volume_problems, gateway, wanted)
        if found:
            raise problems.invalid(found)
    if wanted.url is not None and (now is None or wanted.url != now.url):
        await check_url(wanted.url, gateway.address_rules)


def _volume_problems(gateway: Gateway, wanted: McpServerResource) -> list[Wrong]:
    settings, volumes = gateway.settings, list(wanted.docker_volumes)
    private = unseen(settings, gateway.configuration.path)
    relative = {place: "must be a whole path" for place, text in enumerate(volumes) if text.startswith(".")}
    found = dict(volume_problems(volumes, Path("/"), settings.docker_allowed_paths, private)) | relative
    return [Wrong(f"dockerVolumes.{place}", text) for place, text in sorted(found.items())]


def _patched(now: McpServerResource, patch: Mapping[str, Any]) -> dict[str, Any]:
    base = shapes.merge_base(now)
    if "env" in patch and "environmentVariables" not in patch:
        patch = {("environmentVariables" if key == "env" else key): value for key, value in patch.items()}
    return merged(base, patch)


def _overtaken(request: Request) -> problems.Refusal:
    """Somebody was faster between our reading and our writing."""
    if "if-match" in request.headers:
        return problems.Refusal(412, "The server was changed since you read it. Read it again and repeat the change.")
    return problems.changed_meanwhile()


def _answer(resource: McpServerResource, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse(shapes.shown(resource), status, {"ETag": preconditions.etag(resource), **(headers or {})})


def _name(request: Request) -> str:
    return str(request.path_params["name"])
