"""Which network addresses a server that came through the API may have. Pure values: no look-up, no connection.

The REST API comes in when a `url` is written, and `endpoint` at the moment of each connect: a name may lead elsewhere
by then. Nobody is called. Only addresses of the public internet are allowed, and the networks that the operator opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple

_GLOBAL_UNICAST = ip_network("2000::/3")
"""Of IPv6 nothing else is public: what is mapped, compatible, translated (64:ff9b::) or local lies outside."""
_NOT_PUBLIC = tuple(
    ip_network(network)
    for network in (
        "192.0.0.0/24",  # the IETF's, and the metadata service of Oracle
        "192.88.99.0/24",  # 6to4 relays
        "168.63.129.16/32",  # the metadata service of Azure, the only one with a public address
        "2001::/23",  # the IETF's, and Teredo, which holds an IPv4 address of anybody
        "2002::/16",  # 6to4, which does too
        "3fff::/20",  # for documents
    )
)
"""What Python, or an older one, counts as global, and is nobody's server on the internet."""

_URL = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?(?:[/?].*)?", re.I | re.S)
"""No user, no backslash, nothing that two parsers could read in two ways."""
_NUMERIC_END = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)", re.I)
"""A host that ends so is an address to a resolver (WHATWG URL, "ends in a number")."""


class Place(NamedTuple):
    """Where a URL leads: what is to be looked up, and over what it is spoken to."""

    scheme: str
    host: str
    port: int


def place_of(url: str) -> Place:
    """The host of a URL, in one spelling.

    Raises:
        ValueError: it has a user, or a host that can be read in two ways; the message is a predicate.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError(
            "must be https://HOST/PATH with a plain host name and without a user. Credentials go in headers"
        )
    scheme, host, port = match[1].lower(), match[2].lower().strip("[]").rstrip("."), match[3]
    is_literal = host != match[2].lower().rstrip(".")  # it stood in brackets
    if is_literal or _NUMERIC_END.fullmatch(host):
        host = _literal(host)
    if not host:
        raise ValueError("must name a host")
    return Place(scheme, host, int(port) if port else 443 if scheme == "https" else 80)


def _literal(host: str) -> str:
    try:
        address = ip_address(host)
    except ValueError:
        address = None
    if address is None or (address.version == 4 and str(address) != host):
        raise ValueError(
            "has an address in an odd spelling. Write four decimal numbers, or an IPv6 address in brackets"
        )
    return str(address)


class AddressRules:
    """Which addresses may be connected to.

    Args:
        allowed_networks: opened by the operator, such as `10.0.0.0/8`.
    """

    def __init__(self, allowed_networks: Iterable[str] = ()) -> None:
        self._opened = tuple(ip_network(network) for network in allowed_networks)

    def __repr__(self) -> str:
        return f"<AddressRules {len(self._opened)} networks opened>"

    def allows(self, address: str) -> bool:
        """Whether an address, as a resolver gives it, may be connected to."""
        return self.is_opened(address) or is_public(_parsed(address))

    def is_opened(self, address: str) -> bool:
        """Whether it lies in a network that the operator opened."""
        parsed = _parsed(address)
        mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
        return any(_lies_in(each, network) for each in (parsed, mapped) if each for network in self._opened)


def _parsed(address: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(address.partition("%")[0])  # a zone says through which card, not where to
    except ValueError:
        return None


def _lies_in(address: IPv4Address | IPv6Address, network: IPv4Network | IPv6Network) -> bool:
    return address.version == network.version and address in network


def is_public(address: IPv4Address | IPv6Address | None) -> bool:
    """Whether an address is one of the public internet. Loopback, private, link-local, shared (CGNAT), multicast,
    reserved and translated ones are not."""
    if address is None or not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if address.version == 6 and address not in _GLOBAL_UNICAST:
        return False
    return not any(_lies_in(address, network) for network in _NOT_PUBLIC)
