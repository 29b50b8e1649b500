"""Which containers are a gateway's own: proofs that cannot be copied, and identities that outlive a gateway."""

from __future__ import annotations

from pathlib import Path

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


def test_key_and_folder_are_nobody_elses_business(tmp_path: Path, file: Path) -> None:
    mine = claim(tmp_path, file)
    assert (mine.folder / "key").stat().st_mode & 0o077 == 0
    assert mine.folder.stat().st_mode & 0o077 == 0
    assert mine.key.hex() not in repr(mine)
    mine.release()


def test_secrets_are_closed_to_others_and_go_with_their_container(tmp_path: Path, file: Path) -> None:
    mine = claim(tmp_path, file)
    folder = Path(mine.write_secrets("apollos-mcp-web", {"token": "s"}))
    assert (folder / "token").read_text() == "s"
    assert folder.parent.stat().st_mode & 0o077 == 0
    mine.drop_secrets("apollos-mcp-web")
    assert not folder.parent.exists()
    mine.release()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, file: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(ConfigurationError, match="state_dir"):
        claim(tmp_path, file)
