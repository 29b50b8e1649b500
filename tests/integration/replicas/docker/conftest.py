"""Replicas that share containers: they need a Docker engine, as those of tests/integration/docker do. A test there says
so where none answers."""

from __future__ import annotations

import os

from tests.integration.docker.conftest import IN_CI, engine, is_there, state

__all__ = ["engine", "state"]

collect_ignore_glob = [] if is_there() or os.environ.get(IN_CI) else ["test_*.py"]
