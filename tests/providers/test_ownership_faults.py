"""A full disk, a folder that cannot be used, a power loss: no identity is locked out, and no record lost."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from providers import ownership
from providers.errors import ConfigurationError
from providers.ownership import Instance


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "servers.toml"


def claim(file: Path) -> Instance:
    return ownership.claim(file.parent / "state", file)


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --------------------------------------------------------------------------------------------------------------- locks


def test_a_full_disk_locks_nobody_out(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_files()
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        for _ in range(3):
            with pytest.raises(ConfigurationError, match="No space left on device"):
                claim(file)
    assert open_files() == before
    mine = claim(file)
    assert mine.folder.name == "0"
    assert {each.name for each in mine.folder.iterdir()} == {"lock", "key"}  # and no half of another key
    mine.release()


def test_what_a_power_loss_left_of_a_key_goes(file: Path) -> None:
    mine = claim(file)
    mine.release()
    (mine.folder / "key").unlink()
    (mine.folder / "key.new").write_text("ab")
    again = claim(file)
    assert {each.name for each in again.folder.iterdir()} == {"lock", "key"}
    again.release()


def test_a_folder_that_cannot_be_used_is_told_once_and_the_others_are_swept(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine, other, broken = (claim(file) for _ in range(3))
    for gone in (other, broken):
        gone.release()
    before = open_files()
    (broken.folder / "lock").unlink()
    (broken.folder / "lock").mkdir()
    for _ in range(3):
        found = ownership.abandoned(file.parent / "state", file)
        assert [each.folder for each in found] == [other.folder]
        found[0].release()
    assert open_files() == before
    [told] = [record.getMessage() for record in caplog.records]
    assert str(broken.folder) in told and "Is a directory" in told
    mine.release()


def test_what_was_taken_is_let_go_when_the_search_is_broken_off(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in [claim(file) for _ in range(2)]:
        each.release()
    before, hold = open_files(), ownership._hold

    def interrupted(folder: Path, *rest: Any) -> Instance | None:
        if folder.name == "1":
            raise KeyboardInterrupt
        return hold(folder, *rest)

    monkeypatch.setattr(ownership, "_hold", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ownership.abandoned(file.parent / "state", file)
    assert open_files() == before


# -------------------------------------------------------------------------------------------------------------- record


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced and renamed from now on, in its order."""
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        what = os.fstat(descriptor)
        done.append("folder" if stat.S_ISDIR(what.st_mode) else f"{'whole' if what.st_size else 'empty'} file")
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    return done


@pytest.mark.parametrize(
    "change",
    [
        lambda mine: mine.remember("x", "id"),
        lambda mine: mine.note("servers", "web", {"state": "running"}),
        lambda mine: mine.forget("known"),
    ],
)
def test_a_record_is_on_disk_before_it_takes_the_place_of_the_last(
    file: Path, written: list[str], change: Callable[[Instance], Any]
) -> None:
    mine = claim(file)
    mine.remember("known", "id")
    written.clear()
    change(mine)
    assert written == ["whole file", "rename", "folder"]
    written.clear()
    change(mine)
    assert written == []  # nothing new is nothing to write
    mine.release()


def test_a_record_that_cannot_be_written_stays_as_it_was(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = claim(file)
    mine.remember("x", "id")
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            mine.remember("y", "id")
    assert mine.containers() == {"x": "id"}
    assert not list(mine.folder.glob("*.new"))
    mine.release()


def test_only_the_container_that_is_meant_is_forgotten(file: Path) -> None:
    """The command line and the gateway both see that a container is gone, and its name may be another's by then."""
    mine = claim(file)
    mine.remember("x", "new")
    assert not mine.forget("x", "old")
    assert mine.containers() == {"x": "new"}
    assert mine.forget("x", "new")
    assert mine.containers() == {}
    mine.remember("x")
    assert mine.forget("x", "any")  # it was being made
    mine.remember("x", "new")
    assert mine.forget("x")
    assert not mine.forget("x")
    mine.release()


def test_the_secrets_of_the_next_container_of_that_name_stay(file: Path) -> None:
    mine = claim(file)
    mine.remember("x", "new")
    folder = Path(mine.write_secrets("x", {"token": "s"}))
    mine.forget("x", "old")
    assert (folder / "token").exists()
    mine.forget("x", "new")
    assert not folder.exists() and not folder.parent.exists()
    mine.release()
