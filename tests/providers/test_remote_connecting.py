"""Streamable HTTP, when there is no connection to the server, or none that lasts: who waits hears of it at once."""

from __future__ import annotations

import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import anyio
import anyio.abc
import pytest
from anyio.streams.tls import TLSListener
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.helpers.http_backend import ENDED, HURRY, http_backend, open_line, remote, was_not_sent
from tests.helpers.ports import dead_port, silent_port
from tests.helpers.processes import end

pytestmark = pytest.mark.core


@asynccontextmanager
async def serving(
    handle: Callable[[anyio.abc.ByteStream], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """A server that speaks anything but HTTP; its port."""
    listener: anyio.abc.Listener[anyio.abc.ByteStream]
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port: int = listener.extra(anyio.abc.SocketAttribute.local_port)
    if tls is not None:
        listener = TLSListener(listener, tls)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield port
        tasks.cancel_scope.cancel()


def self_signed(folder: Path) -> ssl.SSLContext:
    """A certificate for 127.0.0.1 that no authority has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    signed = made.add_extension(address, critical=False).sign(key, hashes.SHA256())
    pem, nothing = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, nothing)
    (folder / "both.pem").write_bytes(signed.public_bytes(pem) + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    return context


async def test_a_refused_connection() -> None:
    with dead_port() as port:
        async with open_line(remote(f"http://127.0.0.1:{port}/mcp")) as line:
            error = await line.failure()
    assert error["message"].startswith("server 'docs': no connection (connection refused).")
    assert was_not_sent(error)


async def test_an_unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    async with open_line(remote("http://nowhere.invalid/mcp")) as line:
        error = await line.failure()
    assert error["message"] == "server 'docs': its host name was not found. Correct 'url'."
    assert was_not_sent(error)


async def test_a_connection_that_is_not_made_in_time() -> None:
    with silent_port() as port:  # it takes the connection, and then never says a word of TLS
        async with open_line(remote(f"https://127.0.0.1:{port}/mcp", timeouts=HURRY)) as line:
            error = await line.failure()
    assert error["message"].startswith("server 'docs': no connection within 0.2 seconds.")
    assert was_not_sent(error)


async def test_a_server_without_tls() -> None:
    async with http_backend() as backend, open_line(remote(backend.url.replace("http:", "https:"))) as line:
        error = await line.failure()
    assert error["message"].startswith("server 'docs': the TLS handshake failed.")
    assert was_not_sent(error)


async def test_a_certificate_that_nobody_vouches_for(tmp_path: Path) -> None:
    async def never(_: anyio.abc.ByteStream) -> None:
        raise AssertionError("we went on without a certificate that we trust")

    certificate = self_signed(tmp_path)
    async with serving(never, certificate) as port, open_line(remote(f"https://127.0.0.1:{port}/mcp")) as line:
        error = await line.failure()
    assert error["message"].startswith("server 'docs': its TLS certificate is not valid")
    assert was_not_sent(error)


HOLDS_A_REQUEST = """
import socket, sys, time
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
print(len(connection.recv(65536)), flush=True)
time.sleep(600)
"""


async def test_a_server_that_is_killed_in_mid_call() -> None:
    process = await anyio.open_process([sys.executable, "-c", HOLDS_A_REQUEST], stdin=None, stderr=None)
    try:
        assert process.stdout is not None
        port = int(await process.stdout.receive())
        async with open_line(remote(f"http://127.0.0.1:{port}/mcp")) as line:
            await line.ask(1)
            assert await process.stdout.receive()  # the request is there
            process.kill()
            with anyio.fail_after(1):
                assert await line.inbox.error_for(1) == ENDED
            assert not was_not_sent(line.inbox.messages[0]["error"])
    finally:
        await end(process, signal.SIGKILL)


async def test_something_that_is_not_http() -> None:
    async def greet(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"220 mail.example.com ready\r\n")

    async with serving(greet) as port, open_line(remote(f"http://127.0.0.1:{port}/mcp")) as line:
        assert (await line.failure())["message"] == "server 'docs': answered with something that is not HTTP."
