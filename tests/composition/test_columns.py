"""Tables: as wide as they have to be, and on a terminal no wider than that."""

from __future__ import annotations

import sys

import pytest

from composition.columns import in_columns, terminal_width

pytestmark = pytest.mark.core

ROWS = [("NAME", "WHAT IT IS"), ("a-server", "a long sentence about what it is")]


def test_columns_are_as_wide_as_their_longest_cell() -> None:
    assert in_columns(ROWS) == ["NAME      WHAT IT IS", "a-server  a long sentence about what it is"]


def test_the_last_column_is_cut_to_the_width() -> None:
    assert in_columns(ROWS, 24) == ["NAME      WHAT IT IS", "a-server  a long senten…"]
    assert all(len(line) <= 24 for line in in_columns(ROWS, 24))
    assert in_columns(ROWS, 5)[1].startswith("a-server  a long")  # the others are never cut


def test_no_terminal_obeys_a_cell() -> None:
    assert "\x1b" not in in_columns([("\x1b[2J", "x\x1b")])[0]


def test_a_terminal_has_a_width_and_a_pipe_has_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "77")
    assert terminal_width() is None
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert terminal_width() == 77
