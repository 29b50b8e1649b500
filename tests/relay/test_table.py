"""Every flow, over every transport, in every pairing of eras, towards clients over stdio and over HTTP.

The table is in `table`; it is played once, by `driver`, and each of its cells is a test. docs/relay.md shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from tests.relay import driver, table
from tests.relay.flows import PLAY
from tests.relay.table import Cell, Impossible

pytestmark = pytest.mark.timeout(900)  # the first test plays the table

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "relay.md"

Played = Callable[[Cell], str]


@pytest.fixture(scope="session")
def played() -> Played:
    found: dict[Cell, str] = {}

    def outcome(cell: Cell) -> str:
        if not found:
            found.update(anyio.run(driver.outcomes, tuple(driver.WAYS)))
        return found[cell]

    return outcome


@pytest.mark.parametrize("cell", driver.driven(driver.WAYS), ids=str)
def test_a_cell_is_as_the_table_says(cell: Cell, played: Played) -> None:
    table.check(cell, played(cell))


def test_the_table_has_no_hole() -> None:
    """Each cell is driven, or impossible for a reason; each flow is played; no exception is about nothing."""
    assert set(PLAY) == set(table.FLOWS)
    for cell in table.cells():
        expected = table.expected(cell)
        assert not isinstance(expected, Impossible) or len(expected.why) > 20
    assert {(flow, *pair) for flow in table.FLOWS for pair in table.PAIRS} >= set(table.EXCEPTIONS)


def test_every_transport_is_played() -> None:
    assert set(driver.WAYS) | set(driver.WAYS_OF_CONTAINERS) == set(table.TRANSPORTS)


def test_the_page_shows_the_table() -> None:
    assert table.rendered() in PAGE.read_text(), f"docs/relay.md should show:\n{table.rendered()}"
