"""The wire to a container over stdio: made, attached to, and only then started, so that no output is lost.

A launcher comes in with `container_stdio_wire`. To `stdio` a container is one more process, with a stdin, a stdout and
a stderr: the same caps, deadlines and obituaries hold. Called are `attach` for the streams and the container manager
for everything else: starting, signalling, why it ended, removal.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import anyio
from anyio.abc import ByteReceiveStream, Process

from providers.attach import GONE, Attached, AttachRefused, Input, Output, attach
from providers.container import Container, ContainerStatus
from providers.docker import McpContainerManager
from providers.errors import BackendError, BackendUnavailable
from providers.process import ProcessGroup
from providers.resource import McpServerResource
from providers.stdio import StdioWire, running
from providers.wire import Deliver, Wire

logger = logging.getLogger(__name__)

_ATTACH_SECONDS = 5.0
_NOTICE_SECONDS = 2.0
"""How long Docker may take to know that a container has ended whose output has."""
_LOOK_EVERY = 0.02
_UNKNOWN = -1


@asynccontextmanager
async def container_stdio_wire(
    resource: McpServerResource,
    deliver: Deliver,
    manager: McpContainerManager,
    scope: str,
    *,
    discard: Callable[[Container], None],
    log: Callable[[str], None] | None = None,
) -> AsyncIterator[Wire]:
    """A container of a resource's image, for the length of the block.

    Args:
        scope: whose it is.
        discard: takes the container when the block is left, and has it removed. It may not wait: FastMCP's client
            cancels what it leaves, in a way that no shield of ours holds off.
        log: takes the lines that it writes to stderr.

    Raises:
        BackendUnavailable: it cannot be made or started; the message says why.
    """
    async with _container_process(resource, manager, scope, discard) as process:
        wire = ContainerWire(resource, process, deliver, group=process.group, log=log)
        async with running(wire, resource.timeouts.shutdown):
            yield wire


class Ended(NamedTuple):
    """A container that ran to its end, and what it wrote."""

    stdout: bytes
    stderr: bytes
    code: int
    how: str
    """In words: "it ended with exit code 1"."""
    is_cut: bool
    """Whether it wrote more than it may, and was ended for that."""


async def run_container(
    resource: McpServerResource,
    manager: McpContainerManager,
    scope: str,
    *,
    discard: Callable[[Container], None],
    max_bytes: int,
) -> Ended:
    """Run a container of a resource's image to its end, with nothing on its stdin.

    Args:
        scope, discard: as for `container_stdio_wire`.
        max_bytes: what it may write to stdout, and to stderr.

    Raises:
        BackendUnavailable: it cannot be made or started; the message says why.
    """
    async with _container_process(resource, manager, scope, discard, has_stdin=False) as process:
        written = bytearray(), bytearray()
        async with anyio.create_task_group() as tasks:
            for stream, taken in zip((process.stdout, process.stderr), written, strict=True):
                tasks.start_soon(_take, stream, taken, process, max_bytes)
        code = await process.wait()
        is_cut = any(len(taken) > max_bytes for taken in written)
        stdout, stderr = (bytes(taken[:max_bytes]) for taken in written)
        return Ended(stdout, stderr, code, process.how_it_ended(), is_cut)


async def _take(stream: ByteReceiveStream, taken: bytearray, process: ContainerProcess, max_bytes: int) -> None:
    with suppress(*GONE):
        async for chunk in stream:
            taken += chunk[: max_bytes + 1 - len(taken)]
            if len(taken) > max_bytes:
                process.kill()  # and what is on its way is read to its end, because stderr comes on the same line


@asynccontextmanager
async def _container_process(
    resource: McpServerResource,
    manager: McpContainerManager,
    scope: str,
    discard: Callable[[Container], None],
    *,
    has_stdin: bool = True,
) -> AsyncIterator[ContainerProcess]:
    container = await manager.create_server(resource, scope, has_stdin=has_stdin)
    try:
        attached = await _attached(manager, container)
        try:
            process = ContainerProcess(manager, container, attached)
            async with anyio.create_task_group() as tasks:
                await manager.start_created(container)
                tasks.start_soon(process.run)
                try:
                    yield process
                finally:
                    process.is_done.set()
        finally:
            await attached.aclose()
    finally:
        discard(container)


async def _attached(manager: McpContainerManager, container: Container) -> Attached:
    version = await manager.api_version(container.server)
    try:
        with anyio.fail_after(_ATTACH_SECONDS):
            return await attach(manager.engine, lambda: manager.tls_context, version, container.id)
    except AttachRefused as error:
        raise BackendUnavailable(container.server, f"{error}.", not_sent=True) from None
    except (TimeoutError, *GONE):
        problem = f"Docker did not attach to its container ({manager.engine})."
        raise BackendUnavailable(container.server, problem, not_sent=True) from None


async def status_at_end(manager: McpContainerManager, container: Container, within: float) -> ContainerStatus:
    """The status of a container that seems to have ended. Docker may hear of that a little later than we do, so it is
    asked again for `within` seconds.

    Raises:
        BackendError: Docker does not say.
    """
    status = await manager.get_status(container)
    with anyio.move_on_after(within):
        while status.is_running:
            await anyio.sleep(_LOOK_EVERY)
            status = await manager.get_status(container)
    return status


async def remove(manager: McpContainerManager, container: Container, grace: float = 0.0) -> None:
    """Remove a container; if the engine does not let us now, the next reconciliation does."""
    try:
        await manager.stop_server(container, grace)
    except BackendError as error:
        logger.warning("%s Its container '%s' is removed as soon as Docker answers again.", error, container.name)


class ContainerWire(StdioWire):
    last_output = _NOTICE_SECONDS + 1.0


class ContainerProcess(Process):
    """A container as `anyio` sees a process. It has ended once its output has, and Docker says so, too."""

    def __init__(self, manager: McpContainerManager, container: Container, attached: Attached) -> None:
        self._manager, self._container, self._attached = manager, container, attached
        self._status: ContainerStatus | None = None
        self._returncode: int | None = None
        self._ended = anyio.Event()
        self.is_done = anyio.Event()
        """Set by who has no more use for it."""
        self.group = ContainerGroup(self)

    def __repr__(self) -> str:
        return f"<ContainerProcess {self._container.name} {self._container.id[:12]} returncode={self._returncode}>"

    async def run(self) -> None:
        """Take its output, pass signals on and notice its end, until `is_done`. Shielded: who cancels the wire wants
        the container to end, and that takes all three."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                for work in (self._attached.run, self._watch, self.group.pass_signals_on):
                    tasks.start_soon(work)
                await self.is_done.wait()
                tasks.cancel_scope.cancel()

    async def _watch(self) -> None:
        """Until it has ended, and we know how."""
        await self._attached.ended.wait()
        if not await self._has_ended():  # its output is lost to us, or it closed it: it is of no use any more
            await self.send(signal.SIGKILL)
            await self._has_ended()
        code = self._status.exit_code if self._status and not self._status.is_running else None
        self._returncode = _UNKNOWN if code is None else code
        self._ended.set()
        self.group.gone.set()

    async def _has_ended(self) -> bool:
        with anyio.move_on_after(_NOTICE_SECONDS), suppress(BackendError):
            self._status = await status_at_end(self._manager, self._container, _NOTICE_SECONDS)
        return self._status is not None and not self._status.is_running

    def how_it_ended(self) -> str:
        if self._status is None or self._returncode == _UNKNOWN:
            return "the connection to Docker ended"
        return f"it {self._status.obituary()}"

    async def send(self, signum: int) -> None:
        """Send a signal, if Docker lets us."""
        try:
            await self._manager.signal(self._container, signal.Signals(signum).name)
        except BackendError as error:
            logger.debug("%s", error)

    # --- what anyio asks of a process

    @property
    def pid(self) -> int:
        return 0

    @property
    def returncode(self) -> int | None:
        return self._returncode

    @property
    def stdin(self) -> Input:
        return self._attached.stdin

    @property
    def stdout(self) -> Output:
        return self._attached.stdout

    @property
    def stderr(self) -> Output:
        return self._attached.stderr

    async def wait(self) -> int:
        await self._ended.wait()
        assert self._returncode is not None
        return self._returncode

    async def aclose(self) -> None:
        return None

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, signal: int) -> None:
        self.group.signal(signal)


class ContainerGroup(ProcessGroup):
    """A container and everything in it. Signals are passed on by a task, because Docker takes its time."""

    def __init__(self, process: ContainerProcess) -> None:
        super().__init__(process)
        self._process = process
        self._wanted: list[int] = []
        self._asked = anyio.Event()

    def signal(self, signum: int) -> bool:
        if self.gone.is_set():
            return False
        if signum and signum not in self._wanted:
            self._wanted.append(signum)
            self._asked.set()
        return True

    async def pass_signals_on(self) -> None:
        """Until cancelled."""
        sent = 0
        while True:
            await self._asked.wait()
            self._asked = anyio.Event()
            while sent < len(self._wanted):
                sent += 1
                await self._process.send(self._wanted[sent - 1])

    async def wait(self) -> None:
        await self.gone.wait()

    def how_it_ended(self, returncode: int) -> str:
        return self._process.how_it_ended()
