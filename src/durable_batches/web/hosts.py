"""The host that a request names, where anybody on this machine may do everything: only one that is this machine's.

A page of another site can have its own name resolve to 127.0.0.1 once it is shown (DNS rebinding). For its browser,
this server is that site then, and may be read. The request still names the site as its host.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from starlette.requests import Request

__all__ = ["is_of_another_site"]


def is_of_another_site(request: Request, allowed_origins: Collection[str]) -> bool:
    """Whether a request reached this machine from itself, and names another host: no address, nor an allowed one.

    Args:
        request: The request.
        allowed_origins: Origins (`https://example.org`) whose hosts are allowed, such as those of a proxy.
    """
    server = request.scope.get("server")
    host = request.headers.get("host", "")
    # A socket of a file has a path and no port; programs other than browsers may name no host.
    if server is None or server[1] is None or not _is_loopback(server[0]) or host == "":
        return False
    if any(host == origin.partition("://")[2] for origin in allowed_origins):
        return False
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return True
    name = name.removesuffix(".")
    return not (name == "localhost" or name.endswith(".localhost") or _address(name) is not None)


def _is_loopback(name: str) -> bool:
    address = _address(name)
    # Of a socket of both families, addresses of IPv4 are within those of IPv6.
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address is not None and address.is_loopback


def _address(name: str) -> IPv4Address | IPv6Address | None:
    """Return the address that this is; None: it is a name."""
    try:
        return ip_address(name)
    except ValueError:
        return None
