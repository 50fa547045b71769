"""rtnetlink messages and the socket that carries them (linux/netlink.h, linux/rtnetlink.h, rtnetlink(7)).

Only what one veth pair needs, and only `_struct` and `_socket`: importing a netlink library would take ten times as
long as the work itself. Numbers are in host order, addresses in network order. Tests compare every message with
pyroute2's encoders, byte for byte.
"""

import _socket
from _struct import pack, unpack_from
from errno import EBADMSG, ETIMEDOUT
from posix import strerror
from sys import byteorder

TYPE_CHECKING = False  # as in `typing`, which is not imported
if TYPE_CHECKING:
    from collections.abc import Sequence

NLM_F_REQUEST, NLM_F_ACK = 0x1, 0x4
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200  # in acknowledgements
NLMSG_ERROR = 2
NLMSGERR_ATTR_MSG = 1
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK = 270, 10, 11

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_NEWROUTE, RTM_GETROUTE, RTM_NEWNEIGH, RTM_GETNEIGH, RTM_NEWRULE = 20, 24, 26, 28, 30, 32
RTM_DELADDR, RTM_GETNSID = 21, 90

AF_UNSPEC, AF_INET, AF_INET6 = 0, 2, 10
IFF_UP = 0x1
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK = 1, 3, 4, 5
IFLA_LINKINFO, IFLA_AF_SPEC, IFLA_GROUP, IFLA_NET_NS_FD, IFLA_EXT_MASK = 18, 26, 27, 28, 29
IFLA_LINK_NETNSID = 37
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
IFLA_INET_CONF, IPV4_DEVCONF_FORWARDING, IPV4_DEVCONF_ARP_IGNORE = 1, 1, 19  # linux/if_link.h, linux/ip.h
NETNSA_NSID, NETNSA_FD = 1, 3  # linux/net_namespace.h
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
RTEXT_FILTER_SKIP_STATS = 8
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_SRC, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_TABLE = 1, 2, 4, 5, 6, 15
RTNH_F_ONLINK = 4
FRA_SRC, FRA_TABLE, FR_ACT_TO_TBL = 2, 15, 1
RT_TABLE_UNSPEC, RT_TABLE_MAIN = 0, 254
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
RTPROT_BOOT, RTN_UNICAST = 3, 1
NDA_DST, NDA_LLADDR = 1, 2
NUD_PERMANENT = 0x80

_CREATE = NLM_F_CREATE | NLM_F_EXCL
_UNREADABLE = "the kernel's answer can't be read"
_SMALLEST_ERROR = 36  # NLMSG_ERROR: its header, the error, the header of the request
_MOST_DATAGRAMS = 64  # read for one answer; one for each step is usual, and some may be left of an attempt before


class NetlinkError(Exception):
    """The kernel refused a step: `kind` is the message's type, `errno` the kernel's error, and the text holds its own
    explanation, if it gave one."""

    def __init__(self, step: "Step", outcome: "Outcome") -> None:
        Exception.__init__(self, "%s: %s" % (step.what, outcome.reason))
        self.kind = step.kind
        self.errno = outcome.errno


class Step:
    """One request: what it does, in words for an error; its type, flags and body."""

    __slots__ = ("body", "flags", "kind", "what")

    def __init__(self, what: str, kind: int, flags: int, body: bytes) -> None:
        self.what = what
        self.kind = kind
        self.flags = flags
        self.body = body

    def encode(self, sequence: int, acknowledged: bool) -> bytes:
        """The kernel always reports an error; it reports success only if `acknowledged`."""
        flags = NLM_F_REQUEST | self.flags | (NLM_F_ACK if acknowledged else 0)
        return pack("=IHHII", 16 + len(self.body), self.kind, flags, sequence, 0) + self.body


class Outcome:
    """What came of a step: `errno` 0 or the kernel's error, and the body of its answer, if the step asked for one."""

    __slots__ = ("answer", "errno", "explanation")

    def __init__(self) -> None:
        self.errno = 0
        self.explanation = ""
        self.answer = b""

    @property
    def reason(self) -> str:
        """In the kernel's own words, if it had any."""
        return self.explanation or strerror(self.errno)


def create_veth(name: bytes, mac: bytes, group: int, peer: bytes, peer_mac: bytes, peer_netns: int, mtu: int) -> Step:
    """A veth pair, down: one end here, in a link group; its peer born in the namespace of a descriptor.

    The peer can't be made up in the same message: the kernel opens it before the pair is joined (ENOTCONN).
    """
    peer_attributes = (
        _attribute(IFLA_IFNAME, peer + b"\0")
        + _number(IFLA_MTU, mtu)
        + _attribute(IFLA_ADDRESS, peer_mac)
        + _number(IFLA_NET_NS_FD, peer_netns)
    )
    link_info = _attribute(IFLA_INFO_KIND, b"veth\0") + _attribute(
        IFLA_INFO_DATA, _attribute(VETH_INFO_PEER, _link(0, 0) + peer_attributes)
    )
    body = (
        _link(0, 0)
        + _attribute(IFLA_IFNAME, name + b"\0")
        + _number(IFLA_MTU, mtu)
        + _attribute(IFLA_ADDRESS, mac)
        + _number(IFLA_GROUP, group)
        + _attribute(IFLA_LINKINFO, link_info)
    )
    return Step("create the veth pair", RTM_NEWLINK, _CREATE, body)


def get_link(name: bytes) -> Step:
    body = _link(0, 0) + _attribute(IFLA_IFNAME, name + b"\0") + _number(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    return Step("look the interface up", RTM_GETLINK, 0, body)


def no_link_local_address(name: bytes) -> Step:
    """For a link that is down: it gets no IPv6 address by itself when it goes up."""
    mode = _attribute(IFLA_INET6_ADDR_GEN_MODE, bytes((IN6_ADDR_GEN_MODE_NONE,)))
    body = _link(0, 0) + _attribute(IFLA_IFNAME, name + b"\0")
    body += _attribute(IFLA_AF_SPEC, _attribute(AF_INET6, mode))
    return Step("keep IPv6 addresses off the veth pair", RTM_NEWLINK, 0, body)


def discard_link(name: bytes, group: int) -> Step:
    """Down, which takes its routes away, and in that link group: nothing passes it any more. 0.03 ms."""
    body = _link(0, 0, IFF_UP) + _attribute(IFLA_IFNAME, name + b"\0") + _number(IFLA_GROUP, group)
    return Step("take the veth pair out of service", RTM_NEWLINK, 0, body)


def delete_link(name: bytes) -> Step:
    return Step("remove the veth pair", RTM_DELLINK, 0, _link(0, 0) + _attribute(IFLA_IFNAME, name + b"\0"))


def set_link_up(index: int, setting: int, value: int) -> Step:
    """Up, and with that IPv4 setting (IPV4_DEVCONF_*), whatever the one for links to come is
    (net.ipv4.conf.default). In one message: a write to /proc/sys would take 0.05 ms, and longer while others change
    links."""
    conf = _attribute(IFLA_INET_CONF, _number(setting, value))
    body = _link(index, IFF_UP) + _attribute(IFLA_AF_SPEC, _attribute(AF_INET, conf))
    return Step("bring the interface up", RTM_NEWLINK, 0, body)


def set_link_down(index: int) -> Step:
    """Its routes go, and its addresses stay."""
    return Step("take the container's interface down", RTM_NEWLINK, 0, _link(index, 0, IFF_UP))


def rename_link(index: int, pattern: bytes) -> Step:
    """The kernel puts the lowest number that is free in the place of %d."""
    body = _link(index, 0) + _attribute(IFLA_IFNAME, pattern + b"\0")
    return Step("free the name of the container's interface", RTM_NEWLINK, 0, body)


def delete_first_address(index: int) -> Step:
    """Whatever IPv4 address comes first on the link; EADDRNOTAVAIL: it has none."""
    body = pack("=BBBBI", AF_INET, 0, 0, 0, index)
    return Step("remove the container's address", RTM_DELADDR, 0, body)


def get_netns_id(descriptor: int) -> Step:
    """By which number our namespace knows that of the descriptor."""
    body = pack("=Bxxx", AF_UNSPEC) + _number(NETNSA_FD, descriptor)
    return Step("ask for the number of the container's namespace", RTM_GETNSID, 0, body)


def add_address(index: int, address: bytes, prefix_length: int) -> Step:
    body = pack("=BBBBI", AF_INET, prefix_length, 0, RT_SCOPE_UNIVERSE, index)
    body += _attribute(IFA_LOCAL, address) + _attribute(IFA_ADDRESS, address)
    return Step("add the address", RTM_NEWADDR, _CREATE, body)


def host_route(index: int, address: bytes, table: int, protocol: int) -> Step:
    """The route to a pod. It replaces another one to the same address, which is what a crashed run left behind: the
    daemon grants an address once."""
    body = pack("=BBBBBBBBI", AF_INET, 32, 0, 0, RT_TABLE_UNSPEC, protocol, RT_SCOPE_LINK, RTN_UNICAST, 0)
    body += _attribute(RTA_DST, address) + _number(RTA_OIF, index) + _number(RTA_TABLE, table)
    return Step("add the route to the container", RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body)


def gateway_route(index: int, gateway: bytes) -> Step:
    body = pack("=BBBBBBBBI", AF_INET, 32, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_LINK, RTN_UNICAST, 0)
    body += _attribute(RTA_DST, gateway) + _number(RTA_OIF, index)
    return Step("add the route to the gateway inside the container", RTM_NEWROUTE, _CREATE, body)


def default_route(index: int, gateway: bytes) -> Step:
    body = pack("=BBBBBBBBI", AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0)
    body += _attribute(RTA_GATEWAY, gateway) + _number(RTA_OIF, index)
    return Step("add the default route inside the container", RTM_NEWROUTE, _CREATE, body)


def further_default_route(index: int, gateway: bytes, table: int, metric: int) -> Step:
    """One beside that of another interface, in a table of its own or with a metric. The gateway is on the link
    without a route that says so: the main table has room for one such route."""
    body = pack(
        *("=BBBBBBBBI", AF_INET, 0, 0, 0, RT_TABLE_UNSPEC, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST, RTNH_F_ONLINK)
    )
    body += _attribute(RTA_GATEWAY, gateway) + _number(RTA_OIF, index) + _number(RTA_TABLE, table)
    body += _number(RTA_PRIORITY, metric)
    return Step("add a further default route inside the container", RTM_NEWROUTE, _CREATE, body)


def source_rule(address: bytes, table: int) -> Step:
    """What has that source looks the table up first."""
    body = pack("=BBBBBBBBI", AF_INET, 0, 32, 0, RT_TABLE_UNSPEC, 0, 0, FR_ACT_TO_TBL, 0)
    body += _attribute(FRA_SRC, address) + _number(FRA_TABLE, table)
    return Step("add the rule for the address inside the container", RTM_NEWRULE, _CREATE, body)


def permanent_neighbour(index: int, address: bytes, mac: bytes) -> Step:
    body = pack("=BxxxiHBB", AF_INET, index, NUD_PERMANENT, 0, 0)
    body += _attribute(NDA_DST, address) + _attribute(NDA_LLADDR, mac)
    return Step("add the neighbour entry of the gateway", RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)


def get_route(destination: bytes, source: bytes) -> Step:
    """Which way a packet would take."""
    body = pack("=BBBBBBBBI", AF_INET, 32, 32, 0, RT_TABLE_UNSPEC, 0, 0, 0, 0)
    body += _attribute(RTA_DST, destination) + _attribute(RTA_SRC, source)
    return Step("ask for the route out of the container", RTM_GETROUTE, 0, body)


def get_neighbour(index: int, address: bytes) -> Step:
    body = pack("=BxxxiHBB", AF_INET, index, 0, 0, 0) + _attribute(NDA_DST, address)
    return Step("ask for the neighbour entry of the gateway", RTM_GETNEIGH, 0, body)


class Way:
    """The answer to `get_route`: by which link, and by which router (empty: none)."""

    __slots__ = ("gateway", "index")

    def __init__(self, answer: bytes) -> None:
        found = attributes(answer, 12)
        self.index = int.from_bytes(found.get(RTA_OIF, b""), byteorder)
        self.gateway = found.get(RTA_GATEWAY, b"")


class Link:
    """A link as the kernel describes it: its index, flags, and for a veth the index of its other end and the number
    of the namespace that this is in (-1: ours). Raises NetlinkError."""

    __slots__ = ("flags", "index", "peer_index", "peer_netns")

    def __init__(self, answer: bytes) -> None:
        if len(answer) < 16:
            raise NetlinkError(get_link(b""), _failure(EBADMSG, _UNREADABLE))
        self.index, self.flags = unpack_from("=iI", answer, 4)
        found = attributes(answer, 16)
        self.peer_index = _signed(found.get(IFLA_LINK, b""), 0)
        self.peer_netns = _signed(found.get(IFLA_LINK_NETNSID, b""), -1)


def netns_id(answer: bytes) -> int:
    """The answer to `get_netns_id`; -1: it has no number here, so no link of ours leads there."""
    return _signed(attributes(answer, 4).get(NETNSA_NSID, b""), -1)


def _signed(value: bytes, missing: int) -> int:
    return int(unpack_from("=i", value)[0]) if len(value) == 4 else missing


def _link(index: int, flags: int, change: int = 0) -> bytes:
    return pack("=BBHiII", AF_UNSPEC, 0, 0, index, flags, flags | change)


def _attribute(kind: int, value: bytes) -> bytes:
    length = len(value) + 4
    return pack("=HH", length, kind) + value + b"\0" * (-length & 3)


def _number(kind: int, value: int) -> bytes:
    return pack("=HHI", 8, kind, value)


def attributes(data: bytes, at: int) -> dict[int, bytes]:
    """The attributes from offset `at` on, by type without its flag bits."""
    found = {}
    while at + 4 <= len(data):
        length, kind = unpack_from("=HH", data, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += length + 3 & ~3
    return found


class Socket:
    """A route netlink socket in the network namespace that the process is in when it opens it."""

    def __init__(self) -> None:
        self._socket = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._socket.settimeout(10.0)  # the kernel answers before `send` returns: only a lost answer could block
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def attempt(self, *steps: Step) -> list[Outcome]:
        """Send all steps at once; the kernel carries each out in turn, also after one that failed.

        Only the last one is acknowledged. By then the errors of those before it have come, and the others succeeded.

        Raises NetlinkError if an answer does not come or can't be read.
        """
        first, last = self._sequence + 1, self._sequence + len(steps)
        self._sequence = last
        outcomes = [Outcome() for _ in steps]
        waiting = {first + number: outcome for number, outcome in enumerate(outcomes)}
        failure = _failure(EBADMSG, _UNREADABLE)
        try:
            self._socket.send(
                b"".join([step.encode(number, number == last) for number, step in enumerate(steps, first)])
            )
            for _ in range(_MOST_DATAGRAMS):
                _read_answers(self._socket.recv(32768), waiting)
                if last not in waiting:
                    return outcomes
        except OSError as error:  # ENOBUFS: an answer was lost
            timeout = isinstance(error, TimeoutError)
            failure = _failure(error.errno or ETIMEDOUT, "the kernel does not answer" if timeout else "")
        raise NetlinkError(steps[-1], failure)

    def perform(self, *steps: Step) -> list[Outcome]:
        """The same; raises NetlinkError for the first step that failed."""
        outcomes = self.attempt(*steps)
        check(steps, outcomes)
        return outcomes


def check(steps: "Sequence[Step]", outcomes: list[Outcome]) -> None:
    """Raises NetlinkError for the first of the steps that failed."""
    for step, outcome in zip(steps, outcomes):  # noqa: B905
        if outcome.errno:
            raise NetlinkError(step, outcome)


def _failure(errno: int, explanation: str) -> Outcome:
    outcome = Outcome()
    outcome.errno = errno
    outcome.explanation = explanation
    return outcome


def _read_answers(data: bytes, waiting: dict[int, Outcome]) -> None:
    """Give the messages of one datagram to the outcomes that wait for them, by sequence number. An
    acknowledgement ends the wait. Malformed messages are skipped."""
    at = 0
    while at + 16 <= len(data):
        length, kind, flags, sequence = unpack_from("=IHHI", data, at)
        message = data[at : at + length]
        outcome = waiting.get(sequence)
        if outcome is not None:
            if kind != NLMSG_ERROR:
                outcome.answer = message[16:]
            elif len(message) >= _SMALLEST_ERROR and -4096 < unpack_from("=i", message, 16)[0] <= 0:
                _read_acknowledgement(message, flags, outcome)
                del waiting[sequence]
        at += max(length + 3 & ~3, 16)


def _read_acknowledgement(message: bytes, flags: int, outcome: Outcome) -> None:
    """struct nlmsgerr: the error, the header of the request, the request itself unless capped, then attributes."""
    outcome.errno = -unpack_from("=i", message, 16)[0]
    if flags & NLM_F_ACK_TLVS:
        request = 16 if flags & NLM_F_CAPPED else unpack_from("=I", message, 20)[0]
        text = attributes(message, 20 + (request + 3 & ~3)).get(NLMSGERR_ATTR_MSG, b"")
        outcome.explanation = text.rstrip(b"\0").decode("utf-8", "replace")
