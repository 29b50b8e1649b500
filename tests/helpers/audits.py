"""The audit as a test reads it: every line is JSON, and those of one request belong together."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def lines_of(file: Path) -> list[Json]:
    """All lines. That each is whole is made sure of."""
    text = file.read_text(encoding="ascii") if file.exists() else ""
    assert not text or text.endswith("\n"), f"the last line is torn: {text[-200:]!r}"
    return [json.loads(line) for line in text.split("\n") if line]


def decisions(lines: Iterable[Json], **wanted: Any) -> list[Json]:
    """The decisions that have these values."""
    return [line for line in lines if line["event"] == "decision" and wanted.items() <= line.items()]


def end_of(lines: Iterable[Json], decision: Json) -> Json:
    """The one end of the call that this decision began."""
    [end] = [line for line in lines if line["event"] == "end" and line["id"] == decision["id"]]
    return end


def text_of(file: Path) -> str:
    return file.read_text(encoding="ascii")


def mode_of(file: Path) -> int:
    """Who may read and write it."""
    return file.stat().st_mode & 0o777


def put_folder_in_place_of(file: Path, elsewhere: Path) -> None:
    """Move a file away, and have a folder where it was."""
    file.rename(elsewhere)
    file.mkdir()
