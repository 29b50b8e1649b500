"""Which folders of the host a container may see, and where each really leads. It looks at the file system.

The reading of servers.toml comes in with `volume_problems`, so that a mistake is told with its line; and `placement`
with `resolved_volumes`, when a container is made. A path is resolved once, and what was looked at is what Docker is
given. Nobody is called.
"""

from __future__ import annotations

import contextlib
import os
import site
import stat
import sys
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from providers.container_keys import Volume, parse_volume
from providers.errors import BackendUnavailable

_OF_THE_HOST = ("/etc", "/proc", "/sys", "/dev", "/boot", "/run", "/var/run", "/var/lib/docker", "/var/lib/containerd")
_CREDENTIALS = (
    ".ssh",
    ".gnupg",
    ".aws",
    ".azure",
    ".kube",
    ".docker",
    ".netrc",
    ".pypirc",
    ".npmrc",
    ".git-credentials",
    ".config/gcloud",
    ".config/gh",
    ".password-store",
    ".local/share/keyrings",
    "Library/Keychains",
)
_OURS = Path(__file__).resolve().parents[1]
_CODE = (
    *(str(_OURS / name) for name in ("server.py", "composition", "providers", "pyproject.toml")),
    *(sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")),
    *(path for path in (site.USER_SITE, sys.executable) if path and path.startswith("/")),
)
"""What the next start of the gateway runs."""


class MountRefused(BackendUnavailable):
    """Raised when a server's volumes may not be mounted, or are not there."""


def real_path(source: str) -> str:
    """Where a path really leads, through `~`, `..` and every symbolic link.

    Raises:
        ValueError: it leads nowhere that can be told; the message is a predicate.
    """
    whole = os.path.expanduser(source)  # noqa: PTH111 - Path's raises where there is no home
    if not whole.startswith("/"):
        raise ValueError("begins with a '~' whose folder is not known here. Write the whole path")
    try:
        return os.path.realpath(whole)
    except (OSError, ValueError):
        raise ValueError("is not a path of this machine") from None


def resolved(
    volume: Volume, allowed: Iterable[str], forbidden: Collection[str] = (), home: str | None = None
) -> Volume:
    """The volume with the path that it really leads to; one with a name stays as it is.

    Args:
        allowed: the operator's `docker_allowed_paths`.
        forbidden: more paths that no container may see, such as the engine's socket.
        home: whose credentials are meant; the gateway's own user by default.

    Raises:
        ValueError: this may not be mounted; the message is a predicate.
    """
    if not volume.is_bind:
        return volume
    source = real_path(volume.source)
    if path := _touched(source, _never(home, forbidden)):
        raise ValueError(f"leads to '{source}', which holds '{path}' or lies in it: no container may see that")
    if not volume.is_read_only and (path := _touched(source, _names(_CODE))):
        raise ValueError(
            f"leads to '{source}', which holds '{path}' or lies in it, and the gateway runs what is there: no server "
            "may write to it. Mount it without ':rw', or mount another folder"
        )
    if _is_socket(source):
        raise ValueError(f"leads to '{source}', a socket: who can write to it is not contained")
    folders = [real_path(folder) for folder in allowed]
    if not any(_is_below(source, folder) for folder in folders):
        raise ValueError(
            f"leads to '{source}', below none of docker_allowed_paths ({', '.join(folders) or 'there are none'}). "
            'Name its folder under [gateway]: docker_allowed_paths = ["…"]'
        )
    return volume._replace(source=source)


def resolved_volumes(
    server: str, texts: Iterable[str], allowed: Collection[str], forbidden: Collection[str], apart: str | None = None
) -> tuple[Volume, ...]:
    """What a container is to mount, when it is made: a link may lead elsewhere by now.

    Args:
        apart: why the engine does not see the files that we see, as a predicate; None where it does.

    Raises:
        MountRefused: a path may not be mounted, or is not there.
    """
    return tuple(_resolved_now(server, parse_volume(text), allowed, forbidden, apart) for text in texts)


def _resolved_now(
    server: str, volume: Volume, allowed: Collection[str], forbidden: Collection[str], apart: str | None
) -> Volume:
    try:
        if volume.is_bind and apart:
            raise ValueError(f"names '{volume.source}', a folder of the host, and {apart}. Use a named volume instead")
        found = resolved(volume, allowed, forbidden)
        if found.is_bind and not Path(found.source).exists():
            raise ValueError(f"names '{volume.source}', which is not there. Create it, or correct 'docker_volumes'")
    except ValueError as error:
        raise MountRefused(server, f"a volume in 'docker_volumes' {error}.", not_sent=True) from None
    return found


def volume_problems(
    volumes: list[Any], directory: Path, allowed: Collection[str], forbidden: Collection[str] = ()
) -> Iterator[tuple[int, str]]:
    """Make the paths in a list of docker_volumes absolute, from `directory` on, and look where each leads: the place in
    the list, and the predicate, of each that may not be mounted. What is no volume at all is passed over here."""
    for place, text in enumerate(volumes):
        if isinstance(text, str) and text.startswith("."):
            text = volumes[place] = f"{directory}/{text}"
        try:
            volume = parse_volume(text)
        except (ValueError, AttributeError):
            continue  # the model has the words for it
        try:
            resolved(volume, allowed, forbidden)
        except ValueError as error:
            yield place, str(error)


def volume_problem(options: Mapping[str, str] | None) -> str | None:
    """Why a named volume that exists may not be mounted: with options it can stand for any folder of the host."""
    if options:
        return "was made with driver options, which can lead anywhere on the host. Use one that was made without"
    return None


def _never(home: str | None, forbidden: Collection[str]) -> Iterator[str]:
    yield from _names((*_OF_THE_HOST, *forbidden))
    if (of_this_user := os.environ.get("XDG_RUNTIME_DIR", "")).startswith("/"):  # sockets, and perhaps secrets of ours
        yield from _names([of_this_user])
    person = Path(home or os.path.expanduser("~"))  # noqa: PTH111 - Path's raises where there is no home
    if person.is_absolute():
        yield from _names(str(person / name) for name in _CREDENTIALS)


def _names(paths: Iterable[str]) -> Iterator[str]:
    """Where each path really leads, and each link on the way: who may replace a link says where the path leads."""
    waiting = [Path(os.path.expanduser(path)) for path in paths]  # noqa: PTH111 - Path's raises where there is no home
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        yield real_path(str(path))
        for part in {path, *path.parents} - seen:
            seen.add(part)
            place = Path(os.path.realpath(part.parent)) / part.name
            with contextlib.suppress(OSError):  # it is no link
                waiting.append(place.parent / place.readlink())
                yield str(place)


def _touched(source: str, paths: Iterable[str]) -> str | None:
    """The first of these paths that a folder holds or lies in."""
    return next((path for path in paths if _is_below(source, path) or _is_below(path, source)), None)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(Path(path).stat().st_mode)
    except OSError:
        return False
