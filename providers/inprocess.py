"""The wire to a FastMCP server inside this process: tools of one's own, written in Python.

A session with it is opened, pooled, isolated and ended like any other, so that nothing above has a special case. The
object is loaded once per configuration of the server; its sessions share the process, as all in-process code does.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import ObjectReceiveStream, ObjectSendStream
from anyio.streams.memory import MemoryObjectSendStream
from fastmcp import FastMCP
from mcp.shared.message import SessionMessage

from providers import lines, low_level
from providers.errors import BackendUnavailable
from providers.resource import McpServerResource
from providers.wire import Deliver, Message, Wire

logger = logging.getLogger(__name__)


class PythonServer:
    """The FastMCP object that `python = "path/to/file.py:object"` names, loaded on first use in a worker thread.

    Args:
        start_soon: starts a task that lives as long as the gateway.
    """

    def __init__(self, resource: McpServerResource, start_soon: Callable[..., object]) -> None:
        self._name, self._start_soon = resource.name, start_soon
        self._life: _Life | None = None
        self._path, _, self._attribute = (resource.python or "").rpartition(":")
        self._server: FastMCP[Any] | None = None
        self._loading = anyio.Lock()

    async def load(self) -> FastMCP[Any]:
        """The server object.

        Raises:
            BackendUnavailable: the file cannot be imported, or holds no such FastMCP object.
        """
        async with self._loading:
            if self._server is None:
                self._server = await anyio.to_thread.run_sync(self._import, abandon_on_cancel=True)
            return self._server

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FastMCP[Any]]:
        """The server within its lifespan, which lasts from its first session to its last. It has a task of its own:
        FastMCP ends a lifespan with the session that began it, though others go on.

        Raises:
            BackendUnavailable: it cannot be loaded or started.
        """
        server = await self.load()
        while self._life is not None and self._life.stop.is_set():
            await self._life.ended.wait()
        if self._life is None:
            self._life = _Life()
            self._start_soon(self._live, server, self._life)
        life = self._life
        life.sessions += 1
        try:
            await life.started.wait()
            if life.ended.is_set():
                raise BackendUnavailable(self._name, "could not be started. See the gateway's log.", not_sent=True)
            yield server
        finally:
            life.sessions -= 1
            if not life.sessions:
                life.stop.set()

    async def _live(self, server: FastMCP[Any], life: _Life) -> None:
        try:
            async with low_level.lifespan(server):
                life.started.set()
                await life.stop.wait()
        except Exception as error:  # a task ends here: a server's fault must not end the gateway
            logger.warning("server '%s': its lifespan failed", self._name, exc_info=error)
        finally:
            self._life = None
            life.stop.set()
            life.ended.set()
            life.started.set()

    def _import(self) -> FastMCP[Any]:
        module = self._run_file()
        server = getattr(module, self._attribute, None)
        if not isinstance(server, FastMCP):
            raise BackendUnavailable(
                self._name,
                f"'{self._path}' has no FastMCP object named '{self._attribute}'. Correct 'python'.",
            )
        return server

    def _run_file(self) -> ModuleType:
        module_name = f"apollos_server_{self._name.replace('-', '_')}"
        spec = importlib.util.spec_from_file_location(module_name, Path(self._path))
        if spec is None or spec.loader is None:
            raise BackendUnavailable(self._name, f"'{self._path}' is not a Python file. Correct 'python'.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:  # somebody else's file may raise anything; it becomes our error here
            del sys.modules[module_name]
            logger.warning("server '%s': its file could not be imported", self._name, exc_info=error)
            raise BackendUnavailable(
                self._name,
                f"'{self._path}' cannot be imported ({type(error).__name__}; the log has the details).",
            ) from None
        return module


class _Life:
    """One lifespan of a server in this process."""

    def __init__(self) -> None:
        self.sessions = 0
        self.started, self.stop, self.ended = anyio.Event(), anyio.Event(), anyio.Event()


class _InProcessWire(Wire):
    identity_in_meta = True

    def __init__(self, server: str, inbox: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
        super().__init__(server)
        self._inbox = inbox

    async def send(self, message: Message, headers: Mapping[str, str]) -> None:
        try:
            await self._inbox.send(lines.to_session_message(message))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise BackendUnavailable(self.server, "has stopped. See its log.", not_sent=True) from None


@asynccontextmanager
async def inprocess_wire(
    resource: McpServerResource, running: Callable[[], AbstractAsyncContextManager[FastMCP[Any]]], deliver: Deliver
) -> AsyncIterator[Wire]:
    """Open a session's wire to a server in this process.

    Args:
        running: gives the server, within its lifespan.

    Raises:
        BackendUnavailable: its file cannot be loaded.
    """
    requests, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    write, answers = anyio.create_memory_object_stream[SessionMessage](0)
    wire = _InProcessWire(resource.name, requests)
    async with requests, read, write, answers, running() as server, anyio.create_task_group() as tasks:
        tasks.start_soon(_serve, wire, server, read, write)
        tasks.start_soon(_read, answers, deliver)
        try:
            yield wire
        finally:
            tasks.cancel_scope.cancel()
            wire.closed.set()


async def _serve(
    wire: Wire,
    server: FastMCP[Any],
    read: ObjectReceiveStream[SessionMessage | Exception],
    write: ObjectSendStream[SessionMessage],
) -> None:
    async with read, write:
        try:
            await low_level.serve_in_memory(server, read, write)  # type: ignore[arg-type]
        except Exception as error:  # a server's task ends here: its fault must not end the gateway
            logger.warning("server '%s' stopped", wire.server, exc_info=error)
        wire.fail(BackendUnavailable(wire.server, "stopped. See its log."))


async def _read(answers: ObjectReceiveStream[SessionMessage], deliver: Deliver) -> None:
    async for item in answers:
        message, _ = lines.from_session_message(item)
        await deliver(message)
