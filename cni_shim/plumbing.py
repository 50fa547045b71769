"""The veth pair of one container: built from a plan, taken out of service and removed by its name.

Order matters for speed and for safety. The peer is born inside the container's namespace, because moving a device
costs a grace period of the kernel (15 ms). The host's socket is opened before the process enters the container's
namespace and stays in the host's, so that undoing works from either side; the process never goes back, it ends.
"""

from errno import EAFNOSUPPORT, EBUSY, EEXIST, ENODEV, ENOENT
from posix import O_CLOEXEC, O_RDONLY, O_WRONLY, close, open, read, write

from cni_shim import namespace, netlink
from cni_shim.errors import KERNEL_REFUSED, CniError
from cni_shim.names import DISCARDED_GROUP

TYPE_CHECKING = False  # as in `typing`, which is not imported
if TYPE_CHECKING:
    from cni_shim.protobuf import Plan

# What the container's end of a pair is called from DEL until it is deleted; the kernel picks the number.
_FREED = b"gone%d"

# Tries to make a pair whose predecessor the daemon may be deleting at the same moment.
_ATTEMPTS = 3


def attach(host: netlink.Socket, plan: "Plan", netns: int) -> bytes:
    """Build everything that the plan says, and return the result to print. Raises NetlinkError or CniError; the
    caller undoes with `detach`."""
    link = _create_pair(host, plan, netns)
    _ignore_router_advertisements(plan.host_ifname)
    host.perform(
        netlink.set_link_up(link.index, netlink.IPV4_DEVCONF_FORWARDING, 1),
        netlink.host_route(link.index, plan.address, plan.table, plan.route_protocol),
    )
    namespace.enter(netns)
    _answer_arp()
    container = netlink.Socket()
    index = link.peer_index
    steps = (
        netlink.set_link_up(index, netlink.IPV4_DEVCONF_ARP_IGNORE, 0),
        netlink.add_address(index, plan.address, plan.prefix_length),
        netlink.permanent_neighbour(index, plan.gateway, plan.host_mac),
        netlink.gateway_route(index, plan.gateway),
        netlink.default_route(index, plan.gateway),
    )
    outcomes = container.attempt(*steps)
    if EEXIST not in (outcomes[3].errno, outcomes[4].errno):
        netlink.check(steps, outcomes)
        return plan.result
    netlink.check(steps[:3], outcomes)
    _give_second_default_route(container, index, plan)
    return plan.result_beside or plan.result


def _give_second_default_route(container: netlink.Socket, index: int, plan: "Plan") -> None:
    """Another interface has the default route and keeps it. What comes from our address leaves by our interface
    nevertheless, as the host drops it anywhere else; and so does all the rest should the other interface go."""
    table = plan.table + index
    container.perform(
        netlink.further_default_route(index, plan.gateway, table, 0),
        netlink.further_default_route(index, plan.gateway, netlink.RT_TABLE_MAIN, index),
    )
    rule = netlink.source_rule(plan.address, table)
    (outcome,) = container.attempt(rule)
    if outcome.errno not in (0, EEXIST):  # a rule outlives the interface that it was made for
        raise netlink.NetlinkError(rule, outcome)


def _create_pair(host: netlink.Socket, plan: "Plan", netns: int) -> netlink.Link:
    create = netlink.create_veth(
        plan.host_ifname, plan.host_mac, plan.link_group, plan.ifname, plan.mac, netns, plan.mtu
    )
    # Nothing of IPv6 is used on this link.
    bare = netlink.no_link_local_address(plan.host_ifname)
    look = netlink.get_link(plan.host_ifname)
    for _ in range(_ATTEMPTS):
        created, bared, found = host.attempt(create, bare, look)
        if created.errno != EEXIST:
            break
        if not found.errno:  # of an earlier ADD; else something else's, or one that the daemon has just deleted
            detach(host, plan.host_ifname)
    if created.errno == EEXIST and found.errno == ENODEV:
        raise CniError(
            KERNEL_REFUSED,
            "the container already has an interface named %s" % plan.ifname.decode("utf-8", "replace"),
            "something else made it; remove it, or ask for another name (CNI_IFNAME)",
        )
    if created.errno:
        raise netlink.NetlinkError(create, created)
    if bared.errno not in (0, EAFNOSUPPORT):  # a kernel without IPv6, or a link whose MTU is too small for it
        raise netlink.NetlinkError(bare, bared)
    if found.errno:
        raise netlink.NetlinkError(look, found)
    return netlink.Link(found.answer)


def discard(host: netlink.Socket, host_ifname: bytes) -> None:
    """Cut the pair off; the daemon deletes it in a moment, with others. That it is gone already is fine. Raises
    NetlinkError."""
    step = netlink.discard_link(host_ifname, DISCARDED_GROUP)
    (outcome,) = host.attempt(step)
    if outcome.errno not in (0, ENODEV):
        raise netlink.NetlinkError(step, outcome)


def free_name(host: netlink.Socket, host_ifname: bytes, path: bytes) -> bool:
    """Let the container's end of a discarded pair give its name and address free: the next ADD in that namespace need
    not wait until the pair is deleted. Moves the process into the namespace. `path`: of the container's namespace,
    empty when there is none. Whether it is done; when it is not, to delete the pair helps.
    """
    netns = namespace.find_netns(path)
    if netns < 0:
        return True
    try:
        index = _find_peer(host, host_ifname, netns)
        if not index:
            return True
        address, rename = netlink.delete_first_address(index), netlink.rename_link(index, _FREED)
        namespace.enter(netns)
        container = netlink.Socket()
        # With its last address the link loses its routes, too.
        _, more, renamed = container.attempt(address, address, rename)
        while not more.errno:  # another plugin has added some
            (more,) = container.attempt(address)
        if renamed.errno == EBUSY:  # kernels before 6.2 rename no link that is up
            _, renamed = container.attempt(netlink.set_link_down(index), rename)
    except (CniError, netlink.NetlinkError, OSError):
        return False
    return renamed.errno in (0, ENODEV)


def _find_peer(host: netlink.Socket, host_ifname: bytes, netns: int) -> int:
    """The index of the container's end of the pair; 0: no such end is in that namespace (a descriptor). Raises
    NetlinkError."""
    found, named = host.attempt(netlink.get_link(host_ifname), netlink.get_netns_id(netns))
    if found.errno or named.errno:
        return 0
    link = netlink.Link(found.answer)
    # In another namespace the same index is somebody else's.
    return link.peer_index if 0 <= link.peer_netns == netlink.netns_id(named.answer) else 0


def detach(host: netlink.Socket, host_ifname: bytes) -> None:
    """Delete the pair, and with it its routes. That it is gone already is fine. Raises NetlinkError."""
    step = netlink.delete_link(host_ifname)
    (outcome,) = host.attempt(step)
    if outcome.errno not in (0, ENODEV):
        raise netlink.NetlinkError(step, outcome)


def _ignore_router_advertisements(host_ifname: bytes) -> None:
    """Without this a container could become the host's IPv6 gateway (CVE-2020-10749).

    Not by `disable_ipv6`: while another process holds the kernel's lock of network devices, a write to that one tries
    again without a pause. With 32 ADDs at once it took half of their CPU time, 4 ms each.
    """
    path = b"/proc/sys/net/ipv6/conf/" + host_ifname + b"/accept_ra"
    _write(path, b"0", "ignore router advertisements on the host's interface")


def _answer_arp() -> None:
    """The host has to be answered when it asks for the container's address. A new namespace inherits the host's IPv4
    settings, and from `arp_ignore` 2 on (Documentation/networking/ip-sysctl.rst) a container whose address is a
    network of its own answers nobody. What counts is the larger of the value for all and the interface's."""
    path = b"/proc/sys/net/ipv4/conf/all/arp_ignore"
    try:
        descriptor = open(path, O_RDONLY | O_CLOEXEC)
    except OSError:  # no /proc here
        return
    strict = read(descriptor, 8).strip() not in (b"0", b"1")
    close(descriptor)
    if strict:
        _write(path, b"1", "let the container answer ARP")


def _write(path: bytes, value: bytes, what: str) -> None:
    """A setting that does not exist, as with a kernel without IPv6, is none. Raises CniError."""
    try:
        descriptor = open(path, O_WRONLY | O_CLOEXEC)
        try:
            write(descriptor, value)
        finally:
            close(descriptor)
    except OSError as error:
        if error.errno != ENOENT:
            raise CniError(
                KERNEL_REFUSED, "%s: %s" % (what, error.strerror), "/proc/sys has to be writable for the plugin"
            ) from None
