"""The shape of the house, held by tests: who may import whom, which file owns which SDK, how long it may be.

The tables at the top are the rules. Each check runs on the real tree, and on a small tree with a seeded
breach, so that a check that can no longer fail is noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import shape
from tests.helpers.floors import FLOORS, OWNERS, RANKS

ROOT = Path(__file__).parent.parent

TOUCHES_PRIVATE = ("providers/lines.py", "providers/low_level.py")
"""Where private names of FastMCP and of the SDK are used, each with its reason: an upgrade is one file."""

WHERE_THE_LOOP_IS_RUN = (
    "composition/starting.py",
    "composition/serving.py",
    "composition/http.py",
    "composition/gateway.py",
)
"""Here tasks outlive what started them: uvicorn's signals, the command itself, the task that holds all lifetimes."""

FORBIDDEN: dict[str, tuple[str, tuple[str, ...]]] = {
    # the call, what to do instead, and the files that may make it
    "asyncio.create_task": ("a task belongs to an anyio task group, which waits for it", WHERE_THE_LOOP_IS_RUN),
    "asyncio.ensure_future": ("a task belongs to an anyio task group, which waits for it", ()),
    "asyncio.sleep": ("use anyio, as everywhere", ()),
    "time.sleep": ("it stops every caller; use anyio.sleep, or a thread", ("providers/guardian.py",)),
}

PLACES = (
    "benchmarks",
    "composition",
    "deploy",
    "docs",
    "examples",
    "providers",
    "server.py",
    "tests",
)

DOCSTRING = 40
FILE_LINES = 400
FUNCTION_LINES = 60
MEDIAN_LINES = 10
POLLING = 0.05
CLOCK = "tests.helpers.fakes.no_waiting"

Check = Callable[[Path], list[str]]

CHECKS: dict[str, Check] = {
    "every module has a rank": lambda root: shape.unranked(root, RANKS),
    "imports go down only": lambda root: shape.imports_upwards(root, RANKS),
    "one vendor, one file": lambda root: shape.vendors_outside_their_file(root, OWNERS),
    "private names stay in their file": lambda root: shape.private_of_others(root, TOUCHES_PRIVATE),
    "modules say what they are": lambda root: shape.without_docstring(root, DOCSTRING),
    "files are short": lambda root: shape.long_files(root, FILE_LINES),
    "functions are short": lambda root: shape.long_functions(root, FUNCTION_LINES),
    "broad excepts have a reason": shape.broad_excepts,
    "errors have one root": lambda root: shape.errors_outside_the_root(root, "GatewayError"),
    "tasks and waiting are anyio's": lambda root: shape.forbidden_calls(root, FORBIDDEN),
    "tests do not sleep": lambda root: shape.fixed_sleeps(root, POLLING, CLOCK),
    "the top level is known": lambda root: shape.unknown_places(root, PLACES),
}


@pytest.mark.parametrize("rule", CHECKS)
def test_the_house_keeps(rule: str) -> None:
    breaches = CHECKS[rule](ROOT)
    assert not breaches, "\n".join([f"{rule}:", *breaches])


def test_the_architecture_page_draws_the_floors() -> None:
    drawing = "\n".join(" · ".join(module.rpartition(".")[2] for module in floor) for floor in FLOORS)
    page = (ROOT / "docs" / "architecture.md").read_text()
    shown = "\n".join(line for line in page.splitlines() if not line.startswith("───"))
    assert f"```\n{drawing}\n```" in shown, f"docs/architecture.md should show (and may rule a line in it):\n{drawing}"


def test_the_median_function_is_short() -> None:
    assert shape.median_function(ROOT) <= MEDIAN_LINES


# -------------------------------------------------------------------------- can each check still fail?

WORDS = '"""A module of the small tree, with words enough for its docstring."""\n'

BREACHES = [
    ("every module has a rank", "providers/newcomer.py", "", "providers.newcomer has no rank"),
    ("imports go down only", "providers/pool.py", "from providers.backend import B", "pool.py:2: .* go down"),
    ("imports go down only", "providers/stdio.py", "from providers import remote", "never sideways"),
    ("imports go down only", "providers/pool.py", "import composition.settings", "go down only"),
    ("imports go down only", "providers/pool.py", "def f():\n    import server", "pool.py:3: .* go down"),
    ("imports go down only", "providers/pool.py", "from .errors import E", "relative import"),
    (
        "private names stay in their file",
        "providers/pool.py",
        "class P(F):\n    def f(self): self._of_f()",
        "_of_f",
    ),
    ("imports go down only", "providers/pool.py", "from providers import nothing", "not from the package"),
    ("imports go down only", "providers/__init__.py", "from providers import pool", "imports nothing"),
    ("one vendor, one file", "providers/pool.py", "import docker.errors", "belongs to providers/docker_engine.py"),
    ("one vendor, one file", "composition/mount.py", "from mcp.types import Tool", "mcp belongs to"),
    (
        "private names stay in their file",
        "providers/pool.py",
        "def f(x): x._lock.acquire()",
        "'_lock' is private",
    ),
    ("private names stay in their file", "providers/pool.py", "from fastmcp._compat import f", "'_compat'"),
    ("modules say what they are", "providers/../composition/mount.py", None, "begins without a docstring"),
    ("files are short", "tests/test_x.py", "\n" * FILE_LINES, "at most 400"),
    ("functions are short", "benchmarks/b.py", "def f():" + "\n    pass" * FUNCTION_LINES, "f has 61 lines"),
    ("broad excepts have a reason", "providers/pool.py", "try: f()\nexcept Exception: pass", "pool.py:3"),
    ("broad excepts have a reason", "providers/pool.py", "try: f()\nexcept: pass", "pool.py:3"),
    (
        "broad excepts have a reason",
        "providers/pool.py",
        "try: f()\nexcept (OSError, BaseException): pass",
        ":3",
    ),
    (
        "broad excepts have a reason",
        "providers/pool.py",
        "try: f()\nexcept Exception: pass  # noqa: BLE001",
        ":3",
    ),
    ("broad excepts have a reason", "providers/pool.py", "with contextlib.suppress(Exception): f()", ":2"),
    (
        "errors have one root",
        "providers/pool.py",
        "class Full(RuntimeError): pass",
        "Full is an error outside",
    ),
    (
        "errors have one root",
        "providers/pool.py",
        "class Bad(Odd): pass\nclass Odd(fastmcp.ToolError): pass",
        "Bad",
    ),
    (
        "tasks and waiting are anyio's",
        "providers/pool.py",
        "asyncio.create_task(f())",
        "pool.py:2: asyncio.create_",
    ),
    (
        "tests do not sleep",
        "tests/test_x.py",
        "async def test(): await anyio.sleep(0.2)",
        "waits on an event",
    ),
    ("the top level is known", "misc/x.txt", "", "misc: unknown"),
    ("the top level is known", "setup.py", "", "setup.py: unknown"),
]

HARMLESS = [
    (
        "imports go down only",
        "providers/pool.py",
        "import mcp\nfrom providers.errors import E\nfrom providers import lines",
    ),
    ("one vendor, one file", "providers/docker_engine.py", "import docker"),
    (
        "private names stay in their file",
        "providers/pool.py",
        "class P:\n    def _f(self): self._x = self._f() or p._x",
    ),
    ("functions are short", "providers/pool.py", 'def f():\n    """' + "\n" * 100 + '    """\n    return 1'),
    (
        "broad excepts have a reason",
        "providers/pool.py",
        "try: f()\nexcept Exception:  # noqa: BLE001 - the task ends here\n    pass",
    ),
    (
        "broad excepts have a reason",
        "providers/pool.py",
        "try: f()\nexcept BaseException:\n    g()\n    raise",
    ),
    ("private names stay in their file", "providers/pool.py", "class P(Q):\n    def f(self): self._of_q()"),
    ("tasks and waiting are anyio's", "composition/gateway.py", "asyncio.create_task(f())"),
    (
        "errors have one root",
        "providers/pool.py",
        "class Full(BackendError, KeyError): pass\nclass BackendError(GatewayError): pass",
    ),
    ("tests do not sleep", "tests/test_x.py", "async def test(): await anyio.sleep(0)"),
    ("tests do not sleep", "tests/test_x.py", f"from {CLOCK.rpartition('.')[0]} import no_waiting\nanyio.sleep(9)"),
    ("the top level is known", "tests/x.py", ""),
]


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    """A house with every module of the table, each with its docstring and nothing else: no rule is broken."""
    for name in RANKS:
        write(tmp_path, name.replace(".", "/") + ".py", "")
    write(tmp_path, "providers/wire.py", "class Q:\n    def _of_q(self): pass")
    for room in shape.ROOMS:
        write(tmp_path, f"{room}/__init__.py", "")
    return tmp_path


def write(root: Path, path: str, code: str | None) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("" if code is None else WORDS + code)


def test_the_small_tree_breaks_no_rule(small_tree: Path) -> None:
    assert [breach for check in CHECKS.values() for breach in check(small_tree)] == []


@pytest.mark.parametrize(("rule", "path", "code", "told"), BREACHES)
def test_a_seeded_breach_is_found(small_tree: Path, rule: str, path: str, code: str | None, told: str) -> None:
    write(small_tree, path, code)
    with pytest.raises(AssertionError, match=told):
        assert CHECKS[rule](small_tree) == []


@pytest.mark.parametrize(("rule", "path", "code"), HARMLESS)
def test_what_is_allowed_is_no_breach(small_tree: Path, rule: str, path: str, code: str) -> None:
    write(small_tree, path, code)
    assert CHECKS[rule](small_tree) == []


def test_a_rank_without_a_module_is_found(small_tree: Path) -> None:
    (small_tree / "providers/pool.py").unlink()
    assert shape.unranked(small_tree, RANKS) == ["providers.pool has a rank and no file: take it out"]


def test_a_long_median_is_found(small_tree: Path) -> None:
    write(small_tree, "providers/pool.py", "def f():" + "\n    pass" * 20)
    assert shape.median_function(small_tree) > MEDIAN_LINES
