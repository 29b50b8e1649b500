"""Where the `url` of a server may lead that somebody adds while the gateway runs: not inside.

The REST API and the tools for models come in when it is written; `endpoint` checks each connect again. All addresses
of the host are looked at, and one that is not allowed is enough to refuse. The answer is the same whether a name leads
inside or nowhere, so that nobody can ask the gateway for names of its network.
"""

from __future__ import annotations

import anyio

from providers.addresses import AddressRules, place_of
from providers.lookup import look_up

_LOOK_UP_SECONDS = 5.0
_NOT_PUBLIC = (
    "must name a host that is found and has addresses of the public internet only. "
    "An operator can open networks with allowed_networks"
)
_NOT_ENCRYPTED = "must begin with https://. Without encryption only networks of allowed_networks are reached"


async def url_problem(url: str, rules: AddressRules) -> str | None:
    """Why a server that was added may not be there, as a predicate; None where it may."""
    try:
        place = place_of(url)
    except ValueError as error:
        return str(error)
    addresses = await _addresses(place.host, place.port)
    if not addresses or not all(rules.allows(address) for address in addresses):
        return _NOT_PUBLIC
    if place.scheme == "http" and not all(rules.is_opened(address) for address in addresses):
        return _NOT_ENCRYPTED
    return None


async def _addresses(host: str, port: int) -> list[str]:
    with anyio.move_on_after(_LOOK_UP_SECONDS):
        try:
            found = await look_up(host, port)
        except (OSError, UnicodeError):  # the name is not found, or is none
            return []
        return [str(address[4][0]) for address in found]
    return []
