"""Where there is no Docker engine, this is the one test of containers that is told as skipped: it stands for all."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.core
@pytest.mark.timeout(660)  # it may have to build the images
def test_an_engine_is_here(engine: Any) -> None:
    assert engine.ping()
