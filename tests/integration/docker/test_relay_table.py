"""The table of every flow, for servers in containers: the columns of tests/relay that need a Docker engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.helpers.containers import accounted
from tests.relay import driver, table
from tests.relay.table import Cell

pytestmark = pytest.mark.timeout(900)  # the first test plays the table

Played = Callable[[Cell], str]


@pytest.fixture(scope="module")
def played(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    folder: Path = tmp_path_factory.mktemp("table")
    with accounted(folder, engine) as state:
        found = anyio.run(lambda: driver.outcomes(driver.WAYS_OF_CONTAINERS, state_dir=state))
    yield found.__getitem__


@pytest.mark.parametrize("cell", driver.driven(driver.WAYS_OF_CONTAINERS), ids=str)
def test_a_cell_is_as_the_table_says(cell: Cell, played: Played) -> None:
    table.check(cell, played(cell))
