"""The veth pair of one container: built from a plan, taken down by its name.

Order matters for speed and for safety. The peer is born inside the container's namespace, because moving a device
costs a grace period of the kernel (15 ms). The host's socket is opened before the process enters the container's
namespace and stays in the host's, so that undoing works from either side; the process never goes back, it ends.
"""

from errno import EEXIST, ENODEV, ENOENT
from posix import O_CLOEXEC, O_WRONLY, close, open, write

from cni_shim import namespace, netlink
from cni_shim.errors import KERNEL_REFUSED, CniError

TYPE_CHECKING = False  # as in `typing`, which is not imported
if TYPE_CHECKING:
    from cni_shim.protobuf import Plan


def attach(host: netlink.Socket, plan: "Plan", netns: int) -> None:
    """Build everything that the plan says. Raises NetlinkError or CniError; the caller undoes with `detach`."""
    link = _create_pair(host, plan, netns)
    _shut_ipv6_off(plan.host_ifname)
    host.perform(netlink.host_route(link.index, plan.address, plan.table, plan.route_protocol))
    namespace.enter(netns)
    container = netlink.Socket()
    try:
        container.perform(
            netlink.set_link_up(link.peer_index),
            netlink.add_address(link.peer_index, plan.address, plan.prefix_length),
            netlink.gateway_route(link.peer_index, plan.gateway),
            netlink.default_route(link.peer_index, plan.gateway),
            netlink.permanent_neighbour(link.peer_index, plan.gateway, plan.host_mac),
        )
    except netlink.NetlinkError as error:
        if error.kind == netlink.RTM_NEWROUTE and error.errno == EEXIST:
            raise CniError(
                KERNEL_REFUSED,
                "the container already has a default route",
                "another network gave it one; attach a container to one network that provides it",
            ) from None
        raise


def _create_pair(host: netlink.Socket, plan: "Plan", netns: int) -> netlink.Link:
    create = netlink.create_veth(
        plan.host_ifname, plan.host_mac, plan.link_group, plan.ifname, plan.mac, netns, plan.mtu
    )
    look = netlink.get_link(plan.host_ifname)
    created, found = host.attempt(create, look)
    if created.errno == EEXIST and not found.errno:  # an earlier ADD for this container made it
        detach(host, plan.host_ifname)
        created, found = host.attempt(create, look)
    if created.errno == EEXIST and found.errno == ENODEV:
        raise CniError(
            KERNEL_REFUSED,
            "the container already has an interface named %s" % plan.ifname.decode("utf-8", "replace"),
            "something else made it; remove it, or ask for another name (CNI_IFNAME)",
        )
    if created.errno:
        raise netlink.NetlinkError(create, created)
    if found.errno:
        raise netlink.NetlinkError(look, found)
    return netlink.Link(found.answer)


def detach(host: netlink.Socket, host_ifname: bytes) -> None:
    """Remove the pair, and with it its routes. That it is gone already is fine. Raises NetlinkError."""
    step = netlink.delete_link(host_ifname)
    (outcome,) = host.attempt(step)
    if outcome.errno not in (0, ENODEV):
        raise netlink.NetlinkError(step, outcome)


def container_link(name: bytes) -> netlink.Link | None:
    """The interface of that name in the namespace that the process is in. Raises NetlinkError."""
    here = netlink.Socket()
    step = netlink.get_link(name)
    (outcome,) = here.attempt(step)
    here.close()
    if outcome.errno == ENODEV:
        return None
    if outcome.errno:
        raise netlink.NetlinkError(step, outcome)
    return netlink.Link(outcome.answer)


def _shut_ipv6_off(host_ifname: bytes) -> None:
    """Without this a container could send the host router advertisements and become its IPv6 gateway
    (CVE-2020-10749). Nothing of IPv6 is used on this link."""
    try:
        descriptor = open(b"/proc/sys/net/ipv6/conf/" + host_ifname + b"/disable_ipv6", O_WRONLY | O_CLOEXEC)
    except OSError as error:
        if error.errno == ENOENT:  # a kernel without IPv6
            return
        raise CniError(
            KERNEL_REFUSED,
            "switch IPv6 off on the host's interface: %s" % error.strerror,
            "/proc/sys has to be writable for the plugin",
        ) from None
    try:
        write(descriptor, b"1")
    finally:
        close(descriptor)
