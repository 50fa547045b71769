"""The HTTP proxy that the environment puts before EC2, and how to speak of it.

botocore reads the variables as Python does: HTTPS_PROXY by the scheme of the URL, NO_PROXY as names. Networks in
NO_PROXY (10.0.0.0/8), which Go programs understand, are understood here for an endpoint that is an address. Requests
to the metadata service never go by a proxy: it answers for the machine that asks.
"""

from __future__ import annotations

import os
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass


class ProxyUnusable(Exception):
    """A variable names a proxy in a form that can't be used; the text says which."""


def proxy_for(url: str) -> str:
    """The proxy's URL for requests to this one; empty for none. Raises `ProxyUnusable`."""
    target = urlsplit(url)
    found = getproxies().get(target.scheme, "")
    if not found or proxy_bypass(target.netloc) or _in_network(target.hostname or ""):
        return ""
    proxy = found if "://" in found else f"http://{found.lstrip('/')}"
    try:
        parts = urlsplit(proxy)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ProxyUnusable(f"{_variable(target.scheme)} is no proxy such as http://proxy.example:3128")
    return proxy


def words(url: str) -> str:
    """How requests to this URL go by a proxy, as part of a sentence; empty when they don't."""
    try:
        proxy = proxy_for(url)
    except ProxyUnusable as error:
        return str(error)
    if not proxy:
        return ""
    parts = urlsplit(proxy)
    host = parts.netloc.rpartition("@")[2]  # without a password
    target = urlsplit(url)
    return (
        f"the request goes by {_variable(target.scheme)}={parts.scheme}://{host}: check that proxy, or name "
        f"{target.hostname} in NO_PROXY"
    )


def _variable(scheme: str) -> str:
    name = f"{scheme}_proxy"
    return name if os.environ.get(name) else name.upper()


def _in_network(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return False
    for part in getproxies().get("no", "").split(","):
        try:
            if address in ip_network(part.strip(), strict=False):
                return True
        except ValueError:
            continue
    return False
