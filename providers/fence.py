"""What marks a container as one of a lease, and what removes those of leases that are over.

`sharing` comes in before the first container of a new lease, `ownership` while the labels of one are made; called is
the engine. The marks are proven with the key that all replicas share, so that each knows the containers of every
other, and nobody else's.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
from collections.abc import Mapping
from typing import Any

from providers.container import name_in
from providers.docker_engine import SLOW, Api, DockerEngine, tolerating
from providers.errors import BackendUnavailable
from providers.leases import Leases, Place, is_of_all_replicas
from providers.ownership import INSTANCE, SCOPE, SERVER

logger = logging.getLogger(__name__)

CLUSTER, LEASE, LEASE_PROOF = "apollos.mcp.cluster", "apollos.mcp.lease", "apollos.mcp.lease_proof"


class Fence:
    """Args:
    host: the engine, where the operator chose one; else Docker's own rules say which.
    """

    def __init__(self, leases: Leases, host: str | None = None) -> None:
        self.key = b""
        """Of all replicas; there is none before Redis has answered."""
        self._leases, self._engine = leases, DockerEngine(host)

    def __repr__(self) -> str:
        return f"<Fence {self.cluster} {self._engine!r}>"

    def close(self) -> None:
        self._engine.close()

    @property
    def cluster(self) -> str:
        """Which replicas belong together."""
        return hashlib.sha256(b"cluster" + self.key).hexdigest()[:16]

    def marks(self, server: str, name: str, image_id: str, scope: str) -> dict[str, str]:
        """The labels of a container that is about to be made.

        Raises:
            BackendUnavailable: it is another replica's to make.
        """
        if not is_of_all_replicas(scope):
            return {}
        lease = self._leases.held((server, scope))
        if lease is None:
            problem = "its container is another replica's to start now. Try again."
            raise BackendUnavailable(server, problem, not_sent=True)
        token = str(lease.holder.token)
        proof = self._proof(server, name, image_id, scope, token)
        return {CLUSTER: self.cluster, LEASE: token, LEASE_PROOF: proof}

    def _proof(self, *facts: Any) -> str:
        return hmac.new(self.key, json.dumps(["lease", *facts], default=str).encode(), hashlib.sha256).hexdigest()

    async def clean(self, place: Place, token: int) -> None:
        """Remove what the replicas that had a lease before left at this engine.

        Args:
            token: of the one that has it now.

        Raises:
            BackendUnavailable: the engine does not let us.
        """

        def remove(api: Api) -> None:
            labelled = api.containers(all=True, filters={"label": f"{CLUSTER}={self.cluster}"})
            left = [facts for facts in labelled if self.is_left(facts, place, token)]
            for facts in left:
                logger.info("server '%s': removing the container of a replica that has gone", place[0])
                with tolerating(404, 409):
                    api.remove_container(facts["Id"], v=True, force=True)
            for instance in {facts["Labels"].get(INSTANCE) for facts in left}:
                _remove_networks(place[0], instance, api)

        await self._engine.call(place[0], remove, SLOW)

    def is_left(self, facts: Mapping[str, Any], place: Place, token: int) -> bool:
        """Whether a container, as Docker lists it, is of a place and of another lease than this one, and a replica made
        it. Labels that were copied fit no other name or image."""
        labels = facts.get("Labels") or {}
        if (labels.get(SERVER), labels.get(SCOPE)) != place or labels.get(LEASE) == str(token):
            return False
        proof = self._proof(place[0], name_in(facts), facts["ImageID"], place[1], labels.get(LEASE))
        return hmac.compare_digest(proof.encode(), str(labels.get(LEASE_PROOF, "")).encode(errors="replace"))


def _remove_networks(server: str, instance: str, api: Api) -> None:
    """Remove what a replica's containers of a server were on; one that is in use stays."""
    labels = [f"{INSTANCE}={instance}", f"{SERVER}={server}"]
    for network in api.networks(filters={"label": labels}):
        with tolerating(403, 404, 409):
            api.remove_network(network["Id"])
