"""The wire to a local process: JSON-RPC messages as lines over its stdin and stdout.

`client` comes in, by `stdio_wire`; called are `process`, which starts and ends it, and `guardian`, which ends
it when the gateway no longer can. The room is built against what processes do wrong: they flood, never end a
line, write anything to stdout, do not read, do not die, and leave children behind. None of that may cost
another server's callers anything.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel
import pydantic_core
from anyio.abc import ByteReceiveStream, Process

from providers import guardian
from providers.errors import BackendError, BackendProtocolError, BackendTimeout, BackendUnavailable
from providers.process import (
    SIGKILL,
    STREAM_ENDED,
    LineSplitter,
    ProcessGroup,
    Stderr,
    receive,
    start_process,
)
from providers.resource import McpServerResource
from providers.wire import MAX_MESSAGE_BYTES, Deliver, Message, Wire, error_answer

_CHUNK_BYTES = 64 * 1024

_LINES_PER_TURN = 64
"""After so many lines of one chunk the others get a turn."""

_SESSION_GONE = (anyio.ClosedResourceError, anyio.BrokenResourceError)
"""What `deliver` raises when the session above no longer listens."""

logger = logging.getLogger(__name__)


@asynccontextmanager
async def stdio_wire(
    resource: McpServerResource,
    deliver: Deliver,
    *,
    shutdown: float | None = None,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
) -> AsyncIterator[StdioWire]:
    """Start a resource's command and keep it for the length of the block.

    No shell is involved. The environment is `process.child_environment`: a small part of the gateway's, and
    the resource's own. What the process writes to stderr goes to the logger `apollos.server.<name>`. Leaving
    the block ends the process and everything that it started: its input is closed, then come SIGTERM and
    SIGKILL.

    Args:
        resource: a resource with a `command`.
        deliver: takes the messages, in order.
        shutdown: seconds within which the block is left; the resource's own by default.
        max_message_bytes: the longest line that is accepted, in bytes.

    Raises:
        BackendUnavailable: the command cannot be started.
    """
    with anyio.CancelScope(shield=True):  # once forked, a process must be in our hands before a cancellation strikes
        process = await start_process(resource)
    wire = StdioWire(resource, process, deliver, max_message_bytes)
    with guardian.watching(process.pid):
        async with running(wire, resource.timeouts.shutdown if shutdown is None else shutdown):
            yield wire


@asynccontextmanager
async def running(wire: StdioWire, shutdown: float) -> AsyncIterator[None]:
    """Run a wire for the length of the block, and end its process within `shutdown` seconds afterwards."""
    fault: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wire.run)
        try:
            yield
        except Exception as error:  # noqa: BLE001  # raised below as it is; the task group would wrap it
            fault = error
        finally:
            with anyio.CancelScope(shield=True):
                await wire.close(shutdown)
    if fault is not None:
        raise fault


class _Outgoing(NamedTuple):
    request_id: Any
    """None for what nobody answers."""
    line: bytes


class StdioWire(Wire):
    """An open line to one process.

    Four tasks: one reads messages, one reads stderr, one writes, one waits for the end. Only the writer
    touches stdin: lines never interleave, and a caller who is cancelled never leaves half a line behind.
    """

    identity_in_meta = True

    last_output = 0.5
    """Seconds that the last output of an ended process is waited for: a child of it may hold the pipe for ever."""

    def __init__(
        self,
        resource: McpServerResource,
        process: Process,
        deliver: Deliver,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        *,
        group: ProcessGroup | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(resource.name)
        self.dropped_lines = 0
        """Lines of stdout that were no JSON object."""
        self._process = process
        self._group = group or ProcessGroup(process)
        self._stderr = Stderr(resource, log)
        self._running = anyio.CancelScope(shield=True)
        self._deliver = deliver
        self._delivering = anyio.CancelScope()
        self._max_message_bytes = max_message_bytes
        self._has_spoken = False
        self._stdin_ended = anyio.Event()
        self._stdout_ended = anyio.Event()
        self._write_timeout = resource.timeouts.call
        # No buffer: a sender waits until the writer takes its line, and withdraws it when cancelled before.
        self._outbox, self._inbox = anyio.create_memory_object_stream[_Outgoing](0)

    def __repr__(self) -> str:
        state = "failed" if self.failure else "closed" if self.closed.is_set() else "open"
        return f"<StdioWire {self.server} pid={self._process.pid} {state}>"

    async def run(self) -> None:
        """The wire's work, until `close` has seen the process out. Shielded: who cancels the block wants the
        process to end, and that takes all four."""
        with self._running:
            async with anyio.create_task_group() as tasks:
                for work in (self._read_messages, self._read_stderr, self._write_messages, self._await_end):
                    tasks.start_soon(work)

    async def send(self, message: Message, headers: Mapping[str, str]) -> None:
        """Hand one message to the writer; returns once it is being written.

        Raises:
            BackendUnavailable: the wire is dead, and the message was not sent.
        """
        request_id = message.get("id") if "method" in message else None
        try:
            await self._outbox.send(_Outgoing(request_id, pydantic_core.to_json(message) + b"\n"))
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            problem = self.failure.problem if self.failure else "its process has ended or is ending."
            raise BackendUnavailable(self.server, problem, not_sent=True) from None

    def fail(self, error: BackendError) -> None:
        super().fail(error)
        self._stop_traffic()

    async def close(self, shutdown: float) -> None:
        """End the process and everything that it started, within `shutdown` seconds; never raises."""
        self._stop_traffic()
        try:
            await self._group.end(shutdown, is_starting=not self._has_spoken)
            if self._process.returncode is None and not self._group.gone.is_set():  # asyncio hears of it later
                logger.warning("server '%s': process %d could not be ended", self.server, self._process.pid)
            else:
                await self._process.aclose()
        finally:
            self._running.cancel()

    def _stop_traffic(self) -> None:
        self.closed.set()
        self._delivering.cancel()
        self._stop_sending()

    def _stop_sending(self) -> None:
        self._outbox.close()  # the writer finishes its line, then ends the process's input
        self._inbox.close()  # who waits to send waits no longer

    def _give_up(self, error: BackendError) -> None:
        """The backend is to blame: no more traffic, and nothing of it stays."""
        if not self.closed.is_set():
            self.fail(error)
            self._group.signal(SIGKILL)

    # ------------------------------------------------------------------------------------------------ what it writes

    async def _read_messages(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        try:
            with self._delivering, suppress(*_SESSION_GONE):
                await self._deliver_lines(stdout)
            while await receive(stdout, _CHUNK_BYTES):
                pass  # a process that is to end, and has more to say, must not be held up by a full pipe
        except BackendProtocolError as too_long:
            self._give_up(too_long)
        except Exception:  # the task ends here: a fault of the session above fails this wire, not all that use it
            logger.exception("server '%s': a message could not be delivered", self.server)
            self._give_up(BackendProtocolError(self.server, "sent a message that could not be handled. See the log."))
        self._stdout_ended.set()
        with anyio.move_on_after(self.last_output):
            await self._process.wait()
            return
        self._give_up(BackendUnavailable(self.server, "closed its stdout while it ran on. It was ended."))

    async def _deliver_lines(self, stdout: ByteReceiveStream) -> None:
        cap = f"{self._max_message_bytes / 2**20:g} MiB"
        problem = f"sent a line of more than {cap}, the most that one message may have. It was ended."
        lines = LineSplitter(self._max_message_bytes, BackendProtocolError(self.server, problem))
        while chunk := await receive(stdout, _CHUNK_BYTES):
            for number, line in enumerate(lines.feed(chunk), start=1):
                message = _parse(line)
                if message is not None:
                    self._has_spoken = True
                    await self._deliver(message)
                elif line.strip():
                    self._drop_line()
                if number % _LINES_PER_TURN == 0:
                    await anyio.lowlevel.checkpoint()

    def _drop_line(self) -> None:
        self.dropped_lines += 1
        if self.dropped_lines == 1:
            logger.warning(
                "server '%s': a line of its stdout is not a JSON object and was dropped; more of them are counted, "
                "not logged. It must write nothing but MCP there; logs belong on stderr.",
                self.server,
            )

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        await self._stderr.follow(self._process.stderr)

    # ------------------------------------------------------------------------------------------------- what it reads

    async def _write_messages(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            with suppress(anyio.ClosedResourceError):
                async for request_id, line in self._inbox:
                    try:
                        with anyio.fail_after(self._write_timeout):
                            await stdin.send(b"")  # asyncio sometimes needs a turn to notice that nobody reads
                            await stdin.send(line)
                    except TimeoutError:
                        problem = f"has not read its input for {self._write_timeout:g} s. It was ended."
                        self._give_up(BackendTimeout(self.server, problem))
                    except STREAM_ENDED:
                        await self._answer_unsent(request_id)
        finally:  # also when the event loop ends, and cancels all tasks at once
            with suppress(*STREAM_ENDED):
                await stdin.aclose()
            self._stdin_ended.set()

    async def _answer_unsent(self, request_id: Any) -> None:
        """Nobody reads that pipe any more, and nobody saw the whole line: its request may go to another process."""
        if request_id is None or self.closed.is_set():
            return
        error = BackendUnavailable(self.server, "the process ended before it read the request.", not_sent=True)
        with suppress(*_SESSION_GONE):
            await self._deliver(error_answer(request_id, error))

    # -------------------------------------------------------------------------------------------------- how it ends

    async def _await_end(self) -> None:
        returncode = await self._process.wait()
        if not self.closed.is_set():
            self._stop_sending()  # what was not written yet cannot be, and is answered before the wire fails
            with anyio.move_on_after(self.last_output):
                for ended in (self._stdin_ended, self._stdout_ended, self._stderr.ended):
                    await ended.wait()
        self._give_up(BackendUnavailable(self.server, self._obituary(returncode)))
        await self._group.wait()

    def _obituary(self, returncode: int) -> str:
        how = self._group.how_it_ended(returncode)
        when = "" if self._has_spoken else " before answering"
        words = self._stderr.last_words()
        said = f"its last words: {words}" if words else "it said nothing on stderr. Run its command by hand to see why."
        return f"the process ended{when} ({how}); {said}"


def _parse(line: bytes) -> Message | None:
    """The JSON object in a line, or None."""
    try:
        value = pydantic_core.from_json(line)
    except ValueError:
        value = _parse_damaged(line)
    return value if isinstance(value, dict) else None


def _parse_damaged(line: bytes) -> Any:
    """Once more, for text that was cut within a character: invalid UTF-8, or half of a surrogate pair. The
    rest is worth having, because somebody waits for it."""
    try:
        value = json.loads(line.decode(errors="replace"))
        return pydantic_core.from_json(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError):
        return None
