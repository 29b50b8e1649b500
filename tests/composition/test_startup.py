"""What a gateway does not load, because its servers do not need it: each start would pay for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.containers import over_stdio
from tests.helpers.gateway import ROOT, local, servers_toml

LOADS = "import sys, server; print([name for name in ('docker', 'docker.api', 'redis') if name in sys.modules])"


@pytest.mark.core
@pytest.mark.parametrize("table", [local("everything.py"), over_stdio()], ids=["process", "container"])
def test_docker_and_redis_are_not_loaded_before_they_are_asked(tmp_path: Path, table: dict[str, object]) -> None:
    servers = tmp_path / "servers.toml"
    servers.write_text(servers_toml({"every": table}, state_dir=str(tmp_path)))
    done = subprocess.run(
        [sys.executable, "-c", LOADS],
        cwd=ROOT,
        env={"APOLLOS_SERVERS": str(servers), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
