"""The commands for containers: `containers`, `logs`, `stop` and `prune`. They run beside the gateway.

The command line comes in. What is shown comes from the Docker engine, through the container manager with the identities
that gateways with this servers.toml have taken, and from what those wrote down. Nothing of anybody else's is touched.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import anyio
import anyio.to_thread

from composition import starting
from composition.columns import in_columns
from composition.parts import container_options, open_secrets
from composition.servers_file import Configuration, load_configuration
from providers import ownership
from providers.container import Container, ContainerStatus
from providers.container_log import harmless, last_lines
from providers.docker import McpContainerManager
from providers.errors import BackendError, ConfigurationError
from providers.hardening import relaxations
from providers.process import mask_for
from providers.resource import TransportType

_FOLLOW_EVERY = 0.5
_HEADER = ("NAME", "STATE", "TRANSPORT", "UPTIME", "MEMORY", "RESTARTS", "CONTAINER", "NOTES")


def register(commands: Any) -> None:
    """Add these commands to the command line."""
    commands.add_parser("containers", help="print a table of the containers").set_defaults(run=_command)
    logs = commands.add_parser("logs", help="print what a server in a container wrote to its log")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what it writes from now on")
    logs.add_argument("--tail", type=int, default=100, metavar="N", help="how many lines (default: %(default)s)")
    stop = commands.add_parser("stop", help="stop and remove a server's containers")
    for command in (logs, stop):
        command.add_argument("name", metavar="NAME", help="the server's name in servers.toml")
        command.set_defaults(run=_command)
    prune = commands.add_parser("prune", help="remove what gateways left behind at the Docker engine that were killed")
    prune.set_defaults(run=_command)


def _command(options: Any) -> int:
    return starting.run(partial(_run, load_configuration(starting.servers_path()), options))


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: a container, or a server without one that a gateway has something to say about."""

    name: str
    state: str
    transport: str
    started_at: datetime | None = None
    memory: int | None = None
    restarts: int = 0
    container: str = ""
    notes: str = ""

    def cells(self, now: datetime) -> tuple[str, ...]:
        return (
            self.name,
            self.state,
            self.transport,
            _span(now - self.started_at) if self.started_at else "-",
            f"{self.memory / 2**20:.0f} MiB" if self.memory else "-",
            str(self.restarts),
            self.container or "-",
            self.notes,
        )


def _span(length: Any) -> str:
    seconds = max(0, int(length.total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


@contextmanager
def managers(configuration: Configuration) -> Iterator[list[McpContainerManager]]:
    """A manager for each identity that gateways with this servers.toml have taken. None of them is held."""
    options = container_options(configuration)
    instances = ownership.known(options.state, options.configuration)
    found = [McpContainerManager(instance, host=options.host) for instance in instances]
    try:
        yield found
    finally:
        for manager in found:
            manager.close()


async def rows(configuration: Configuration, manager: McpContainerManager) -> list[Row]:
    """What there is to say about one gateway's servers."""
    record = await anyio.to_thread.run_sync(manager.instance.read)
    noted: Mapping[str, Any] = record.get("servers") or {}
    found: list[Row] = []

    async def look(listed: ContainerStatus) -> None:
        status = await manager.get_status(listed.container)
        memory = await manager.memory(listed.container) if status.is_running else None
        found.append(_row(configuration, status, memory, noted.get(listed.container.server) or {}))

    async with anyio.create_task_group() as tasks:
        for listed in await manager.list_servers():
            tasks.start_soon(look, listed)
    running = {row.name for row in found}
    for name, facts in noted.items():
        resource = configuration.resources.get(name)
        if resource is not None and name not in running and isinstance(facts, dict):
            row = Row(name, facts.get("state", ""), str(resource.transport_type), restarts=facts.get("restarts", 0))
            found.append(replace(row, notes=str(facts.get("reason", ""))))
    return sorted(found, key=lambda row: (row.name, row.container))


def _row(configuration: Configuration, status: ContainerStatus, memory: int | None, noted: Mapping[str, Any]) -> Row:
    resource = configuration.resources.get(status.container.server)
    notes = relaxations(resource) if resource else ["its server is gone from servers.toml"]
    return Row(
        name=status.container.server,
        state=f"{status.state} ({status.health})" if status.health else str(status.state),
        transport=status.transport,
        started_at=status.started_at,
        memory=memory,
        restarts=int(noted.get("restarts", 0)) + (status.restarts or 0),
        container=status.container.name,
        notes=", ".join(notes if status.is_running else [status.obituary(), *notes]),
    )


async def show(configuration: Configuration) -> int:
    """Print the table of containers."""
    with managers(configuration) as known:
        table = [row for manager in known for row in await rows(configuration, manager)]
    now = datetime.now(UTC)
    lines = [_HEADER, *(row.cells(now) for row in table)]
    sys.stdout.write("\n".join(in_columns(lines)) + "\n")
    return 0


async def stop(configuration: Configuration, name: str) -> int:
    """Stop and remove a server's containers. A gateway that runs starts another with the next call."""
    _check_name(configuration, name)
    stopped = 0
    with managers(configuration) as known:
        for manager in known:
            for container in await _containers(manager, name):
                await manager.stop_server(container)
                sys.stdout.write(f"stopped {container.name}\n")
                stopped += 1
    if not stopped:
        sys.stderr.write(f"server '{name}' has no container\n")
    return 0


async def prune(configuration: Configuration) -> int:
    """Remove what gateways left behind that are gone: containers, networks and records; not what is to be kept."""
    options = container_options(configuration)

    def is_kept(container: Container) -> bool:
        resource = configuration.resources.get(container.server)
        return resource is not None and resource.is_enabled and resource.keep

    instances = await anyio.to_thread.run_sync(ownership.abandoned, options.state, options.configuration)
    try:
        for instance in instances:
            manager = McpContainerManager(instance, host=options.host)
            before = {status.container.name for status in await manager.list_servers()}
            for name in sorted(before - await manager.reconcile(adopt=is_kept, everything=True)):
                sys.stdout.write(f"removed {name}\n")
            manager.close()
    finally:
        for instance in instances:
            instance.release()
    return 0


async def logs(configuration: Configuration, name: str, *, follow: bool, tail: int) -> int:
    """Print what a server wrote: over HTTP what Docker kept of it, over stdio its stderr, which the gateway kept.
    Docker keeps it as it came, so secrets are replaced by their names here."""
    _check_name(configuration, name)
    resource = configuration.resources[name]
    mask = mask_for(resource, open_secrets(configuration.settings).values_in(resource))
    over_stdio = resource.transport_type is TransportType.STDIO
    with managers(configuration) as known:
        read = _from_file if over_stdio else _from_docker
        async for line in _merged(known, name, read, tail, follow):
            sys.stdout.write(harmless(mask(line)) + "\n")
            sys.stdout.flush()
    return 0


async def _merged(
    known: list[McpContainerManager], name: str, read: Any, tail: int, follow: bool
) -> AsyncIterator[str]:
    """Lines in the order of their times, with which each begins; new ones as they come."""
    newest = ""
    while True:
        lines = [line for manager in known for line in await read(manager, name, tail if not newest else 5_000)]
        for line in sorted(line for line in lines if line > newest):
            newest = line
            yield line
        if not follow:
            return
        await anyio.sleep(_FOLLOW_EVERY)


async def _from_file(manager: McpContainerManager, name: str, tail: int) -> list[str]:
    return await anyio.to_thread.run_sync(last_lines, manager.instance.log_file(name), tail)


async def _from_docker(manager: McpContainerManager, name: str, tail: int) -> list[str]:
    found: list[str] = []
    for container in await _containers(manager, name):
        found += await manager.get_logs(container, tail)
    return found


async def _containers(manager: McpContainerManager, name: str) -> list[Container]:
    return [status.container for status in await manager.list_servers() if status.container.server == name]


def _check_name(configuration: Configuration, name: str) -> None:
    names = [resource.name for resource in configuration.resources.values() if resource.is_container]
    if name not in names:
        there = f"There is: {', '.join(names)}" if names else "It has none"
        raise ConfigurationError(f"'{name}' is no container server of '{configuration.path}'. {there}")


async def _run(configuration: Configuration, options: Any) -> int:
    """The command that was asked for; what Docker refuses is told in one line."""
    try:
        match options.command:
            case "logs":
                return await logs(configuration, options.name, follow=options.follow, tail=options.tail)
            case "stop":
                return await stop(configuration, options.name)
            case "prune":
                return await prune(configuration)
            case _:
                return await show(configuration)
    except* BackendError as group:
        problems = {leaf.problem for leaf in group.exceptions if isinstance(leaf, BackendError)}
        sys.stderr.write("\n".join(sorted(problems)) + "\n")
    return 1
