"""`Networks`: the networks that a gateway makes for its servers, and those that it joins to reach them.

The container manager comes in, in a thread, when a container is made, asked for its address, or removed. Called are the
engine, and `ownership` for which networks are ours: a label proves it, made for just this name, and nothing here
touches another one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from providers.docker_engine import DockerEngine, tolerating
from providers.errors import BackendUnavailable
from providers.ownership import CONTAINER, INSTANCE, SERVER, Instance

if TYPE_CHECKING:
    from providers.docker_engine import Api

logger = logging.getLogger(__name__)


class Networks:
    """Args:
    instance: whose networks.
    engine: knows whether the gateway runs in a container itself. Only then does it join networks.
    """

    def __init__(self, instance: Instance, engine: DockerEngine) -> None:
        self._instance, self._engine = instance, engine
        self._joined: set[str] = set()
        """Those that the gateway was not on before it joined them."""
        self._strangers: set[str] = set()
        self._making = threading.Lock()

    def __repr__(self) -> str:
        return f"<Networks joined={sorted(self._joined)}>"

    def ensure(self, server: str, wanted: Mapping[str, Any], api: Api) -> None:
        """Make a network where it is not there yet.

        Raises:
            BackendUnavailable: somebody else's has its name.
        """
        name = wanted["name"]
        with self._making:  # Docker makes two of one name for two who ask at once, and then takes neither
            if not any(network["Name"] == name for network in api.networks(names=[name])):
                with tolerating(409):
                    api.create_network(**wanted, check_duplicate=True)
        facts = api.inspect_network(name)
        is_as_made = facts.get("Internal", False) == wanted["internal"] and not any(
            wanted[part].items() - (facts.get(part.capitalize()) or {}).items() for part in ("labels", "options")
        )
        if not is_as_made:
            problem = f"network '{name}' is not the one that the gateway made. Remove it: docker network rm {name}"
            raise BackendUnavailable(server, f"{problem}.", not_sent=True)

    def join(self, name: str, api: Api) -> None:
        """Bring a gateway that runs in a container onto a network, unless it is there."""
        own_id = self._engine.own_id
        if own_id is None or own_id in _members(name, api):
            return
        # Another thread did it, or the gateway has the host's network, which reaches all others.
        with tolerating(400, 403):
            api.connect_container_to_network(own_id, name)
            self._joined.add(name)

    def leave(self, api: Api) -> None:
        """Leave every network that was joined."""
        while self._joined:
            name = self._joined.pop()
            with tolerating(404):
                if self._engine.own_id in _members(name, api):
                    api.disconnect_container_from_network(self._engine.own_id, name)

    def end_with(self, container: str, api: Api) -> None:
        """Remove the network that was made for one container, which is gone."""
        if self._engine.own_id is not None:
            self.tidy(lambda _, name: name != container, api)

    def tidy(self, is_used: Callable[[str, str], bool], api: Api) -> None:
        """Remove those of our networks that nobody uses. One that carries our labels without being ours is reported.

        Args:
            is_used: asked with the name of a server, and that of the container that a network was made for, if any.
        """
        for network in api.networks(filters={"label": f"{INSTANCE}={self._instance.id}"}):
            labels = network["Labels"]
            if not self._instance.owns_network(network["Name"], labels):
                self._report(network)
            elif not is_used(labels[SERVER], labels[CONTAINER]):
                self._remove(network["Id"], api)

    def _report(self, network: Mapping[str, Any]) -> None:
        if network["Id"] not in self._strangers:
            self._strangers.add(network["Id"])
            logger.warning("network '%s' carries our labels and is not ours; it is left alone", network["Name"])

    def _remove(self, network_id: str, api: Api) -> None:
        own_id = self._engine.own_id
        with tolerating(403, 404):  # somebody is on it
            if own_id is not None and _members(network_id, api) == {own_id}:
                api.disconnect_container_from_network(own_id, network_id)
            api.remove_network(network_id)


def _members(network: str, api: Api) -> set[str]:
    return set(api.inspect_network(network).get("Containers") or {})
