"""Which containers are a gateway's own: proofs that cannot be copied, and identities that outlive a gateway."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from providers import ownership
from providers.errors import ConfigurationError
from providers.ownership import PROOF, Instance


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "servers.toml"


def claim(tmp_path: Path, file: Path) -> Instance:
    return ownership.claim(tmp_path / "state", file)


def test_a_container_is_proven_by_name_image_and_id(tmp_path: Path, file: Path) -> None:
    mine = claim(tmp_path, file)
    labels = mine.labels("web", "stdio", "apollos-mcp-web", "sha256:1", "print", "shared")
    mine.remember("apollos-mcp-web", "id-1")
    assert mine.owns("apollos-mcp-web", "id-1", "sha256:1", labels)
    assert not mine.owns("apollos-mcp-web", "id-2", "sha256:1", labels)
    assert not mine.owns("apollos-mcp-web", "id-1", "sha256:2", labels)
    assert not mine.owns("apollos-mcp-web_x", "id-1", "sha256:1", labels)
    assert not mine.owns("apollos-mcp-web", "id-1", "sha256:1", labels | {"apollos.mcp.server": "other"})
    assert not mine.owns("apollos-mcp-web", "id-1", "sha256:1", labels | {PROOF: ""})
    mine.forget("apollos-mcp-web")
    assert not mine.owns("apollos-mcp-web", "id-1", "sha256:1", labels)
    mine.release()


def test_a_container_whose_making_was_interrupted_is_ours(tmp_path: Path, file: Path) -> None:
    mine = claim(tmp_path, file)
    mine.remember("apollos-mcp-web")
    labels = mine.labels("web", "stdio", "apollos-mcp-web", "sha256:1", "print", "shared")
    assert mine.owns("apollos-mcp-web", "whatever-id", "sha256:1", labels)
    mine.release()


STRANGE = (
    "\u00e4" * 64,
    "\ud800",
    "\0",
    "\n",
    "x" * 1_000_000,
    "",
    None,
    7,
    1.5,
    True,
    ["x"],
    {"x": None},
    "\U0001f4a9",
)


@pytest.mark.parametrize("label", STRANGE, ids=range(len(STRANGE)))
def test_a_strangers_labels_may_be_anything(tmp_path: Path, file: Path, label: Any) -> None:
    """Whoever may use the engine can write labels. None of them ends the gateway."""
    mine = claim(tmp_path, file)
    mine.remember("apollos-mcp-web", "id-1")
    good = mine.labels("web", "stdio", "apollos-mcp-web", "sha256:1", "print", "shared")
    for key in (PROOF, "apollos.mcp.server", "apollos.mcp.fingerprint", "apollos.mcp.scope"):
        assert not mine.owns("apollos-mcp-web", "id-1", "sha256:1", good | {key: label})
    assert not mine.owns("apollos-mcp-web", "id-1", "sha256:1", dict.fromkeys(good, label))
    assert not mine.owns("\ud800", "id-1", "sha256:1", {})
    mine.release()


def test_fuzzed_labels_prove_nothing(tmp_path: Path, file: Path) -> None:
    mine, dice = claim(tmp_path, file), random.Random(4711)
    mine.remember("apollos-mcp-web", "id-1")
    good = mine.labels("web", "stdio", "apollos-mcp-web", "sha256:1", "print", "shared")
    for _ in range(2_000):
        labels: dict[str, Any] = dict(good)
        for key in dice.sample(sorted(good.keys() - {"apollos.mcp.transport", "apollos.mcp.created_by"}), 2):
            labels[key] = "".join(chr(dice.randrange(0x11_0000)) for _ in range(dice.randrange(80)))
        assert not mine.owns("apollos-mcp-web", "id-1", "sha256:1", labels)
    mine.release()


def test_no_fact_can_be_moved_into_the_next_one(tmp_path: Path, file: Path) -> None:
    """A scope is made of what a client says. With a line break in it, it must not stand for two facts."""
    mine = claim(tmp_path, file)
    mine.remember("stranger", "id-1")
    good = mine.labels("web", "stdio", "one", "sha256:1", "print", "stranger\nsha256:2\nx\ny")
    moved = good | {
        "apollos.mcp.server": "web\none\nsha256:1\nprint",
        "apollos.mcp.fingerprint": "x",
        "apollos.mcp.scope": "y",
    }
    assert not mine.owns("stranger", "id-1", "sha256:2", moved)
    mine.release()


def test_gateways_that_run_at_once_have_identities_of_their_own(tmp_path: Path, file: Path) -> None:
    one, two = claim(tmp_path, file), claim(tmp_path, file)
    other = claim(tmp_path, tmp_path / "other.toml")
    assert len({one.id, two.id, other.id}) == 3
    assert ownership.abandoned(tmp_path / "state", file) == []
    assert {instance.id for instance in ownership.known(tmp_path / "state", file)} == {one.id, two.id}
    one.release()
    [found] = ownership.abandoned(tmp_path / "state", file)
    assert found.id == one.id
    found.release()
    again = claim(tmp_path, file)
    assert again.id == one.id
    for each in (again, two, other):
        each.release()


def test_the_record_outlives_the_gateway(tmp_path: Path, file: Path) -> None:
    mine = claim(tmp_path, file)
    mine.remember("apollos-mcp-web", "id-1")
    mine.note("servers", "web", {"state": "running"})
    mine.release()
    again = claim(tmp_path, file)
    assert again.containers() == {"apollos-mcp-web": "id-1"}
    assert again.note("servers", "web", {}) == {"state": "running"}
    again.release()


def test_a_broken_record_is_an_empty_one(tmp_path: Path, file: Path) -> None:
    mine = claim(tmp_path, file)
    (mine.folder / "record.json").write_text("{")
    assert mine.containers() == {}
    mine.remember("x", "y")
    assert mine.containers() == {"x": "y"}
    mine.release()


@pytest.mark.parametrize("record", ['{"containers": []}', '{"containers": null, "servers": 1}', "[]", "\udcff"])
def test_a_record_with_broken_parts_is_written_anew(tmp_path: Path, file: Path, record: str) -> None:
    mine = claim(tmp_path, file)
    (mine.folder / "record.json").write_text(record, errors="surrogateescape")
    mine.forget("x")
    mine.remember("x", "y")
    mine.note("servers", "x", {})
    assert mine.containers() == {"x": "y"}
    mine.release()


@pytest.mark.parametrize("damaged", [b"", b"ab", b"0" * 63, b"g" * 64, b"\xff" * 64, b"0" * 65, b"A" * 64, b"\0" * 64])
def test_a_damaged_key_is_told_and_replaced(
    tmp_path: Path, file: Path, damaged: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a crash. With an empty one anybody could make labels that prove a container to be ours."""
    mine = claim(tmp_path, file)
    labels = mine.labels("web", "stdio", "apollos-mcp-web", "sha256:1", "print", "shared")
    mine.remember("apollos-mcp-web", "id-1")
    mine.release()
    key = mine.folder / "key"
    key.write_bytes(damaged)
    assert ownership.known(tmp_path / "state", file) == []  # whoever only looks changes nothing
    assert key.read_bytes() == damaged and not caplog.records
    again = claim(tmp_path, file)
    assert len(again.key) == 32 and again.id != mine.id
    assert not again.owns("apollos-mcp-web", "id-1", "sha256:1", labels)
    assert "no longer its own" in caplog.text and str(key) in caplog.text
    assert bytes.fromhex(key.read_text()) == again.key and key.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in again.folder.glob("key*")] == ["key"]
    again.release()


def test_key_and_folder_are_nobody_elses_business(tmp_path: Path, file: Path) -> None:
    mine = claim(tmp_path, file)
    assert (mine.folder / "key").stat().st_mode & 0o077 == 0
    assert mine.folder.stat().st_mode & 0o077 == 0
    assert mine.key.hex() not in repr(mine)
    mine.release()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, file: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(ConfigurationError, match="state_dir"):
        claim(tmp_path, file)
