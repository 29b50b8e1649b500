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
        return Placement(None if network == NONE else network, publishes=publishes, volumes=self.volumes)

    def network_of(self, container: str) -> str | None:
        """The network that a container of this name joins."""
        network = network_of(self.resource)
        if network not in (OWN, INTERNET):
            return self.placement.network
        owner = f"{container}_inside" if self.is_reached_inside else f"{NAME_PREFIX}{self.resource.name}"
        return f"{owner}_{self.instance.id[:8]}{'_internet' if network == INTERNET else ''}"

    def network_to_make(self, container: str) -> dict[str, Any] | None:
        """The network of our own that a container of this name needs. It is the server's: its containers do not see
        each other on it, and nothing from beyond this machine answers them, unless they were given a way out. Or, where
        the gateway comes onto it, the container's: nobody else is there. Any other name is the operator's."""
        network = network_of(self.resource)
        if network not in (OWN, INTERNET):
            return None
        name = self.network_of(container) or ""
        options = {
            "com.docker.network.bridge.enable_icc": "true" if self.is_reached_inside else "false",
            "com.docker.network.bridge.enable_ip_masquerade": "true" if network == INTERNET else "false",
        }
        return {
            "name": name,
            "driver": "bridge",
            "options": options,
            "labels": self.instance.network_labels(
                self.resource.name, name, container if self.is_reached_inside else ""
            ),
            # on an internal one no port can be published; and it must not become the gateway's own way out
            "internal": self.is_reached_inside and network == OWN,
        }

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
