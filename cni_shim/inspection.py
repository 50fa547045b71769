"""What CHECK looks at inside the container. Changes nothing."""

from errno import ENODEV, EOPNOTSUPP

from cni_shim import netlink
from cni_shim.errors import KERNEL_REFUSED, CniError

# TEST-NET-2, RFC 5737: an address that is nobody's, so that the default route is taken to it.
_ELSEWHERE = b"\xc6\x33\x64\x01"


def check_interface(ifname: bytes, address: bytes, gateway: bytes) -> None:
    """In the namespace that the process is in. Raises CniError for what is not as ADD left it, or NetlinkError."""
    kernel = netlink.Socket()
    look = netlink.get_link(ifname)
    (found,) = kernel.attempt(look)
    if found.errno not in (0, ENODEV):
        raise netlink.NetlinkError(look, found)
    link = None if found.errno else netlink.Link(found.answer)
    if link is None:
        raise _broken(ifname, "is gone")
    if not link.flags & netlink.IFF_UP:
        raise _broken(ifname, "is down")
    # Asked for the way out of the container with its address as source, the kernel finds none unless it has that
    # address; with several interfaces the answer also shows whether the rule for the address is there.
    route, neighbour = kernel.attempt(
        netlink.get_route(_ELSEWHERE, address), netlink.get_neighbour(link.index, gateway)
    )
    if route.errno:
        raise _broken(ifname, "lacks its address or its routes (%s)" % route.reason)
    way = netlink.Way(route.answer)
    if way.index != link.index or way.gateway != gateway:
        raise _broken(ifname, "is not where packets from its address leave the container")
    if neighbour.errno not in (0, EOPNOTSUPP):  # kernels before 5.0 can't be asked for a single one
        raise _broken(ifname, "lacks the neighbour entry of the gateway")


def _broken(ifname: bytes, what: str) -> CniError:
    return CniError(
        KERNEL_REFUSED,
        "the container's interface %s %s" % (ifname.decode("utf-8", "replace"), what),
        "create the container again",
    )
