"""Who may do what through the REST API. Every route asks here, and nowhere else.

`adapters`, `status`, `logs` and `restart` come in. Whether a server may be read or written is the record's own rule,
`can_access`. Added here: what runs code on the gateway's host is for operators, and who is not the creator of a server
may not say who uses it.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic.alias_generators import to_camel

from composition.api.problems import Refusal, Wrong, absent
from composition.gateway import Gateway
from providers.errors import ReadOnlyServer
from providers.identity import Identity
from providers.reach import REACH_KEYS
from providers.resource import NAME_PATTERN, SERVERS_FILE, McpServerResource, may
from providers.secret_names import named_in

OPERATOR_KEYS = (*(key for key in REACH_KEYS if key not in ("url", "headers")), "timeouts")
"""What runs code on the host, says what it runs with, or how long all others wait for it."""
MAX_SERVERS_PER_USER = 100
"""Of users who are no operators: each server costs the gateway memory, and a line in everybody's log."""
_VARIABLE = "${"
"""A reference to a secret of the gateway's. Whoever could send one to an address of theirs would know the secret."""
_WHERE_TO = ("url", "headers")
"""None of them changes beside such a reference, even where that stays as it is: it would go elsewhere. `per_user` says
whose value it stands for."""


def creator_of(identity: Identity) -> str:
    """What a record's `created_by` says of this caller; `can_access` compares it."""
    return identity.key


def is_operator(gateway: Gateway, identity: Identity) -> bool:
    return gateway.settings.operator_role in identity.roles


async def readable(gateway: Gateway, name: str, identity: Identity) -> McpServerResource:
    """The record of a server that the caller may read.

    Raises:
        Refusal: 404, whether it is not there or may not be read.
        StoreUnavailable: the store does not answer.
    """
    resource = await gateway.store.get(name) if NAME_PATTERN.match(name) else None
    if resource is None or not may(identity, "read", resource):
        raise absent()
    return resource


async def writable(gateway: Gateway, name: str, identity: Identity) -> McpServerResource:
    """The record of a server that the caller may write.

    Raises:
        Refusal: 404 as `readable`; 403 where it may be read only.
    """
    resource = await readable(gateway, name, identity)
    if not may(identity, "write", resource):
        raise Refusal(403, "You may use this server. Its creator and administrators may do this.")
    return resource


async def changeable(gateway: Gateway, name: str, identity: Identity) -> McpServerResource:
    """The record of a server that the caller may change.

    Raises:
        Refusal: as `writable`.
        ReadOnlyServer: it stands in servers.toml.
    """
    resource = await writable(gateway, name, identity)
    if resource.created_by == SERVERS_FILE:
        raise ReadOnlyServer(name)
    return resource


async def check_room(gateway: Gateway, identity: Identity) -> None:
    """
    Raises:
        Refusal: 403, the caller is no operator and has made as many servers as one user may have.
    """
    if is_operator(gateway, identity):
        return
    creator = creator_of(identity)
    made = sum(resource.created_by == creator for resource in (await gateway.store.list_all()).values())
    if made >= MAX_SERVERS_PER_USER:
        raise Refusal(403, f"You have made {made} servers, which is as many as one user may have. Remove one.")


def check_change(
    gateway: Gateway, identity: Identity, wanted: McpServerResource, now: McpServerResource | None
) -> None:
    """
    Raises:
        Refusal: 403, if something differs from what is there now, or from its default, that is not this caller's to
            say.
    """
    wrong: list[Wrong] = []
    if not is_operator(gateway, identity):
        role = gateway.settings.operator_role
        before = now or McpServerResource.model_construct(timeouts=gateway.settings.timeouts)
        wrong += [
            Wrong(_spelled(key), f"is for operators (role '{role}')")
            for key in dict.fromkeys(_operators_part(wanted, before))
        ]
    if now is not None and creator_of(identity) != now.created_by and wanted.required_roles != now.required_roles:
        wrong.append(Wrong("requiredRoles", "is for the creator of the server"))
    if wrong:
        raise Refusal(403, "Some members are not yours to set; 'errors' lists them.", wrong)


def _operators_part(wanted: McpServerResource, before: McpServerResource) -> Iterable[str]:
    yield from (key for key in OPERATOR_KEYS if getattr(wanted, key) != getattr(before, key))
    if any(_VARIABLE in text for text in (wanted.url or "", *wanted.headers.values())):
        yield from (key for key in _WHERE_TO if getattr(wanted, key) != getattr(before, key))
    if _host_of(wanted) != _host_of(before):  # behind one address there may be several servers
        yield "headers"
    if named_in(wanted) and wanted.per_user != before.per_user:
        yield "per_user"


def _host_of(resource: McpServerResource) -> str | None:
    return next((value for name, value in resource.headers.items() if name.lower() == "host"), None)


def _spelled(key: str) -> str:
    return {"docker_image": "imageName", "env": "environmentVariables"}.get(key, to_camel(key))
