"""The plan of one container: everything that is decided before Docker is asked for anything. No I/O.

The container manager comes in with a record and what is known of its image; `hardening` says what the container may
do, and `ownership` how it is known again as ours.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from uuid import uuid4

from providers.container_keys import INTERNET, NONE, OWN, Volume
from providers.hardening import ImageFacts, Placement, container_config, fingerprint, network_of
from providers.ownership import Instance
from providers.resource import McpServerResource, TransportType

NAME_PREFIX = "apollos-mcp-"


@dataclass(frozen=True)
class Plan:
    """How a server's container is to be made."""

    resource: McpServerResource
    image: ImageFacts
    instance: Instance
    is_inside: bool
    """Whether the gateway runs in a container of the same engine: then it reaches others over their network."""
    volumes: tuple[Volume, ...]
    """What it mounts, each path as it was looked at."""
    has_stdin: bool = True

    @property
    def is_reached_inside(self) -> bool:
        """Whether the gateway has to come onto its network to reach it. No port is published then, and each container
        has a network of its own, because on one network all see each other."""
        return self.is_inside and self.resource.transport_type is not TransportType.STDIO

    @property
    def placement(self) -> Placement:
        """Where each container of this server is put, with what the operator calls the network as its name."""
        network = network_of(self.resource)
        over_http = self.resource.transport_type is not TransportType.STDIO
        publishes = over_http and not self.is_inside
        name = None if network == NONE else network
        return Placement(name, publishes=publishes, volumes=self.volumes, has_stdin=self.has_stdin)

    def network_of(self, container: str) -> str | None:
        """The network on which a container of this name is made."""
        if network_of(self.resource) not in (OWN, INTERNET):
            return self.placement.network
        return self._inside(container) if self.is_reached_inside else self._of_server

    @property
    def way_out(self) -> str | None:
        """The network that it joins besides. The gateway is not on it: it could become the gateway's own way out, and
        what the gateway has open would break."""
        return self._of_server if self.is_reached_inside and network_of(self.resource) == INTERNET else None

    def networks_to_make(self, container: str) -> list[dict[str, Any]]:
        """The networks of our own that a container of this name needs. The server's: its containers do not see each
        other on it, and nothing from beyond this machine answers them, unless they were given a way out. And where the
        gateway comes onto it, the container's: nobody else is there. Any other name is the operator's."""
        wanted = {self.network_of(container), self.way_out}
        made = [self._network(self._inside(container), container), self._network(self._of_server)]
        return [network for network in made if network["name"] in wanted]

    def _network(self, name: str, container: str = "") -> dict[str, Any]:
        has_way_out = not container and network_of(self.resource) == INTERNET
        options = {
            "com.docker.network.bridge.enable_icc": "true" if container else "false",
            "com.docker.network.bridge.enable_ip_masquerade": "true" if has_way_out else "false",
        }
        labels = self.instance.network_labels(self.resource.name, name, container)
        internal = bool(container)  # on such a one no port can be published
        return {"name": name, "driver": "bridge", "options": options, "labels": labels, "internal": internal}

    @property
    def _of_server(self) -> str:
        way_out = "_internet" if network_of(self.resource) == INTERNET else ""
        return f"{NAME_PREFIX}{self.resource.name}_{self.instance.id[:8]}{way_out}"

    def _inside(self, container: str) -> str:
        return f"{container}_inside_{self.instance.id[:8]}"

    @cached_property
    def fingerprint(self) -> str:
        """Equal for containers that one gateway would make alike, with the same secrets. It is a label, for everyone to
        read, so it is made with the gateway's key: nobody else can try values until one fits."""
        config = container_config(self.resource, self.image, self.placement)
        facts = json.dumps([fingerprint(config), sorted(self.resource.docker_secrets.items())])
        return hmac.new(self.instance.key, facts.encode(), hashlib.sha256).hexdigest()[:32]

    def names(self) -> tuple[str, str]:
        """The name to try first, and one that nobody has. No server's name has an underscore."""
        first = f"{NAME_PREFIX}{self.resource.name}"
        return first, f"{first}_{uuid4().hex[:8]}"

    def body(self, name: str, scope: str, secrets_folder: str | None) -> dict[str, Any]:
        """What Docker is asked to create under this name."""
        placement = replace(self.placement, network=self.network_of(name), secrets_folder=secrets_folder)
        config = container_config(self.resource, self.image, placement)
        transport = str(self.resource.transport_type)
        labels = self.instance.labels(self.resource.name, transport, name, self.image.id, self.fingerprint, scope)
        return config | {"Labels": labels}
