"""What the log holds of libraries, at any level: one line, and none of what users send."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.gateway import ROOT

pytestmark = pytest.mark.core

SAID = """
import logging
from composition.logs import log_to_stderr
log_to_stderr("{level}")
for name in ("fastmcp.server", "sse_starlette.sse", "root", "providers.pool"):
    logger = logging.getLogger(None if name == "root" else name)
    logger.debug("%s debug: canary", name)
    logger.warning("%s warning\\nValue: canary", name)
    try:
        raise ValueError("canary")
    except ValueError:
        logger.exception("%s failed", name)
"""


@pytest.mark.parametrize("level", ["debug", "warning"])
def test_libraries_say_one_line_and_no_value(level: str) -> None:
    command = [sys.executable, "-c", SAID.format(level=level)]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stderr.splitlines()
    of_libraries = lines[: lines.index(next(line for line in lines if "providers.pool" in line))]
    assert [line.rpartition(": ")[2] for line in of_libraries] == [
        f"{name} {what}" for name in ("fastmcp.server", "sse_starlette.sse", "root") for what in ("warning", "failed")
    ]
    ours = "\n".join(lines[len(of_libraries) :])
    assert ("debug: canary" in ours) is (level == "debug") and "ValueError: canary" in ours
