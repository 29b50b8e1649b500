"""Catalogs from addresses and files: the last good copy serves, and what fails costs the others nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from composition.discovery import catalog_sources
from composition.discovery.cache import DocumentCache, DocumentUnavailable
from composition.discovery.catalog_sources import load
from providers.errors import ConfigurationError
from tests.helpers.catalogs import SMALL
from tests.helpers.ports import dead_port
from tests.helpers.site import Site, serving

pytestmark = pytest.mark.core


def cache_in(folder: Path) -> DocumentCache:
    return DocumentCache(folder / "documents", fresh_for=0, timeout=5)


async def test_a_catalog_of_the_web_outlives_its_server(tmp_path: Path) -> None:
    site = Site()
    site.body = SMALL.read_bytes()
    async with serving(site):
        shelf = await load([site.url], cache_in(tmp_path))
        assert len(shelf.servers()) == 10 and shelf.notes == []
        assert "yaml" in site.asked[0]["Accept"]
        site.body, site.headers = b"registry: 5", {"ETag": '"2"'}
        shelf = await load([site.url], cache_in(tmp_path))
        assert len(shelf.servers()) == 10 and "It is no MCP catalog" in shelf.notes[0]
        site.status = 404
        assert len((await load([site.url], cache_in(tmp_path))).servers()) == 10
    shelf = await load([site.url], cache_in(tmp_path))
    assert len(shelf.servers()) == 10 and "no connection" in shelf.notes[0]


async def test_dockers_catalog_is_read_where_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_sources, "DOCKER_CATALOG", str(SMALL))
    assert len((await load((), cache_in(tmp_path))).servers()) == 10


async def test_without_any_catalog_each_failure_is_told(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(17 * 1024 * 1024)
    places = [str(pipe), str(large), "http://catalog.example.com/x", "/dev/zero", "~nobody-here/x"]
    with pytest.raises(ConfigurationError) as caught:
        await load(places, cache_in(tmp_path))
    told = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 5
    for words in ("pipe: It is not a file.", "large: It holds more than 16,777,216 bytes.", "begin with https://"):
        assert words in told


async def test_a_catalog_that_does_not_answer_is_told_once_with_what_to_do(tmp_path: Path) -> None:
    with dead_port() as port, pytest.raises(DocumentUnavailable) as caught:
        await load([f"http://127.0.0.1:{port}/x"], cache_in(tmp_path))
    assert str(caught.value).count(str(port)) == 1 and "--catalog" in str(caught.value)
