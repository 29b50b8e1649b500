"""A real redis-server for tests: on a free port, with a password, its files in a folder of its own.

It writes each change to disk before it answers, so that a killed one that is started again has lost nothing. Everything
here blocks for a moment, so that a fixture of any scope and a test of any kind may use it.
"""

from __future__ import annotations

import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.helpers.ports import free_port

PASSWORD = "pass-word-of-tests"
START_SECONDS = 15.0
_ATTEMPTS = 5
"""To get a port: between a look for a free one and redis-server's own bind somebody else may take it."""


@dataclass
class RedisServer:
    """One redis-server. It can be stopped, killed, frozen and started again at the same port, with what it knew.

    Args:
        certificates: a folder with `ca.pem`, `cert.pem` and `key.pem`; with it the server speaks TLS alone.
    """

    folder: Path
    port: int
    certificates: Path | None = None
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """With the password."""
        return f"{'rediss' if self.certificates else 'redis'}://:{PASSWORD}@127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None, "redis-server does not run"
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            RuntimeError: it ended instead, or did not answer in time.
        """
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["redis-server", str(self._write_configuration())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"redis-server does not run:\n{(self.folder / 'log').read_text()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze it: connections stay open, and nothing answers."""
        assert self._process is not None, "redis-server does not run"
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None, "redis-server does not run"
        self._process.send_signal(signal.SIGCONT)

    def ask(self, *words: str) -> bytes:
        """The raw answer to one command, up to 64 KiB."""
        with self._connection() as line:
            line.sendall(_command("AUTH", PASSWORD))
            line.recv(1024)
            line.sendall(_command(*words))
            return line.recv(65536)

    def _answers(self) -> bool:
        with suppress(OSError):
            return self.ask("PING") == b"+PONG\r\n"  # not while it reads its files
        return False

    def _connection(self) -> socket.socket:
        line = socket.create_connection(("127.0.0.1", self.port), timeout=2)
        if self.certificates is None:
            return line
        context = ssl.create_default_context(cafile=str(self.certificates / "ca.pem"))
        return context.wrap_socket(line, server_hostname="127.0.0.1")

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(how)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _write_configuration(self) -> Path:
        lines = ["bind 127.0.0.1", f"dir {self.folder}", f"requirepass {PASSWORD}", "save ''", "daemonize no"]
        lines += ["appendonly yes", "appendfsync always"]
        if self.certificates is None:
            lines += [f"port {self.port}"]
        else:
            lines += ["port 0", f"tls-port {self.port}", "tls-auth-clients no"]
            lines += [f"tls-ca-cert-file {self.certificates / 'ca.pem'}"]
            lines += [f"tls-cert-file {self.certificates / 'cert.pem'}"]
            lines += [f"tls-key-file {self.certificates / 'key.pem'}"]
        path = self.folder / "redis.conf"
        path.write_text("\n".join(lines) + "\n")
        return path


@contextmanager
def redis_server(*, certificates: Path | None = None) -> Iterator[RedisServer]:
    """A redis-server that runs while the block does.

    Args:
        certificates: see `RedisServer`; `tests.helpers.certificates` makes such a folder.

    Where redis-server is not installed, the test is skipped with a reason, which in CI is a failure.
    """
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (Debian: apt-get install redis-server)")
    with tempfile.TemporaryDirectory(prefix="redis-test-") as folder:
        server = _started(Path(folder), certificates)
        try:
            yield server
        finally:
            server.kill()


def _started(folder: Path, certificates: Path | None) -> RedisServer:
    for attempt in range(_ATTEMPTS):
        server = RedisServer(folder, free_port(), certificates)
        try:
            server.start()
        except RuntimeError:
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            return server
    raise AssertionError("not reached")


def _command(*words: str) -> bytes:
    parts = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
    return f"*{len(words)}\r\n{''.join(parts)}".encode()
