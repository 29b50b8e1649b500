"""Servers found in a catalog, added by command, and used: the entries are as Docker publishes them, the images are ours
under the catalog's names."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.helpers.catalogs import REAL, ROOT
from tests.helpers.containers import EVERYTHING, TIME, data
from tests.helpers.gateway import LEGACY, client, gateway_over_http, patient_toml

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("engine")]

IMAGES = {"mcp/time": TIME, "mcp/playwright": EVERYTHING, "mcp/arxiv-mcp-server": EVERYTHING}
BY_HAND = """
registry:
  time: {title: Time, type: server, image: mcp/time}
  playwright: {title: Playwright, type: server, longLived: true, image: mcp/playwright}
  arxiv-mcp-server:
    title: ArXiv
    type: server
    image: mcp/arxiv-mcp-server
    env: [{name: ARXIV_STORAGE_PATH, value: /app/papers}]
    volumes: ["{{arxiv-mcp-server.storage_path}}:/app/papers"]
    config: [{name: arxiv-mcp-server, properties: {storage_path: {type: string}}, required: [storage_path]}]
"""
CURL = """
registry:
  curl:
    title: Curl
    type: poci
    tools:
      - name: curl
        parameters: {type: object, properties: {args: {type: array, items: {type: string}}}, required: [args]}
        container: {image: alpine/curl, command: ["{{args|into}}"]}
"""
CATALOGS = ["by hand", *(["real"] if REAL.exists() else [])]


@pytest.fixture
def images(engine: Any) -> Iterator[None]:
    """The test images under the names that the entries have."""
    already = {tag for image in engine.images.list() for tag in image.tags}
    made = [name for name in IMAGES if f"{name}:latest" not in already]
    for name in made:
        assert engine.images.get(IMAGES[name]).tag(name)
    yield
    for name in made:
        engine.images.remove(name, noprune=True)


@pytest.fixture(params=CATALOGS)
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "real":
        return REAL
    file = tmp_path / "catalog.yaml"
    file.write_text(BY_HAND)
    return file


async def added(folder: Path, catalog: Path, name: str, *words: str) -> str:
    """The table that `catalog add` yields where nothing is kept."""
    options = {"state_dir": str(folder / "commands"), "store": "memory://", "docker_allowed_paths": [str(folder)]}
    (folder / "none.toml").write_text(patient_toml({}, **options))
    command = [sys.executable, "server.py", "catalog", "add", name, "--catalog", str(catalog), *words]
    environment = {**os.environ, "APOLLOS_SERVERS": str(folder / "none.toml")}
    done = await anyio.run_process(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.mark.usefixtures("images")
async def test_three_servers_of_a_catalog_are_added_and_used(state: str, tmp_path: Path, catalog: Path) -> None:
    papers = tmp_path / "papers"
    papers.mkdir()
    (papers / "paper.txt").write_text("on gateways")
    papers.chmod(0o755)  # the server is nobody
    gateway = patient_toml({}, state_dir=state, docker_allowed_paths=[str(papers)])
    tables = [
        await added(tmp_path, catalog, "time"),
        await added(tmp_path, catalog, "playwright", "--as", "browser", "--role", "engineer"),
        await added(tmp_path, catalog, "arxiv-mcp-server", "--as", "papers", "--set", f"storage_path={papers}"),
    ]
    async with gateway_over_http("\n".join([gateway, *tables])) as served, client(served.url, LEGACY) as caller:
        names = {tool.name for tool in await caller.list_tools()}
        assert {"time_get_current_time", "browser_inside", "papers_read"} <= names
        answer = await caller.call_tool("time_get_current_time", {"timezone": "Asia/Tokyo"})
        assert "+09:00" in answer.content[0].text
        assert await data(caller, "papers_read", path="/app/papers/paper.txt") == "on gateways"
        seen = await data(caller, "browser_inside")
        assert seen["uid"] == 65534 and "eth0" in seen["interfaces"]
        assert (await data(caller, "papers_inside"))["environment"]["ARXIV_STORAGE_PATH"] == "/app/papers"


@pytest.fixture
def curl(engine: Any) -> Iterator[None]:
    """An image under the name of the one that the entry has, whose program says what it was given."""
    lines = [f"FROM {EVERYTHING}", 'ENTRYPOINT ["python3", "-c", "import sys; print(sys.argv[1:])"]']
    engine.images.build(fileobj=BytesIO("\n".join(lines).encode()), tag="alpine/curl", rm=True)
    yield
    engine.images.remove("alpine/curl")


@pytest.mark.usefixtures("curl")
async def test_an_entry_whose_tools_are_programs_is_added_and_used(state: str, tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(CURL)
    table = await added(tmp_path, REAL if REAL.exists() else catalog, "curl", "--role", "*")
    toml = "\n".join([patient_toml({}, state_dir=state), table])
    async with gateway_over_http(toml) as served, client(served.url, LEGACY) as caller:
        assert [tool.name for tool in await caller.list_tools()] == ["curl_curl"]
        answer = await caller.call_tool("curl_curl", {"args": ["-sS", "https://a.example/?q=a b&c=$d"]})
        assert answer.content[0].text == "['-sS', 'https://a.example/?q=a b&c=$d']\n"
