"""What the log holds of libraries, at any level: one line, and none of what users send."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.gateway import ROOT

pytestmark = pytest.mark.core

TRACEBACK = """
from composition.logs import log_to_stderr
import logging, traceback
log_to_stderr("warning")
def fail():
    raise {error}
try:
    fail()
except BaseException:
    logging.getLogger("uvicorn.error").error(traceback.format_exc())
"""


@pytest.mark.parametrize(
    ("error", "name"),
    [
        ("ConnectionError('canary\\ncanary: more')", "ConnectionError"),
        ("ExceptionGroup('canary', [ValueError('canary')])", "ExceptionGroup"),
        ("KeyError", "KeyError"),
    ],
)
def test_a_traceback_that_a_library_writes_is_one_line_with_the_errors_name(error: str, name: str) -> None:
    command = [sys.executable, "-c", TRACEBACK.format(error=error)]
    (line,) = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stderr.splitlines()
    assert f"uvicorn.error: failed with {name} (" in line and "canary" not in line


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
