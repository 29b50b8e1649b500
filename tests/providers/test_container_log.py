"""What containers say is kept in a file; a disk that takes nothing costs lines and nothing else."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from providers.container_log import ContainerLog

pytestmark = pytest.mark.core


async def test_lines_are_written_with_their_times(tmp_path: Path) -> None:
    log = ContainerLog(tmp_path / "web.log")
    log("hello")
    await log.flush()
    [line] = log.file.read_text().splitlines()
    assert line.endswith("Z hello")


async def test_a_folder_that_is_gone_is_told_once_and_its_lines_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    log = ContainerLog(tmp_path / "gone" / "web.log")
    for word in ("one", "two"):
        log(word)
        await log.flush()
    assert caplog.text.count("cannot be written (No such file or directory)") == 1
    log.file.parent.mkdir()
    log("three")
    await log.flush()
    first, last = log.file.read_text().splitlines()
    assert first.startswith("(2 lines were lost") and last.endswith("three")
