"""What may stand in ``allowed_hosts``: host names, ``*.suffix``, addresses and CIDR ranges."""

import ipaddress
import re

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
RULE = "must be host names, '*.' before a host name, addresses or CIDR ranges, without scheme, port or path"


def host(entry: str) -> str:
    """Return ``entry`` in the one way to write it: lower case, no final dot, addresses compressed.

    Raises:
        ValueError: it is none of the four.
    """
    text = entry.strip().lower().removesuffix(".")
    if "%" not in text:
        if "/" in text:
            return _range(text)
        try:
            return ipaddress.ip_address(text).compressed
        except ValueError:
            pass  # a name, then
    name = text.removeprefix("*.")
    labels = name.split(".")
    if len(name) > 253 or labels[-1].isdigit() or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(RULE)
    return text


def _range(text: str) -> str:
    try:
        return ipaddress.ip_network(text, strict=True).compressed
    except ValueError:
        raise ValueError(f"{RULE}; a range has no bits set behind its prefix") from None
