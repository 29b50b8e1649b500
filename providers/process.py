"""A local process: started with a small environment, heard on stderr, ended with everything that it started.

`stdio` comes in; called is the operating system alone. Whatever moves JSON-RPC over the process is not in
this room.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

import anyio
import anyio.lowlevel
from anyio.abc import ByteReceiveStream, Process

from providers.errors import BackendError, BackendUnavailable
from providers.resource import McpServerResource

_USER = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "TZ", "TMPDIR")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
_WINDOWS_PLACES = ("APPDATA", "LOCALAPPDATA", "PROGRAMDATA", "PROGRAMFILES", "HOMEDRIVE", "HOMEPATH", "TEMP", "TMP")
_WINDOWS_SYSTEM = ("COMSPEC", "PATHEXT", "PROCESSOR_ARCHITECTURE", "SYSTEMDRIVE", "SYSTEMROOT", "WINDIR")
_WINDOWS_USER = ("USERNAME", "USERPROFILE")

INHERITED = frozenset((*_USER, *_PROXIES, *_CERTIFICATES, *_WINDOWS_PLACES, *_WINDOWS_SYSTEM, *_WINDOWS_USER))
INHERITED_PREFIXES = ("LC_", "XDG_", "UV_", "NPM_CONFIG_", "PIP_")
KEPT_BACK_PREFIXES = ("UV_PUBLISH_", "UV_PROJECT_ENVIRONMENT")
"""Names compare in upper case: some programs know `https_proxy` and `npm_config_cache` only in lower case."""

STREAM_ENDED = (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError, OSError)
"""All that a pipe raises when one of its ends is gone."""

SIGKILL: int = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has one way only, and it is a hard one

_ENDING = ((0, 0.5), (signal.SIGTERM, 0.25), (SIGKILL, 0.25))
"""What is sent to a process that is to end, and the share of the shutdown deadline that it then has. First
nothing: its input has ended, and that is how MCP says goodbye."""
_ENDING_EARLY = ((0, 0.1), (signal.SIGTERM, 0.65), (SIGKILL, 0.25))
"""The same for one that still starts: it may not read its input yet, and then does not see that this has ended."""

_POLL = 0.02

_STDERR_BYTES = 4 * 1024
"""The longest line of stderr that is kept, and what is read at once: a flood shares the event loop."""

_LAST_LINES = 20
_LAST_WORDS = 300
"""Characters of stderr that an error shows."""

_SECRET_LENGTH = 8
"""Shorter values of `env` are not masked: `1` or `debug` would hide half of what a process says."""

_TERMINAL_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")

logger = logging.getLogger(__name__)


def child_environment(resource: McpServerResource, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a resource's process: its own `env` over a small part of the gateway's.

    Inherited is what says who and where the user is (`PATH`, `HOME`, `LANG`, `LC_*` …), what package runners
    need to find their caches and indexes (`XDG_*`, `UV_*`, `NPM_CONFIG_*`, `PIP_*`), and proxies and
    certificates. Nothing else is, so that no server sees the gateway's own settings (`APOLLOS_*`) or a secret
    that was meant for another. Of uv's variables two kinds stay back: those for publishing, and the one that
    would have a backend's `uv run` rebuild the environment that the gateway itself runs in.
    """
    inherited = {
        name: value
        for name, value in environ.items()
        if (name.upper() in INHERITED or name.upper().startswith(INHERITED_PREFIXES))
        and not name.upper().startswith(KEPT_BACK_PREFIXES)
    }
    return {**inherited, **resource.env}


async def start_process(resource: McpServerResource) -> Process:
    """Start a resource's command, without a shell, as the leader of a session and process group of its own.

    Raises:
        BackendUnavailable: it cannot be started.
    """
    environment = child_environment(resource)
    command = resource.command or ""
    if sys.platform == "win32":  # there a bare `npx` does not find `npx.cmd`
        command = shutil.which(command, path=environment.get("PATH")) or command
    try:
        process = await anyio.open_process(
            [command, *resource.args], env=environment, cwd=resource.cwd, start_new_session=True
        )
    except (OSError, ValueError) as error:
        problem = await _why_not_started(resource, error)
        raise BackendUnavailable(resource.name, f"cannot start: {problem}", not_sent=True) from error
    # Never the arguments: they may hold a secret.
    logger.debug("server '%s': started '%s' as process %d", resource.name, resource.command, process.pid)
    return process


async def _why_not_started(resource: McpServerResource, error: OSError | ValueError) -> str:
    command = f"command '{resource.command}'"
    if resource.cwd is not None and not await anyio.Path(resource.cwd).is_dir():
        return f"the directory '{resource.cwd}' was not found. Create it or correct 'cwd'."
    match error:
        case FileNotFoundError() | NotADirectoryError():
            more = " What stands behind its name belongs into 'args'." if " " in str(resource.command) else ""
            return f"{command} was not found. Install it or correct 'command'.{more}"
        case PermissionError():
            return f"no permission to run {command}. Make it executable, or correct 'command' or 'cwd'."
    return f"{command} failed ({getattr(error, 'strerror', error)}). Correct 'command', 'args' or 'env'."


async def receive(stream: ByteReceiveStream, max_bytes: int) -> bytes:
    """What a pipe has next; nothing once it has ended."""
    try:
        return await stream.receive(max_bytes)
    except STREAM_ENDED:
        return b""


class LineSplitter:
    """Splits chunks of bytes into lines, looking at each byte once and keeping no more than one line.

    Args:
        limit: the longest line, in bytes.
        too_long: what to raise when a line grows longer; None cuts it.
    """

    def __init__(self, limit: int, too_long: BackendError | None = None) -> None:
        self._limit, self._too_long = limit, too_long
        self._line = bytearray()

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            self._keep(piece)
            yield self.take()
        self._keep(rest)

    def take(self) -> bytes:
        """What there is of the current line; the next one begins."""
        line = bytes(self._line)
        self._line.clear()
        return line

    def _keep(self, piece: bytes) -> None:
        room = self._limit - len(self._line)
        if len(piece) > room and self._too_long is not None:
            self._line.clear()  # the error leads back to this object, so that it may live on for a while
            raise self._too_long
        self._line += piece[:room]


class Stderr:
    """What a process says to its operator: logged line by line under `apollos.server.<name>`, and the last
    lines kept for the error that tells of its end. Values from `env` are replaced by their names in both."""

    def __init__(self, resource: McpServerResource, log: Callable[[str], None] | None = None) -> None:
        self.ended = anyio.Event()
        self._log = log
        self._logger = logging.getLogger(f"apollos.server.{resource.name}")
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._mask = mask_for(resource)

    async def follow(self, stream: ByteReceiveStream) -> None:
        """Until the stream ends."""
        lines = LineSplitter(_STDERR_BYTES)
        while chunk := await receive(stream, _STDERR_BYTES):
            for line in lines.feed(chunk):
                self._note(line)
            await anyio.lowlevel.checkpoint()
        self._note(lines.take())
        self.ended.set()

    def last_words(self) -> str:
        """The end of what was said, in one line and without control characters."""
        return in_one_line(self._lines)

    def _note(self, raw: bytes) -> None:
        line = self._mask(raw.decode(errors="replace").rstrip())
        if not line:
            return
        self._lines.append(line)
        if self._log is not None:
            self._log(line)
        if self._logger.isEnabledFor(logging.INFO):
            self._logger.info("%s", _escape(line))


def secret_values(resource: McpServerResource) -> Iterator[tuple[str, str]]:
    """Names and values of what may be a secret."""
    yield from resource.env.items()
    yield from resource.docker_secrets.items()


def mask_for(resource: McpServerResource, more: Iterable[tuple[str, str]] = ()) -> Callable[[str], str]:
    """Replaces what may be a secret of this server by its name. Of a secret with several lines, each is one too: what
    a server says is looked at line by line.

    Args:
        more: names and values that the record does not hold, but only refers to.
    """
    named = [(part, name) for name, value in (*secret_values(resource), *more) for part in (value, *value.splitlines())]
    secrets = [(part, name) for part, name in dict.fromkeys(named) if len(part) >= _SECRET_LENGTH]
    secrets.sort(key=lambda secret: len(secret[0]), reverse=True)

    def mask(text: str) -> str:
        for value, name in secrets:
            text = text.replace(value, f"[{name}]")
        return text

    return mask


def in_one_line(lines: Iterable[str]) -> str:
    """The end of what was said, without control characters, for an error."""
    plain = (_TERMINAL_SEQUENCE.sub("", line) for line in lines)
    words = " | ".join("".join(filter(str.isprintable, line)).strip() for line in plain)
    return words if len(words) <= _LAST_WORDS else "…" + words[1 - _LAST_WORDS :]


def _escape(text: str) -> str:
    """Without anything that could end the log line, colour a terminal, or turn the direction of text."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


class ProcessGroup:
    """A process and everything that it started, as one thing to end. On Windows: the process alone."""

    def __init__(self, leader: Process) -> None:
        self.gone = anyio.Event()
        """Set once nobody is left."""
        self._leader = leader

    def signal(self, signum: int) -> bool:
        """Signal all of it; 0 only asks. False once nobody is left: from then on the number may be a
        stranger's, and is not signalled again."""
        if self.gone.is_set():
            return False
        if sys.platform == "win32":
            if signum and self._leader.returncode is None:
                self._leader.terminate()
            return self._leader.returncode is None
        try:
            os.killpg(self._leader.pid, signum)
        except ProcessLookupError:
            self.gone.set()
        except PermissionError:  # all of it runs as somebody else (sudo); it is there all the same
            pass
        return not self.gone.is_set()

    async def wait(self) -> None:
        """Until nobody is left."""
        await self._leader.wait()
        while self.signal(0):  # noqa: ASYNC110  # nobody is told of the end of other people's children
            await anyio.sleep(_POLL)
        self.gone.set()

    def how_it_ended(self, returncode: int) -> str:
        return f"exit code {returncode}" if returncode >= 0 else f"killed by signal {-returncode}"

    async def end(self, deadline: float, *, is_starting: bool = False) -> None:
        """See it out within `deadline` seconds. Its input has been closed.

        Args:
            is_starting: it has said nothing yet.
        """
        try:
            for signum, share in _ENDING_EARLY if is_starting else _ENDING:
                self.signal(signum)
                with anyio.move_on_after(deadline * share):
                    while self.signal(0):  # noqa: ASYNC110  # who waits for it may be cancelled when the loop ends
                        await anyio.sleep(_POLL)
                    return
        finally:
            self.signal(SIGKILL)  # also when cancelled from outside of anyio, which no shield holds off
