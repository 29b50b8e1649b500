"""Free ports on loopback, for servers that cannot be told to take port 0 themselves."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def free_port() -> int:
    """A port that was free a moment ago.

    Prefer port 0 in the server itself: between this call and the server's own bind somebody else may take it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def dead_port() -> Iterator[int]:
    """A port that refuses connections while the block runs: bound, so that nobody else gets it, and never
    listened on."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@contextmanager
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never says a word: the kernel accepts them, nobody reads."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@contextmanager
def stranger_at(port: int) -> Iterator[bytearray]:
    """Somebody else who listens on a port, and what is sent there."""
    heard = bytearray()

    def listen() -> None:
        with suppress(OSError):
            while True:
                line, _ = door.accept()
                with line, suppress(TimeoutError):
                    line.settimeout(1)
                    while piece := line.recv(4096):
                        heard.extend(piece)

    with socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(("127.0.0.1", port))
        door.listen()
        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield heard
        door.shutdown(socket.SHUT_RDWR)
        thread.join(10)
