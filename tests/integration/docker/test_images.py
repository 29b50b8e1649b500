"""Images: fetched from a registry when the gateway starts, with progress, and never while a call waits."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import anyio.to_thread
import pytest
from aiohttp import web
from fastmcp.exceptions import ToolError

from composition.gateway import Gateway
from composition.servers_file import load_configuration
from providers import ownership
from providers.docker import McpContainerManager
from providers.docker_engine import ImageMissing
from tests.helpers.containers import over_stdio, record, until
from tests.helpers.gateway import LEGACY, client, gateway_over_http, servers_toml

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("engine")]
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def an_image(text: str) -> tuple[bytes, dict[str, bytes]]:
    """The manifest of an image with one file in it, and its blobs by digest."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        entry = tarfile.TarInfo("hello")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text.encode()))
    layer = gzip.compress(tar.getvalue(), mtime=0)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/hello"], "Labels": {"of": "hello"}},
            "rootfs": {"type": "layers", "diff_ids": [digest(tar.getvalue())]},
        }
    ).encode()
    kinds = {"application/vnd.docker.container.image.v1+json": config}
    described = [{"mediaType": kind, "size": len(blob), "digest": digest(blob)} for kind, blob in kinds.items()]
    gzipped = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    layers = [{"mediaType": gzipped, "size": len(layer), "digest": digest(layer)}]
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described[0], "layers": layers}
    return json.dumps(manifest).encode(), {digest(config): config, digest(layer): layer}


class Registry:
    """As much of a registry as an engine asks of one; `open` lets blobs through."""

    def __init__(self) -> None:
        self.open = anyio.Event()
        self.manifest, self.blobs = an_image(uuid4().hex)
        self.name = ""

    async def greet(self, request: web.Request) -> web.Response:
        return web.Response()

    async def give_manifest(self, request: web.Request) -> web.Response:
        headers = {"Docker-Content-Digest": digest(self.manifest)}
        return web.Response(body=self.manifest, content_type=MANIFEST, headers=headers)

    async def give_blob(self, request: web.Request) -> web.Response:
        await self.open.wait()
        return web.Response(body=self.blobs[request.match_info["digest"]], content_type="application/octet-stream")


@asynccontextmanager
async def registry() -> AsyncIterator[Registry]:
    found = Registry()
    app = web.Application()
    app.router.add_get("/v2/", found.greet)
    app.router.add_get("/v2/hello/manifests/{reference}", found.give_manifest)
    app.router.add_get("/v2/hello/blobs/{digest}", found.give_blob)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.name = f"127.0.0.1:{runner.addresses[0][1]}/hello:1"
    try:
        yield found
    finally:
        found.open.set()
        await runner.cleanup()


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[McpContainerManager]:
    manager = McpContainerManager(ownership.claim(tmp_path / "state", tmp_path / "servers.toml"))
    yield manager
    manager.close()
    manager.instance.release()


async def forget(engine: Any, name: str) -> None:
    """Remove an image, and what had its name before."""

    def remove() -> None:
        engine.images.remove(name, force=True)
        engine.images.prune(filters={"dangling": True, "label": "of=hello"})

    await anyio.to_thread.run_sync(remove)


async def test_an_image_is_pulled_with_progress(manager: McpContainerManager, engine: Any) -> None:
    async with registry() as found:
        found.open.set()
        said: list[str] = []
        image = await manager.pull_image(record("hello", over_stdio(found.name)), said.append)
        assert image.digest == digest(found.manifest)
        assert said
        await forget(engine, found.name)


async def test_a_pull_has_a_deadline(manager: McpContainerManager) -> None:
    async with registry() as found:
        slow = over_stdio(found.name, timeouts={"pull": 0.5})
        with pytest.raises(ImageMissing, match=r"it was not there after 0\.5 s .*Run: docker pull"):
            await manager.pull_image(record("hello", slow))


async def test_no_call_waits_for_a_pull(state: str, engine: Any) -> None:
    async with registry() as found:
        table = over_stdio(found.name) | {"pull": "missing"}
        toml = servers_toml({"hello": table}, state_dir=state)
        async with gateway_over_http(toml) as served, client(served.url, LEGACY) as caller:
            [launcher] = served.gateway.containers.launchers
            await until(lambda: launcher.pulling is not None)
            with pytest.raises(ToolError, match="its image is being pulled"), anyio.fail_after(5):
                await caller.call_tool("hello_x")
            found.open.set()
            await served.gateway.containers.pulled()
            assert launcher.pulling is None
            await forget(engine, found.name)


async def test_another_image_under_the_same_name_is_told(
    state: str, engine: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with registry() as found:
        found.open.set()
        path = tmp_path / "servers.toml"
        path.write_text(servers_toml({"hello": over_stdio(found.name) | {"pull": "always"}}, state_dir=state))
        await start_and_pull(path)
        assert "another image" not in caplog.text
        found.manifest, blobs = an_image(uuid4().hex)
        found.blobs |= blobs
        await start_and_pull(path)
        assert "is another image now" in caplog.text
        await forget(engine, found.name)


async def start_and_pull(path: Path) -> None:
    gateway = Gateway(await anyio.to_thread.run_sync(load_configuration, path))
    await gateway.start()
    await gateway.containers.pulled()
    await gateway.stop()
