"""Which hosts a call to the outside may reach: told from an address, and as far as possible from a name.

What always holds: an address counts as public only if nothing speaks against it. A name proves nothing either way
until it is resolved; what its text can give away is that it is inside.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence

#: Globally routed by the book, yet not a plain host: relays, embedded IPv4, documentation, protocol assignments.
_REFUSED_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
_PUBLIC_IPV6 = ipaddress.IPv6Network("2000::/3")
#: Names that never lead outside: RFC 6761 (localhost), RFC 6762 (local), RFC 8375 (home.arpa), ICANN (internal).
_INSIDE_NAMES = ("localhost", "localdomain", "local", "internal", "home.arpa")

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


def is_public(address: str) -> bool:
    """Whether an IP address is an ordinary public host, for all that its text can tell.

    IPv6 outside 2000::/3 never is: that leaves out loopback, link-local, unique-local, IPv4-mapped and -compatible
    addresses, both NAT64 prefixes and multicast; 6to4, Teredo and ISATAP, which carry an IPv4 inside, go with them.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if any(ip in network for network in _REFUSED_NETWORKS if network.version == ip.version):
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        return ip in _PUBLIC_IPV6 and ip.is_global and (int(ip) >> 32) & 0xFDFFFFFF != 0x00005EFE
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def names_inside(host: str) -> bool:
    """Whether a URL's host is inside by its very text: a non-public address in any notation, or an inside name.

    A name without a dot is one, too: only a search list of our own network could complete it.
    """
    name = host.lower().strip("[]").removesuffix(".")
    address = _literal(name)
    if address is not None:
        return not is_public(address)
    return "." not in name or any(name == inside or name.endswith(f".{inside}") for inside in _INSIDE_NAMES)


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, in the system's order of preference. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def parse_hosts(entries: str | Iterable[str]) -> frozenset[str]:
    """A list of trusted hosts: `host` or `host:port` each, comma-separated where it is one text."""
    listed = entries.split(",") if isinstance(entries, str) else entries
    return frozenset(host.strip().lower() for host in listed if host.strip())


def _literal(name: str) -> str | None:
    """The address that `name` writes out, as the system's resolver would read it: 2130706433 and 0x7f.1 are, too."""
    try:
        return str(ipaddress.ip_address(name.partition("%")[0]))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(name))
    except (OSError, ValueError):
        return None
