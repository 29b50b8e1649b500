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
from providers.ownership import INSTANCE, SERVER, Instance
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

    @cached_property
    def placement(self) -> Placement:
        network = network_of(self.resource)
        name = None if network == NONE else self._own_network if network in (OWN, INTERNET) else network
        over_http = self.resource.transport_type is not TransportType.STDIO
        return Placement(name, publishes=over_http and not self.is_inside, volumes=self.volumes)

    @property
    def _own_network(self) -> str:
        way_out = "_internet" if network_of(self.resource) == INTERNET else ""
        return f"{NAME_PREFIX}{self.resource.name}_{self.instance.id[:8]}{way_out}"

    @property
    def network_to_make(self) -> dict[str, Any] | None:
        """The server's own network: its containers do not see each other on it, and nothing from beyond this machine
        answers them, unless they were given a way out. A network with another name is the operator's."""
        network = network_of(self.resource)
        if network not in (OWN, INTERNET):
            return None
        options = {
            "com.docker.network.bridge.enable_icc": "false",
            "com.docker.network.bridge.enable_ip_masquerade": "true" if network == INTERNET else "false",
        }
        labels = {INSTANCE: self.instance.id, SERVER: self.resource.name}
        return {"name": self._own_network, "driver": "bridge", "options": options, "labels": labels}

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
        config = container_config(self.resource, self.image, replace(self.placement, secrets_folder=secrets_folder))
        transport = str(self.resource.transport_type)
        labels = self.instance.labels(self.resource.name, transport, name, self.image.id, self.fingerprint, scope)
        return config | {"Labels": labels}
