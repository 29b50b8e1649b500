"""What containers over stdio say on stderr, kept in a file for `logs`. Docker keeps nothing of them: its log would hold
their MCP traffic.

A launcher's wires write lines, the supervisor runs the writing. Lines gather in memory and are written by a thread
twice a second, so that no event loop waits for a disk; a flood loses its oldest lines, and says how many.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import deque
from datetime import UTC, datetime
from pathlib import Path

import anyio
import anyio.to_thread

logger = logging.getLogger(__name__)

_EVERY = 0.5
_MOST_WAITING = 5_000
_OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Of Unicode's categories: controls, invisible marks, halves of pairs, ends of lines and paragraphs."""
MOST_BYTES = 5 * 1024 * 1024
"""A longer file becomes the old one, of which there is one."""


class ContainerLog:
    """The log of one server's containers."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lines: deque[str] = deque(maxlen=_MOST_WAITING)
        self._lost, self._cannot_write = 0, False

    def __call__(self, line: str) -> None:
        if len(self._lines) == _MOST_WAITING:
            self._lost += 1
        moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._lines.append(f"{moment} {line}\n")

    async def run(self) -> None:
        """Write until cancelled, and then what is left."""
        try:
            while True:
                await anyio.sleep(_EVERY)
                await self.flush()
        finally:
            with anyio.CancelScope(shield=True):
                await self.flush()

    async def flush(self) -> None:
        if self._lines:
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            if self._lost:
                lines.insert(0, f"({self._lost} lines were lost: they could not be written as fast as they came)\n")
                self._lost = 0
            await self._write(lines)

    async def _write(self, lines: list[str]) -> None:
        """A full disk costs lines, which are counted, and nothing else; it is told once."""
        try:
            await anyio.to_thread.run_sync(_append, self.file, "".join(lines))
            self._cannot_write = False
        except OSError as error:
            self._lost += len(lines)
            if not self._cannot_write:
                logger.warning("the log '%s' cannot be written (%s)", self.file, error.strerror)
            self._cannot_write = True


def _append(file: Path, text: str) -> None:
    try:
        if file.stat().st_size > MOST_BYTES:
            file.replace(file.with_suffix(".log.old"))
    except FileNotFoundError:
        pass
    with file.open("a", errors="replace") as log:
        log.write(text)


def last_lines(file: Path, tail: int) -> list[str]:
    """The end of a log. It blocks. Lines end at a newline and nowhere else: what follows another sign has no time in
    front."""
    try:
        lines = file.read_bytes().decode(errors="replace").split("\n")
    except OSError:
        return []
    return [line for line in lines if line][-tail:] if tail else []


def harmless(text: str) -> str:
    """Without what a terminal would obey, or hide behind: control characters, escape sequences, marks that turn the
    direction of text. They are shown by their numbers. Letters of every language stay, and tabs."""
    is_kept = (sign == "\t" or unicodedata.category(sign) not in _OBEYED for sign in text)
    return "".join(
        sign if is_fine else sign.encode("unicode_escape").decode() for sign, is_fine in zip(text, is_kept, strict=True)
    )
