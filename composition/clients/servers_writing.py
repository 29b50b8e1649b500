"""Tables are added to the end of servers.toml, whose text stays as its owner wrote it.

The commands come in. The new text is loaded as a whole before it is put in place, in one step; what was there is kept
in a file beside it. It blocks.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from composition.servers_file import load_configuration
from providers.errors import ConfigurationError

_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
BACKUP = ".backup"


def servers_in(path: Path) -> dict[str, dict[str, Any]]:
    """The tables of a servers.toml as they are written, by name; none where there is no file.

    Raises:
        ConfigurationError: it is not TOML, or cannot be read.
    """
    try:
        servers = tomllib.loads(path.read_text("utf-8-sig")).get("servers", {})
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        load_configuration(path)  # it says what is wrong, and where
        raise ConfigurationError(f"{path}: cannot be read") from None
    return {name: table for name, table in servers.items() if isinstance(table, dict)}


def toml_of(name: str, table: Mapping[str, Any], comment: str = "") -> str:
    """The text of one `[servers.NAME]`."""
    lines = [f"# {_one_line(comment)}"] if comment else []
    lines += [f"[servers.{_key(name)}]", *(f"{_key(key)} = {_value(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def add_servers(path: Path, texts: list[str], environ: Mapping[str, str] = os.environ) -> Path | None:
    """Append tables to a servers.toml, and make one where there is none. Where its old text is kept, if it had one.

    Raises:
        ConfigurationError: the file would not load with them; nothing was changed.
    """
    old = _old(path)
    gap = "" if not old or old.endswith("\n\n") else "\n" if old.endswith("\n") else "\n\n"
    content = (old + gap + "\n".join(texts)).encode()
    with _beside(path, content) as new:
        _check(new, path, environ)
        backup = _kept(path) if path.exists() else None
        new.replace(path.resolve())
    return backup


def problem_with(path: Path, text: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """Why a servers.toml would not load with this table too, or None."""
    with _beside(path, f"{_old(path)}\n\n{text}".encode()) as new:
        try:
            load_configuration(new, environ)
        except ConfigurationError as error:
            return "; ".join(problem.rpartition("] ")[2] for problem in error.problems)
    return None


def replace_text(path: Path, content: str) -> None:
    """Put a text in a file's place, in one step and with the file's own rights; folders on the way are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _beside(path, content.encode()) as new:
        new.replace(path.resolve())


def put_private(path: Path, content: str) -> None:
    """The same for a file that is for its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _beside(path, content.encode(), mode=0o600) as new:
        new.replace(path)


def _old(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError):
        load_configuration(path)
        raise ConfigurationError(f"{path}: cannot be read") from None


def _check(new: Path, path: Path, environ: Mapping[str, str]) -> None:
    try:
        load_configuration(new, environ)
    except ConfigurationError as error:
        said = str(error).replace(str(new), str(path))
        raise ConfigurationError(f"{said}\nNothing was changed: with these servers the file would not load.") from None


def _kept(path: Path) -> Path:
    backup = path.with_name(path.name + BACKUP)
    with _beside(backup, path.read_bytes(), mode=path.stat().st_mode & 0o777) as copy:
        copy.replace(backup)
    return backup


@contextlib.contextmanager
def _beside(path: Path, content: bytes, mode: int | None = None) -> Iterator[Path]:
    """A new file with this content in the folder of another (where paths in it begin), gone if nobody takes it. It has
    the rights of the other one, and those of its owner alone where there is none: it may hold secrets."""
    target = path.resolve()
    if mode is None:
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
    new = target.with_name(f".{target.name}.{secrets.token_hex(4)}.new")
    try:
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(file, "wb") as opened:  # noqa: PTH123 - a descriptor
            if hasattr(os, "fchmod"):
                os.fchmod(file, mode)  # whatever the umask is
            opened.write(content)
            opened.flush()
            os.fsync(file)
        yield new
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        new.unlink(missing_ok=True)


def _key(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else _quoted(name)


def _value(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case str():
            return _quoted(value)
        case Mapping():
            return "{ " + ", ".join(f"{_key(key)} = {_value(each)}" for key, each in value.items()) + " }"
        case _:
            return "[" + ", ".join(_value(each) for each in value) + "]"


def _quoted(text: str) -> str:
    """A text of TOML, which takes JSON's escapes, and wants one for DEL too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _one_line(text: str) -> str:
    return "".join(sign if sign.isprintable() else " " for sign in text)[:200]
