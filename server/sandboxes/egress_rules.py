"""Which hosts an allow-list lets a task reach. Runs inside a sidecar, see `egress_proxy.py`."""

import ipaddress
import re
from collections.abc import Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

HOST_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_UNICAST = ipaddress.ip_network("2000::/3")
_TRANSLATED = [ipaddress.ip_network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")]


class Rules:
    """Which hosts may be reached: names, ``*.`` suffixes (not the bare name), addresses and ranges of addresses.

    Ranges are for targets given as an address: a name that is not allowed is never even resolved. What is this machine's
    own (loopback, link-local, ``gateways``) opens only to its exact address. Other addresses that are not public open to
    a range that is itself not public, or to everything that is allowed if ``allow_private``.
    """

    def __init__(self, allowed: Sequence[str], gateways: Sequence[str] = (), allow_private: bool = False) -> None:
        """Raise ValueError, with the entry, for one that is no host."""
        entries = [entry.strip().lower().removesuffix(".") for entry in allowed]
        self.networks = [network for network in map(_network, entries) if network]
        names = [entry for entry in entries if not _network(entry)]
        for name in names:
            if not HOST_NAME.fullmatch(name.removeprefix("*.")):
                raise ValueError(f"{name!r} is no host name, *.suffix, address or range of addresses")
        self.names = {name for name in names if not name.startswith("*.")}
        self.suffixes = tuple(name[1:] for name in names if name.startswith("*."))
        self.gateways = {ipaddress.ip_address(gateway) for gateway in gateways}
        self.allow_private = allow_private
        self.said = ", ".join(entries) or "none"

    def host(self, host: str) -> bool:
        """Whether the task may ask for ``host``, as `authority` gives it."""
        address = address_of(host)
        if address:
            return any(address in network for network in self.networks)
        return host in self.names or host.endswith(self.suffixes)

    def address(self, address: Address) -> bool:
        """Whether an allowed host may be at ``address``."""
        around = [network for network in self.networks if address in network]
        if any(network.num_addresses == 1 for network in around):
            return True
        if _is_own(address) or address in self.gateways:
            return False
        if is_public(address) or self.allow_private:
            return True
        return any(net.prefixlen >= 8 and not is_public(net[0]) and not is_public(net[-1]) for net in around)


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def address_of(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.version == 6 and address.ipv4_mapped) or address


def _is_own(address: Address) -> bool:
    special = (
        address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast or address.is_reserved
    )
    return special or any(address in network for network in _TRANSLATED)


def is_public(address: Address) -> bool:
    """Whether the whole Internet means the same machine by ``address``."""
    return not _is_own(address) and address.is_global and (address.version == 4 or address in _UNICAST)
