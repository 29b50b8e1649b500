"""The file of the audit: whole lines at its end, whatever happens to the file, the disk and the queue."""

from __future__ import annotations

import json
import os
from pathlib import Path

import anyio
import pytest

from providers.audit_log import AuditFailed, AuditFile, AuditLog
from providers.errors import ConfigurationError
from tests.helpers.audits import lines_of, mode_of, text_of
from tests.helpers.processes import eventually

pytestmark = pytest.mark.core


def line(number: int) -> bytes:
    return json.dumps({"event": "decision", "number": number}).encode() + b"\n"


def numbers(file: Path) -> list[int]:
    return [each["number"] for each in lines_of(file) if "number" in each]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.mark.parametrize("is_strict", [True, False])
async def test_all_that_was_written_is_there_at_the_end_and_in_order(file: Path, is_strict: bool) -> None:
    async with AuditLog(str(file), is_strict=is_strict) as log:
        for number in range(50):
            await log.write(line(number))
    assert numbers(file) == list(range(50)) and mode_of(file) == 0o600
    async with AuditLog(str(file), is_strict=is_strict) as log:
        await log.write(line(50))
    assert numbers(file) == list(range(51))


async def test_a_strict_line_is_in_the_file_when_its_writer_goes_on(file: Path) -> None:
    async with AuditLog(str(file), is_strict=True) as log:
        await log.write(line(1))
        assert numbers(file) == [1]


async def test_many_who_wait_share_the_disk(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(descriptor))
    async with AuditLog(str(file), is_strict=True) as log, anyio.create_task_group() as tasks:
        for number in range(200):
            tasks.start_soon(log.write, line(number))
    assert sorted(numbers(file)) == list(range(200)) and len(flushed) < 50


async def test_what_finds_no_room_is_counted_and_told(file: Path) -> None:
    async with AuditLog(str(file), is_strict=False, max_waiting=10) as log:
        for number in range(25):
            await log.write(line(number))
    assert numbers(file) == list(range(10)) and lines_of(file)[0] == {"event": "lost", "lines": 15}


async def test_what_a_full_disk_lost_is_told_when_there_is_room_again(file: Path, tmp_path: Path) -> None:
    link = AuditLog(str(file), is_strict=False)
    async with link as log:
        is_full = True
        append = log._file.append

        def refuse(data: bytes, *, to_disk: bool) -> None:
            if is_full:
                raise OSError(28, "No space left on device")
            append(data, to_disk=to_disk)

        log._file.append = refuse  # type: ignore[method-assign]
        await log.write(line(1))
        await eventually(lambda: log.state == "failing")
        is_full = False
        await log.write(line(2))
        await eventually(lambda: log.state == "open")
    assert lines_of(file) == [{"event": "lost", "lines": 1}, {"event": "decision", "number": 2}]


async def test_a_strict_log_that_does_not_run_writes_nothing_and_says_so(file: Path) -> None:
    log = AuditLog(str(file), is_strict=True)
    with pytest.raises(AuditFailed, match="tell the operator"):
        await log.write(line(1))
    async with log:
        pass
    with pytest.raises(AuditFailed):
        await log.write(line(1))


async def test_what_comes_before_it_runs_is_kept(file: Path) -> None:
    log = AuditLog(str(file), is_strict=False)
    await log.write(line(1))
    async with log:
        await eventually(lambda: numbers(file) == [1])


def test_a_file_that_was_moved_is_made_anew(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("providers.audit_log._LOOK_SECONDS", 0.0)
    audit = AuditFile(str(file))
    audit.open()
    audit.append(line(1), to_disk=True)
    file.rename(tmp_path / "old")
    audit.append(line(2), to_disk=True)
    audit.close()
    assert numbers(tmp_path / "old") == [1] and numbers(file) == [2]


def test_a_line_that_was_torn_does_not_tear_the_next(file: Path) -> None:
    file.write_bytes(line(1) + b'{"event": "deci')
    audit = AuditFile(str(file))
    audit.open()
    audit.append(line(2), to_disk=True)
    audit.close()
    assert text_of(file).split("\n")[1:] == ['{"event": "deci', line(2).decode().strip(), ""]


def test_a_write_that_stops_halfway_ends_on_a_line_of_its_own(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit, write, budget = AuditFile(str(file)), os.write, [10]

    def short(descriptor: int, data: bytes) -> int:
        if not budget:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[: budget.pop()])

    audit.open()
    monkeypatch.setattr(os, "write", short)
    with pytest.raises(OSError, match="No space"):
        audit.append(line(1), to_disk=False)
    monkeypatch.setattr(os, "write", write)
    audit.append(line(2), to_disk=False)
    audit.close()
    assert text_of(file).split("\n") == [line(1).decode()[:10], line(2).decode().strip(), ""]


async def test_a_link_is_not_followed_and_a_pipe_that_nobody_reads_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(ConfigurationError, match="audit_file"):
            async with AuditLog(str(tmp_path / name), is_strict=False):
                pass
    assert lines_of(tmp_path / "elsewhere") == []


async def test_without_a_file_lines_go_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    async with AuditLog(None, is_strict=True) as log:
        await log.write(line(7))
    assert json.loads(capfd.readouterr().err) == {"event": "decision", "number": 7}
