"""The rules of conftest.py are in force: a second pytest runs over tests that break each of them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

CONFIGURATION = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"

OFFENDERS = {
    "test_skips.py": "import pytest\ndef test_a(): pytest.skip('no docker')\n",
    "test_expected.py": "import pytest\n@pytest.mark.xfail\ndef test_b(): assert False\n",
    "test_leaves_task.py": (
        "import asyncio\nasync def test_c():\n"
        "    global t; t = asyncio.create_task(asyncio.sleep(60), name='forgotten')\n"
    ),
    "test_ends_task.py": ("import asyncio\nasync def test_d():\n    asyncio.create_task(asyncio.sleep(60)).cancel()\n"),
    "test_environment.py": "import os\ndef test_e(): assert 'APOLLOS_NAME' not in os.environ\n",
}

SKIPS_WHOLE = "import pytest\npytest.skip('no redis', allow_module_level=True)\n"

ORPHAN = "import subprocess\ndef test_f(): subprocess.run('sleep 60 >&- 2>&- &', shell=True)\n"
"""The shell ends at once: what it started is nobody's child when the tests end."""


def run_pytest(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    (folder / "pytest.ini").write_text(CONFIGURATION)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", str(folder)]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("APOLLOS_", "PYTEST_"))}
    return subprocess.run(command, cwd=folder, env=inherited | environment, capture_output=True, text=True)


def test_in_ci_a_skip_is_a_failure_and_a_task_left_behind_is_one_everywhere(tmp_path: Path) -> None:
    for name, code in OFFENDERS.items():
        (tmp_path / name).write_text(code)
    run = run_pytest(tmp_path, APOLLOS_CI="1", APOLLOS_NAME="outside")
    assert "not run, and in CI that is a failure: Skipped: no docker" in run.stdout
    assert "tasks left running: forgotten" in run.stdout
    assert "XFAIL test_expected.py::test_b" in run.stdout
    assert "PASSED test_ends_task.py::test_d" in run.stdout and "ERROR test_ends_task" not in run.stdout
    assert "PASSED test_environment.py::test_e" in run.stdout


def test_in_ci_a_skipped_module_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "test_skips_whole.py").write_text(SKIPS_WHOLE)
    run = run_pytest(tmp_path, APOLLOS_CI="1")
    assert "not run, and in CI that is a failure: Skipped: no redis" in run.stdout


def test_elsewhere_a_skip_is_a_skip(tmp_path: Path) -> None:
    (tmp_path / "test_skips.py").write_text(OFFENDERS["test_skips.py"])
    run = run_pytest(tmp_path)
    assert run.returncode == 0 and "1 skipped" in run.stdout


def test_what_a_test_tells_is_shown_after_all_tests(tmp_path: Path) -> None:
    (tmp_path / "test_tells.py").write_text("def test_g(record_property): record_property('told', ['a table', 'b'])\n")
    assert "\na table\nb\n" in run_pytest(tmp_path).stdout


def test_a_process_left_behind_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "test_orphan.py").write_text(ORPHAN)
    run = run_pytest(tmp_path)
    told = re.search(r"FAILED: a process was left running: (\d+) sleep 60", run.stdout)
    assert run.returncode == 1 and told is not None
    os.kill(int(told[1]), signal.SIGKILL)
