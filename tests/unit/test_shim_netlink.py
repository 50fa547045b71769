"""The plugin's netlink messages equal pyroute2's, byte for byte, and it reads the kernel's acknowledgements."""

from __future__ import annotations

import errno
import socket
from struct import pack, unpack_from
from typing import Any

import pytest
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.nsidmsg import nsidmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from cni_shim import netlink

ADDRESS, GATEWAY = "10.77.0.5", "169.254.1.1"
HOST_MAC, MAC = "02:01:0a:4d:00:05", "02:00:0a:4d:00:05"
REQUEST_ACK, CREATE_EXCL, CREATE_REPLACE = 0x5, 0x600, 0x500


def packed(text: str) -> bytes:
    return socket.inet_aton(text) if "." in text else bytes.fromhex(text.replace(":", ""))


def encoded(message: Any, kind: int, flags: int, fields: dict[str, int], attributes: list[Any]) -> bytes:
    message["header"]["type"] = kind
    message["header"]["flags"] = REQUEST_ACK | flags
    message["header"]["sequence_number"] = 9
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attributes
    message.encode()
    return bytes(message.data)


CASES = {
    "create_veth": (
        netlink.create_veth(b"ipm0123456789ab", packed(HOST_MAC), 1501, b"eth0", packed(MAC), 7, 9001),
        encoded(
            ifinfmsg(),
            16,
            CREATE_EXCL,
            {},
            [
                ("IFLA_IFNAME", "ipm0123456789ab"),
                ("IFLA_MTU", 9001),
                ("IFLA_ADDRESS", HOST_MAC),
                ("IFLA_GROUP", 1501),
                (
                    "IFLA_LINKINFO",
                    {
                        "attrs": [
                            ("IFLA_INFO_KIND", "veth"),
                            (
                                "IFLA_INFO_DATA",
                                {
                                    "attrs": [
                                        (
                                            "VETH_INFO_PEER",
                                            {
                                                "attrs": [
                                                    ("IFLA_IFNAME", "eth0"),
                                                    ("IFLA_MTU", 9001),
                                                    ("IFLA_ADDRESS", MAC),
                                                    ("IFLA_NET_NS_FD", 7),
                                                ]
                                            },
                                        )
                                    ]
                                },
                            ),
                        ]
                    },
                ),
            ],
        ),
    ),
    "get_link": (
        netlink.get_link(b"ipmx"),
        encoded(ifinfmsg(), 18, 0, {}, [("IFLA_IFNAME", "ipmx"), ("IFLA_EXT_MASK", 8)]),
    ),
    "delete_link": (netlink.delete_link(b"ipmx"), encoded(ifinfmsg(), 17, 0, {}, [("IFLA_IFNAME", "ipmx")])),
    "no_link_local_address": (
        netlink.no_link_local_address(b"ipmx"),
        encoded(
            ifinfmsg(),
            16,
            0,
            {},
            [
                ("IFLA_IFNAME", "ipmx"),
                ("IFLA_AF_SPEC", {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", 1)]})]}),
            ],
        ),
    ),
    "discard_link": (
        netlink.discard_link(b"ipmx", 77),
        encoded(ifinfmsg(), 16, 0, {"flags": 0, "change": 1}, [("IFLA_IFNAME", "ipmx"), ("IFLA_GROUP", 77)]),
    ),
    "set_link_up": (
        netlink.set_link_up(70000, netlink.IPV4_DEVCONF_ARP_IGNORE, 1),
        # IFLA_AF_SPEC of AF_INET with IFLA_INET_CONF, which pyroute2 does not write
        pack("=IHHII", 52, 16, REQUEST_ACK, 9, 0)
        + pack("=BBHiII", 0, 0, 0, 70000, 1, 1)
        + pack("=HHHHHHHHI", 20, 26, 16, 2, 12, 1, 8, 19, 1),
    ),
    "set_link_down": (
        netlink.set_link_down(70000),
        encoded(ifinfmsg(), 16, 0, {"index": 70000, "flags": 0, "change": 1}, []),
    ),
    "rename_link": (
        netlink.rename_link(70000, b"gone%d"),
        encoded(ifinfmsg(), 16, 0, {"index": 70000}, [("IFLA_IFNAME", "gone%d")]),
    ),
    "delete_first_address": (
        netlink.delete_first_address(70000),
        encoded(ifaddrmsg(), 21, 0, {"family": 2, "index": 70000}, []),
    ),
    "get_netns_id": (netlink.get_netns_id(7), encoded(nsidmsg(), 90, 0, {}, [("NETNSA_FD", 7)])),
    "add_address": (
        netlink.add_address(5, packed(ADDRESS), 32),
        encoded(
            ifaddrmsg(),
            20,
            CREATE_EXCL,
            {"family": 2, "prefixlen": 32, "scope": 0, "index": 5},
            [("IFA_LOCAL", ADDRESS), ("IFA_ADDRESS", ADDRESS)],
        ),
    ),
    "host_route": (
        netlink.host_route(5, packed(ADDRESS), 1500, 158),
        encoded(
            rtmsg(),
            24,
            CREATE_REPLACE,
            {"family": 2, "dst_len": 32, "table": 0, "proto": 158, "scope": 253, "type": 1},
            [("RTA_DST", ADDRESS), ("RTA_OIF", 5), ("RTA_TABLE", 1500)],
        ),
    ),
    "gateway_route": (
        netlink.gateway_route(5, packed(GATEWAY)),
        encoded(
            rtmsg(),
            24,
            CREATE_EXCL,
            {"family": 2, "dst_len": 32, "table": 254, "proto": 3, "scope": 253, "type": 1},
            [("RTA_DST", GATEWAY), ("RTA_OIF", 5)],
        ),
    ),
    "default_route": (
        netlink.default_route(5, packed(GATEWAY)),
        encoded(
            rtmsg(),
            24,
            CREATE_EXCL,
            {"family": 2, "dst_len": 0, "table": 254, "proto": 3, "scope": 0, "type": 1},
            [("RTA_GATEWAY", GATEWAY), ("RTA_OIF", 5)],
        ),
    ),
    "further_default_route": (
        netlink.further_default_route(5, packed(GATEWAY), 1505, 7),
        encoded(
            rtmsg(),
            24,
            CREATE_EXCL,
            {"family": 2, "dst_len": 0, "table": 0, "proto": 3, "scope": 0, "type": 1, "flags": 4},
            [("RTA_GATEWAY", GATEWAY), ("RTA_OIF", 5), ("RTA_TABLE", 1505), ("RTA_PRIORITY", 7)],
        ),
    ),
    "source_rule": (
        netlink.source_rule(packed(ADDRESS), 1505),
        encoded(
            fibmsg(),
            32,
            CREATE_EXCL,
            {"family": 2, "src_len": 32, "table": 0, "action": 1},
            [("FRA_SRC", ADDRESS), ("FRA_TABLE", 1505)],
        ),
    ),
    "get_route": (
        netlink.get_route(packed("198.51.100.1"), packed(ADDRESS)),
        encoded(
            rtmsg(),
            26,
            0,
            {"family": 2, "dst_len": 32, "src_len": 32},
            [("RTA_DST", "198.51.100.1"), ("RTA_SRC", ADDRESS)],
        ),
    ),
    "get_neighbour": (
        netlink.get_neighbour(5, packed(GATEWAY)),
        encoded(ndmsg(), 30, 0, {"family": 2, "ifindex": 5}, [("NDA_DST", GATEWAY)]),
    ),
    "permanent_neighbour": (
        netlink.permanent_neighbour(5, packed(GATEWAY), packed(HOST_MAC)),
        encoded(
            ndmsg(),
            28,
            CREATE_REPLACE,
            {"family": 2, "ifindex": 5, "state": 0x80},
            [("NDA_DST", GATEWAY), ("NDA_LLADDR", HOST_MAC)],
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_messages(name: str) -> None:
    step, expected = CASES[name]
    assert step.encode(9, acknowledged=True).hex() == expected.hex()
    assert step.what


def test_a_link_is_read_as_pyroute2_writes_it() -> None:
    message = encoded(
        ifinfmsg(),
        16,
        0,
        {"index": 12, "flags": 0x1043, "family": 0},
        [("IFLA_IFNAME", "ipmx"), ("IFLA_LINK", 34), ("IFLA_MTU", 1500)],
    )
    link = netlink.Link(message[16:])
    assert (link.index, link.flags, link.peer_index) == (12, 0x1043, 34)
    assert netlink.Link(encoded(ifinfmsg(), 16, 0, {"index": 1}, [])[16:]).peer_index == 0


@pytest.mark.parametrize("data", [b"", b"\0", b"\0" * 8, b"\3\0\1\0", b"\xff\xff\1\0ab"])
def test_attributes_that_are_cut_short(data: bytes) -> None:
    assert set(netlink.attributes(data, 0)) <= {1}


def acknowledgement(error: int, *, capped: bool, text: str) -> tuple[bytes, int]:
    """A message NLMSG_ERROR with its flags, as linux/netlink.h lays it out."""
    request = pack("=IHHII", 24, 16, 5, 3, 0) + b"requests"
    attribute = pack("=HH", 5 + len(text), 1) + text.encode() + b"\0" if text else b""
    flags = (0x100 if capped else 0) | (0x200 if text else 0)
    body = pack("=i", -error) + (request[:16] if capped else request) + attribute
    return pack("=IHHII", 16 + len(body), 2, flags, 3, 0) + body, flags


@pytest.mark.parametrize("capped", [True, False])
@pytest.mark.parametrize("text", ["", "Numbers are wrong"])
@pytest.mark.parametrize("error", [0, errno.EEXIST])
def test_acknowledgements(error: int, text: str, capped: bool) -> None:
    message, flags = acknowledgement(error, capped=capped, text=text)
    outcome = netlink.Outcome()
    netlink._read_acknowledgement(message, flags, outcome)
    assert (outcome.errno, outcome.explanation) == (error, text)


def test_a_refusal_says_which_step_and_why() -> None:
    outcome = netlink.Outcome()
    outcome.errno = errno.EEXIST
    assert str(netlink.NetlinkError(netlink.get_link(b"x"), outcome)) == "look the interface up: File exists"
    outcome.explanation = "because"
    assert str(netlink.NetlinkError(netlink.get_link(b"x"), outcome)) == "look the interface up: because"


def test_only_an_error_comes_back_unacknowledged() -> None:
    step = netlink.delete_first_address(7)
    silent, acknowledged = (netlink.AF_INET, 1), (netlink.AF_INET, 5)
    for wanted, (family, flags) in ((False, silent), (True, acknowledged)):
        encoded_step = step.encode(3, wanted)
        assert unpack_from("=IHHIIB", encoded_step) == (24, 21, flags, 3, 0, family)


def test_the_kernel_answers_each_step_in_its_place() -> None:
    """Looking an interface up changes nothing, so this may be asked of any kernel."""
    kernel = netlink.Socket()
    try:
        for _ in range(3):
            missing, found, again = kernel.attempt(
                netlink.get_link(b"no-such-link"), netlink.get_link(b"lo"), netlink.get_link(b"no-such-link")
            )
            assert (missing.errno, found.errno, again.errno) == (errno.ENODEV, 0, errno.ENODEV)
            assert netlink.Link(found.answer).index == 1
        with pytest.raises(netlink.NetlinkError) as caught:
            kernel.perform(netlink.get_link(b"lo"), netlink.get_link(b"no-such-link"))
        assert caught.value.errno == errno.ENODEV
    finally:
        kernel.close()
