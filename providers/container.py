"""What is known of one container: the values that pass between Docker's side and ours. No I/O.

The container manager makes them; the supervisor, the wires and the command line read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from providers.ownership import FINGERPRINT, SCOPE, SERVER, TRANSPORT


class ContainerState(StrEnum):
    """Docker's own words, and `missing` for a container that it does not know."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    REMOVING = "removing"
    EXITED = "exited"
    DEAD = "dead"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Container:
    """A container that we made. `scope` is whose it is: a client session, a user, everybody's, or one call's."""

    id: str
    name: str
    server: str
    scope: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Address:
    """Where a container's port is to be had."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class ContainerStatus:
    """How it stands with a container. Fields that Docker tells only when asked for one container are None in lists."""

    container: Container
    state: ContainerState
    transport: str
    image_id: str
    health: str | None = None
    exit_code: int | None = None
    is_oom: bool = False
    restarts: int | None = None
    started_at: datetime | None = None
    error: str = ""

    @property
    def is_running(self) -> bool:
        return self.state is ContainerState.RUNNING

    def obituary(self) -> str:
        """Why it ended, as a predicate."""
        if self.is_oom:
            return "ran out of memory and was killed; raise docker_memory"
        if self.state is ContainerState.MISSING:
            return "was removed"
        if self.error:
            return f"could not run: {self.error}"
        return f"ended with exit code {self.exit_code}"


def status_of(facts: Mapping[str, Any]) -> ContainerStatus:
    """The status in the answer to an inspection."""
    state, config = facts["State"], facts["Config"]
    labels = config.get("Labels") or {}
    return ContainerStatus(
        container=container_of(facts["Id"], facts["Name"].removeprefix("/"), labels),
        state=ContainerState(state["Status"]),
        transport=labels.get(TRANSPORT, ""),
        image_id=facts["Image"],
        health=(state.get("Health") or {}).get("Status"),
        exit_code=state.get("ExitCode"),
        is_oom=bool(state.get("OOMKilled")),
        restarts=facts.get("RestartCount"),
        started_at=_moment(state.get("StartedAt")),
        error=" ".join(str(state.get("Error") or "").split())[:300],
    )


def listed_status_of(facts: Mapping[str, Any]) -> ContainerStatus:
    """The status in one entry of a list."""
    labels = facts.get("Labels") or {}
    return ContainerStatus(
        container=container_of(facts["Id"], name_in(facts), labels),
        state=ContainerState(facts["State"]),
        transport=labels.get(TRANSPORT, ""),
        image_id=facts["ImageID"],
    )


def container_of(container_id: str, name: str, labels: Mapping[str, str]) -> Container:
    return Container(container_id, name, labels.get(SERVER, ""), labels.get(SCOPE, ""), labels.get(FINGERPRINT, ""))


def name_in(facts: Mapping[str, Any]) -> str:
    """The container's own name in one entry of a list; links of other containers are names, too."""
    names = [str(name).removeprefix("/") for name in facts.get("Names") or []]
    return next((name for name in names if "/" not in name), "")


def missing(container: Container) -> ContainerStatus:
    return ContainerStatus(container, ContainerState.MISSING, "", "")


def _moment(text: Any) -> datetime | None:
    """Docker's time has nine digits behind the second; year 1 stands for "never"."""
    if not isinstance(text, str) or text.startswith("0001-"):
        return None
    try:
        return datetime.fromisoformat(text[:19] + "+00:00")
    except ValueError:
        return None
