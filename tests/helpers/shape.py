"""The shape of the house, checked on its source: each check reads a tree and gives the breaches it found.

`tests/test_architecture.py` holds the tables and runs the checks, on the real tree and on seeded breaches. A
breach is one line for a person: where, what is wrong, and what to do.
"""

from __future__ import annotations

import ast
import builtins
import io
import re
import tokenize
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

ROOMS = ("composition", "providers")
DOOR = "server"
BROAD = ("Exception", "BaseException")
BUILT_IN_ERRORS = frozenset(
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
)
PUBLIC = frozenset({"_replace", "_asdict", "_make", "_fields", "_exit", "_getframe"})
"""Documented by the standard library in spite of the underscore."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One parsed file. `name` is what an import says, `path` is relative to the root."""

    name: str
    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def comments(self) -> dict[int, str]:
        """The comment of each line that has one."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}

    def at(self, node: ast.AST, problem: str) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)}: {problem}"


def modules(root: Path) -> list[Module]:
    """The house: server.py and the two rooms. Tests and benchmarks are not part of it."""
    files = [root / f"{DOOR}.py", *(file for room in ROOMS for file in sorted((root / room).rglob("*.py")))]
    return [_module(root, file) for file in files if file.exists()]


def all_python(root: Path) -> list[Module]:
    """Every Python file of ours, tests and benchmarks included; none in a hidden or a vendored folder."""
    files = sorted(root.rglob("*.py"))
    return [_module(root, file) for file in files if not _is_foreign(file.relative_to(root))]


def _is_foreign(path: Path) -> bool:
    return any(part.startswith(".") or part == "node_modules" for part in path.parts)


def _module(root: Path, file: Path) -> Module:
    path = file.relative_to(root)
    parts = path.with_suffix("").parts
    return Module(".".join(parts[:-1] if parts[-1] == "__init__" else parts), str(path), file.read_text())


# --------------------------------------------------------------------------------------------- imports


def imports(module: Module) -> Iterator[tuple[ast.AST, str]]:
    """Each import with what it names in full: `from a import b` names `a.b`. Those inside functions count."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            yield from ((node, f"{source}.{alias.name}") for alias in node.names)


def unranked(root: Path, ranks: Mapping[str, int]) -> list[str]:
    """Modules without a rank, and ranks without a module."""
    packages = {module.name for module in modules(root) if module.path.endswith("__init__.py")}
    names = {module.name for module in modules(root)} - packages
    missing = [f"{name} has no rank: give it one, above all that it imports" for name in sorted(names - set(ranks))]
    return missing + [f"{name} has a rank and no file: take it out" for name in sorted(set(ranks) - names)]


def imports_upwards(root: Path, ranks: Mapping[str, int]) -> list[str]:
    """Imports among our own modules that do not go down, that are relative, or that name a package."""
    names = {module.name for module in modules(root)} - set(ROOMS)
    return [
        module.at(node, problem)
        for module in modules(root)
        for node, target in imports(module)
        if (problem := _import_problem(module.name, target, names, ranks))
    ]


def _import_problem(importer: str, target: str, names: set[str], ranks: Mapping[str, int]) -> str | None:
    if target.startswith("."):
        return "relative import: name the module in full"
    if target.split(".")[0] not in (*ROOMS, DOOR):
        return None
    if importer in ROOMS:
        return "a package imports nothing: name the module where it is used"
    imported = next((name for name in (target, target.rpartition(".")[0]) if name in names), None)
    if imported is None:
        return f"'{target}' is no module: import from the module, not from the package"
    if ranks.get(imported, -1) >= ranks.get(importer, len(names)):
        return f"{importer} may not import {imported}: imports go down only, never sideways"
    return None


def vendors_outside_their_file(root: Path, owners: Mapping[str, Collection[str]]) -> list[str]:
    """Imports of a vendor's package outside the files that own it."""
    return [
        module.at(
            node,
            f"{vendor} belongs to {' and '.join(owners[vendor]) or 'nobody'}: ask there for what you need",
        )
        for module in modules(root)
        for node, target in imports(module)
        if (vendor := target.split(".")[0]) in owners and module.path not in owners[vendor]
    ]


def private_of_others(root: Path, allowed: Collection[str]) -> list[str]:
    """Private names that a file uses and does not define; on `self`, that nothing in the house defines."""
    house = PUBLIC.union(*(_defined(module.tree) for module in modules(root)))
    return [
        module.at(node, f"'{name}' is private to another file: use what is public there")
        for module in modules(root)
        if module.path not in allowed
        for node, name in _private_uses(module, house)
    ]


def _private_uses(module: Module, house: Collection[str]) -> Iterator[tuple[ast.AST, str]]:
    own = PUBLIC.union(_defined(module.tree))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            known = house if _is_self(node.value) else own
            yield from [] if node.attr in known else [(node, node.attr)]
    for node, target in imports(module):
        yield from ((node, part) for part in target.split(".") if _is_private(part))


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def _defined(tree: ast.Module) -> Iterator[str]:
    """What a file itself defines: functions, classes, class attributes, and attributes set on `self`."""
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            yield node.attr


def _is_self(node: ast.expr) -> bool:
    """Whether this is the object itself, whose class may come from another file of ours."""
    return _last_name(node.func if isinstance(node, ast.Call) else node) in ("self", "cls", "super")


# -------------------------------------------------------------------------------------- size and words


def without_docstring(root: Path, least: int) -> list[str]:
    """Modules whose docstring is missing or too short to say which room this is."""
    return [
        f"{module.path}:1: begins without a docstring of {least} characters: say what it is and whom it calls"
        for module in modules(root)
        if len(ast.get_docstring(module.tree) or "") < least
    ]


def long_files(root: Path, most: int) -> list[str]:
    """Files of ours, tests included, with too many lines."""
    sizes = ((module.path, module.text.count("\n")) for module in all_python(root))
    return [f"{path}: {size} lines, at most {most}: make two rooms of it" for path, size in sizes if size > most]


def long_functions(root: Path, most: int) -> list[str]:
    """Functions of ours, tests included, with too many lines; a docstring does not count."""
    return [
        module.at(function, f"{function.name} has {size} lines, at most {most}: what has parts is several functions")
        for module in all_python(root)
        for function, size in functions(module)
        if size > most
    ]


def functions(module: Module) -> Iterator[tuple[Function, int]]:
    """Each function with its lines less its docstring."""
    for node in ast.walk(module.tree):
        if isinstance(node, Function):
            yield node, _lines(node) - (_lines(node.body[0]) if ast.get_docstring(node) is not None else 0)


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def median_function(root: Path) -> float:
    """The lines of the function in the middle, over the house."""
    return median(size for module in modules(root) for _, size in functions(module))


# ---------------------------------------------------------------------------------------------- errors


def broad_excepts(root: Path) -> list[str]:
    """Handlers and suppressions of everything that neither raise again nor say why on their line."""
    return [
        module.at(node, "catches everything: name the error, or say on this line why a task ends here")
        for module in modules(root)
        for node in ast.walk(module.tree)
        if _catches_everything(node) and not _is_reason(module.comments.get(getattr(node, "lineno", 0), ""))
    ]


def _is_reason(comment: str) -> bool:
    """Whether a comment says more than what silences ruff."""
    return len(re.findall(r"\w+", comment.replace("noqa: BLE001", ""))) >= 3


def _catches_everything(node: ast.AST) -> bool:
    if isinstance(node, ast.ExceptHandler):
        return (node.type is None or _names_broad(node.type)) and not isinstance(node.body[-1], ast.Raise)
    if isinstance(node, ast.Call):
        return _last_name(node.func) == "suppress" and any(_names_broad(argument) for argument in node.args)
    return False


def _names_broad(node: ast.expr) -> bool:
    each = node.elts if isinstance(node, ast.Tuple) else [node]
    return any(_last_name(one) in BROAD for one in each)


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def errors_outside_the_root(root: Path, root_error: str) -> list[str]:
    """Error classes that do not come from the one root, however many steps lie between."""
    classes = {
        node.name: (module, node)
        for module in modules(root)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
    }
    parents = {name: [_last_name(base) for base in node.bases] for name, (_, node) in classes.items()}
    return [
        module.at(node, f"{name} is an error outside {root_error}: let it say by whose fault it is")
        for name, (module, node) in classes.items()
        if _is_error(ancestors := _ancestors(name, parents)) and root_error not in ancestors
    ]


def _ancestors(name: str, parents: Mapping[str, list[str]]) -> set[str]:
    found = {name}
    for parent in parents.get(name, []):
        found |= _ancestors(parent, parents)
    return found


def _is_error(ancestors: Collection[str]) -> bool:
    return any(name in BUILT_IN_ERRORS or name.endswith(("Error", "Exception")) for name in ancestors)


# ----------------------------------------------------------------------------------- habits and places


def forbidden_calls(root: Path, forbidden: Mapping[str, tuple[str, Collection[str]]]) -> list[str]:
    """Calls that the house does without, each with what to do instead, outside the files that may make it."""
    return [
        module.at(node, f"{called}: {forbidden[called][0]}")
        for module in modules(root)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and (called := ast.unparse(node.func)) in forbidden
        if module.path not in forbidden[called][1]
    ]


def fixed_sleeps(root: Path, most: float, clock: str) -> list[str]:
    """Tests that wait for a fixed time longer than a polling interval. Those that import `clock` are free to: with it
    an hour passes at once."""
    return [
        module.at(node, "a test waits on an event, not for a time: it would be slow here and wrong elsewhere")
        for module in all_python(root)
        if Path(module.path).name.startswith("test_") and clock not in {target for _, target in imports(module)}
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".sleep") and _literal(node) > most
    ]


def _literal(call: ast.Call) -> float:
    value = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else 0
    return float(value) if isinstance(value, int | float) else 0


def unknown_places(root: Path, known: Collection[str]) -> list[str]:
    """Folders and Python files at the top that the house does not know. Hidden ones are tools' own."""
    return [
        f"{entry.name}: unknown at the top level: it belongs in one of {', '.join(sorted(known))}"
        for entry in sorted(root.iterdir())
        if entry.name not in known and not entry.name.startswith((".", "__pycache__", "node_modules"))
        if entry.is_dir() or entry.suffix == ".py"
    ]
