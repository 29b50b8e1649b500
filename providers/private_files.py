"""Files and folders for this user alone, which are whole or not there at all.

`ownership` comes in, with keys, secrets and records. Called is the file system alone, so every function here blocks.
Where everybody may write, such as in a folder for temporary files, nothing is trusted because of its name.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from providers.errors import ConfigurationError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NO_LINK = getattr(os, "O_NOFOLLOW", 0)


@contextlib.contextmanager
def private_folder(folder: Path) -> Iterator[int]:
    """A folder that only we can enter, made if need be; its descriptor, through which nobody can put another one in its
    place. Whoever may write to the folder above could have made it before us, to read what we put into it.

    Raises:
        ConfigurationError: it is not a folder of our own, closed to others.
        OSError: it cannot be made.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigurationError(f"'{folder}' is not a folder. Somebody else may have put it there: remove it.")
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | NO_LINK)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != 0o700:
            raise ConfigurationError(
                f"'{folder}' belongs to user {found.st_uid} and has mode {stat.S_IMODE(found.st_mode):03o}; it has to "
                f"belong to user {os.geteuid()} and be closed to others (700). Somebody may have made it: remove it."
            )
        yield descriptor
    finally:
        os.close(descriptor)


def write_new(name: str | Path, content: bytes, mode: int, folder: int | None = None) -> None:
    """Write a file that was not there before, and have it on disk."""
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK, mode, dir_fd=folder)
    with open(file, "wb") as opened:  # noqa: PTH123 - a descriptor
        if hasattr(os, "fchmod"):
            os.fchmod(file, mode)  # whatever the umask is
        opened.write(content)
        opened.flush()
        os.fsync(file)


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Nobody else who asks for the same lock is in this block at the same time, in whatever process. The file stays."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | NO_LINK, 0o600)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def put(file: Path, content: bytes) -> None:
    """Have a file hold this, for us alone: whatever happens, also if the machine loses its power, it is there with
    what it held before or with all of this. Nobody else may be at it."""
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)  # of somebody who was killed
    try:
        write_new(new, content, 0o600)
        new.replace(file)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)  # else the name may be on disk without the file
        finally:
            os.close(descriptor)
