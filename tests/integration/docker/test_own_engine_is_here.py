"""Where the tests cannot start an engine of their own, this one is told as skipped: it stands for all that need it."""

from __future__ import annotations

import pytest

from tests.helpers.own_engine import OwnEngine


@pytest.mark.timeout(240)  # it brings an image over
def test_an_engine_of_the_tests_own_is_here(own_engine: OwnEngine) -> None:
    assert own_engine.is_running
