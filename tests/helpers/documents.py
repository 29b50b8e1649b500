"""The documents of the house, checked against the house: what they name exists, and what they show works.

`tests/test_docs.py` runs the checks, on the real documents and on seeded mistakes. Each gives its findings, one line
for a person each: where, and what is wrong.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

FENCE = re.compile(r"^(?P<mark>```+|~~~+)[ \t]*(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=mark)[ \t]*$", re.M | re.S)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.M)
VARIABLE = re.compile(r"APOLLOS_[A-Z][A-Z0-9_]*")
PLACE = re.compile(r"[\w.*-]+(/[\w.*-]*)*")

ERRORS = re.compile(r"\S+\.toml:\d+: ")
"""How the errors of a configuration begin."""

SHELLS = ("sh", "bash", "shell", "console")
NAMED_FILES = (".md", ".py", ".toml")
"""A file of these kinds may be named without its folder."""

UV_OPTIONS = {"--with": 1, "--python": 1, "-p": 1, "--group": 1, "--isolated": 0, "--no-dev": 0, "--quiet": 0}
"""Options of `uv run` that the documents may use, with the number of words that follow."""

TOOLS = ("fastmcp", "mypy", "pytest", "ruff")


Load = Callable[[str], object]


@dataclass(frozen=True)
class Fence:
    language: str
    line: int
    body: str


@dataclass(frozen=True)
class Document:
    """One Markdown file. `prose` is its text with the fenced blocks blanked out, so that lines keep their number."""

    path: Path
    root: Path
    text: str

    @cached_property
    def fences(self) -> list[Fence]:
        return [Fence(m["language"], self.line(m.start("body")), m["body"]) for m in FENCE.finditer(self.text)]

    @cached_property
    def prose(self) -> str:
        return FENCE.sub(lambda match: "\n" * match[0].count("\n"), self.text)

    @cached_property
    def anchors(self) -> set[str]:
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in HEADING.findall(self.prose)}

    def line(self, position: int) -> int:
        return self.text.count("\n", 0, position) + 1

    def found(self, pattern: re.Pattern[str]) -> Iterator[tuple[int, str]]:
        """The first group of each match in the prose, with its line."""
        return ((self.prose.count("\n", 0, match.start()) + 1, match[1]) for match in pattern.finditer(self.prose))

    def at(self, line: int, problem: str) -> str:
        return f"{self.path.relative_to(self.root)}:{line}: {problem}"


def documents(root: Path) -> list[Document]:
    """README.md and everything in docs/."""
    files = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    return [Document(file, root, file.read_text()) for file in files if file.exists()]


def missing_paths(root: Path, places: Collection[str]) -> list[str]:
    """Paths in backticks that do not exist. A path is what begins with a known place, or is a file's bare name."""
    return [
        document.at(line, f"`{span}` does not exist")
        for document in documents(root)
        for line, span in document.found(SPAN)
        if _looks_like_path(path := span.partition(":")[0], places) and not _exists(root, path)
    ]


def _looks_like_path(text: str, places: Collection[str]) -> bool:
    if not PLACE.fullmatch(text):
        return False
    return text.split("/")[0] in places if "/" in text else text.endswith(NAMED_FILES) and not text.startswith(".")


def _exists(root: Path, path: str) -> bool:
    if "/" in path:
        return any(root.glob(path.strip("/")))
    return any(not any(part.startswith(".") for part in found.relative_to(root).parts) for found in root.rglob(path))


def broken_links(root: Path) -> list[str]:
    """Links within the documents whose file or heading is not there."""
    return [
        document.at(line, f"the link to '{target}' leads nowhere")
        for document in documents(root)
        for line, target in document.found(LINK)
        if not re.match(r"[a-z]+:", target) and not _leads_somewhere(document, target)
    ]


def _leads_somewhere(document: Document, target: str) -> bool:
    name, _, anchor = target.partition("#")
    file = (document.path.parent / name).resolve() if name else document.path
    if not file.exists():
        return False
    return not anchor or anchor in Document(file, document.root, file.read_text()).anchors


def unknown_variables(root: Path, known: Collection[str]) -> list[str]:
    """APOLLOS_* variables that nothing reads. `APOLLOS_TIMEOUTS_*` names all that begin so."""
    return [
        document.at(document.line(match.start()), f"nothing reads {match[0]}")
        for document in documents(root)
        for match in VARIABLE.finditer(document.text)
        if match[0] not in known and not (match[0].endswith("_") and any(name.startswith(match[0]) for name in known))
    ]


def undocumented_variables(root: Path, known: Collection[str]) -> list[str]:
    """APOLLOS_* variables that no document names."""
    named = {match for document in documents(root) for match in VARIABLE.findall(document.text)}
    return [f"{name} is read and not documented" for name in sorted(set(known) - named)]


def variables_read(*files: Path) -> set[str]:
    """The APOLLOS_* variables that stand in source files."""
    return {name for file in files for name in VARIABLE.findall(file.read_text()) if not name.endswith("_")}


# ----------------------------------------------------------------------------------------- what stands in fenced blocks


def failing_blocks(root: Path, language: str, load: Load, load_wrong: Load | None = None) -> list[str]:
    """Fenced blocks of a language that its loader refuses; a loader raises, and its error tells why.

    A block that is followed by a `text` block of errors is wrong on purpose: `load_wrong` must give just those.
    """
    return [
        document.at(fence.line, problem)
        for document in documents(root)
        for fence, after in zip_longest(document.fences, document.fences[1:])
        if fence.language == language
        for shown in [_errors_shown(after)]
        for refusal in [_refusal(load if shown is None else load_wrong or load, fence.body)]
        if (problem := _block_problem(language, refusal, shown))
    ]


def _errors_shown(fence: Fence | None) -> str | None:
    is_errors = fence is not None and fence.language == "text" and ERRORS.match(fence.body)
    return fence.body.strip() if fence is not None and is_errors else None


def _block_problem(language: str, refusal: str | None, shown: str | None) -> str | None:
    if refusal == shown:
        return None
    if shown is None:
        return f"this {language} does not load: {refusal}"
    return f"the errors of this {language} are not those shown, but: {refusal}"


def _refusal(load: Load, body: str) -> str | None:
    try:
        load(body)
    except Exception as error:  # whatever it says about the document is what we report
        return str(error) or repr(error)
    return None


def broken_json(root: Path) -> list[str]:
    return failing_blocks(root, "json", json.loads)


def unknown_commands(root: Path, places: Collection[str], parser: argparse.ArgumentParser) -> list[str]:
    """Commands in shell blocks that would not work here: arguments of server.py that its parser refuses, tools that
    `uv run` does not have, paths that do not exist. Commands of other programs are theirs to check."""
    return [
        document.at(fence.line, f"'{shlex.join(words)}': {problem}")
        for document in documents(root)
        for fence in document.fences
        if fence.language in SHELLS
        for words in commands(fence)
        if (problem := _missing_word(words, root, places) or _refused_command(words, root, parser))
    ]


def commands(fence: Fence) -> Iterator[list[str]]:
    """Each command of a shell block as words, without comments, prompts, and variables set in front of it. In a
    `console` block, what has no prompt is output."""
    for line in fence.body.replace("\\\n", " ").splitlines():
        if fence.language == "console" and not line.startswith("$ "):
            continue
        for part in re.split(r"&&|\|\||[|;]", line.removeprefix("$ ")):
            words = shlex.split(part, comments=True)
            while words and re.match(r"\w+=", words[0]):
                words.pop(0)
            if words:
                yield words


def _missing_word(words: list[str], root: Path, places: Collection[str]) -> str | None:
    paths = [word for word in words if _looks_like_path(word.partition(":")[0], places)]
    return next((f"'{path}' does not exist" for path in paths if not _exists(root, path.partition(":")[0])), None)


def _refused_command(words: list[str], root: Path, parser: argparse.ArgumentParser) -> str | None:
    by_uv = words[:2] == ["uv", "run"]
    match _after_options(words[2:]) if by_uv else words:
        case ["python", "-m", module, *_]:
            return None if _is_module(root, module) else f"there is no module '{module}'"
        case ["python", script, *arguments] | [script, *arguments] if Path(script).name == "server.py":
            return _refused_by(parser, arguments)
        case [tool, *_] if by_uv and not tool.endswith(".py") and tool not in (*TOOLS, "python"):
            return f"'{tool}' is no tool of this project"
    return None


def _after_options(words: list[str]) -> list[str]:
    while words and words[0] in UV_OPTIONS:
        words = words[1 + UV_OPTIONS[words[0]] :]
    return words


def _is_module(root: Path, name: str) -> bool:
    return name in TOOLS or (root / name).is_dir() or (root / f"{name}.py").exists()


def _refused_by(parser: argparse.ArgumentParser, arguments: list[str]) -> str | None:
    complaint = io.StringIO()
    own = list(itertools.takewhile(lambda word: word != "--", arguments))  # the rest is for somebody else
    try:
        with redirect_stderr(complaint), redirect_stdout(io.StringIO()):
            parser.parse_args(own)
    except SystemExit as end:
        return complaint.getvalue().strip().splitlines()[-1] if end.code else None
    return None


def environment_for(toml: str) -> Mapping[str, str]:
    """Values for all variables that a configuration asks for, so that it loads on any machine. One value that
    is good for a header and for a url."""
    return dict.fromkeys(re.findall(r"\$\{(\w+)", toml), "https://value.example")


def changes(changelog: Path, version: str) -> list[str]:
    """What the changelog says about a version, or about what is not released yet."""
    sections = re.split(r"^## +", changelog.read_text(), flags=re.M)[1:]
    current = [section for section in sections if re.match(rf"\[?({re.escape(version)}|Unreleased)\b", section)]
    return [change for section in current for change in re.findall(r"^[-*] +(.+)$", section, re.M)]
