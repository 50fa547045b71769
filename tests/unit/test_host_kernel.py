"""What is written to the kernel by hand is read by pyroute2 as what was meant, and a refusal tells its reason."""

from __future__ import annotations

import errno
import socket
from socket import AF_INET, AF_INET6
from typing import Any

import pytest
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from ipamd.host import HostError, netlink
from ipamd.host.desired import Address, FoundRoute, Route, Rule
from ipamd.host.difference import LinkChange
from ipamd.host.kernel import Kernel
from ipamd.host.links import Link

ACK, CREATE_EXCL, CREATE_REPLACE = 0x5, 0x600, 0x500
READERS = {16: ifinfmsg, 20: ifaddrmsg, 24: rtmsg, 25: rtmsg, 32: fibmsg, 33: fibmsg}
LINK = Link(7, "eth1", "02:00:00:00:00:01", 1500, False)


class Sent:
    """In the place of a netlink socket: keeps what is sent, and answers with that datagram."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.data = b""

    def __call__(self, *_: object) -> Sent:
        return self

    def __enter__(self) -> Sent:
        return self

    def __exit__(self, *_: object) -> None: ...

    def settimeout(self, seconds: float) -> None: ...

    def setsockopt(self, *_: int) -> None: ...

    def send(self, data: bytes) -> None:
        self.data = data

    def recv(self, size: int) -> bytes:
        return self.answer


def acknowledgement(code: int, explanation: bytes = b"") -> bytes:
    body = (-code).to_bytes(4, "little", signed=True) + bytes(16)
    flags = 0x100
    if explanation:
        body, flags = body + netlink.attribute(1, explanation + b"\0"), flags | 0x200
    return netlink.HEADER.pack(16 + len(body), 2, flags, 1, 0) + body


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(158)


def written(monkeypatch: pytest.MonkeyPatch, act: Any) -> tuple[int, int, dict[str, Any], dict[str, Any]]:
    """Type, flags, fields of the header and attributes, as pyroute2 reads them."""
    sent = Sent(acknowledgement(0))
    monkeypatch.setattr(socket, "socket", sent)
    act()
    monkeypatch.undo()
    (kind,) = {kind for kind, *_ in netlink.messages(sent.data)}
    message = READERS[kind](sent.data)
    message.decode()
    assert message["header"]["length"] == len(sent.data)
    fields = {name: message[name] for name, _ in message.fields}
    return kind, message["header"]["flags"], fields, dict(message["attrs"])


@pytest.mark.parametrize(
    ("rule", "length", "attributes"),
    [
        (Rule(500, 1500), 0, {}),
        (Rule(1501, 1501, 0x1, 0x7F), 0, {"FRA_FWMARK": 1, "FRA_FWMASK": 0x7F}),
        (Rule(1000, 254, 0, 0x40), 0, {"FRA_FWMARK": 0, "FRA_FWMASK": 0x40}),
        (Rule(32000, 1501, source="10.0.1.10"), 32, {"FRA_SRC": "10.0.1.10"}),
        (Rule(32000, 1501, source="10.0.0.0/16"), 16, {"FRA_SRC": "10.0.0.0"}),
        (Rule(32000, 1501, source="2001:db8::10", family=AF_INET6), 128, {"FRA_SRC": "2001:db8::10"}),
    ],
)
def test_rules(
    monkeypatch: pytest.MonkeyPatch, kernel: Kernel, rule: Rule, length: int, attributes: dict[str, Any]
) -> None:
    expected = {"FRA_PRIORITY": rule.priority, "FRA_TABLE": rule.table, "FRA_PROTOCOL": 158, **attributes}
    for act, kind, flags in ((kernel.add_rule, 32, ACK | CREATE_EXCL), (kernel.delete_rule, 33, ACK)):
        found = written(monkeypatch, lambda act=act: act(rule))
        assert found[:2] == (kind, flags)
        assert (
            found[2] | {"family": rule.family, "src_len": length, "dst_len": 0, "action": 1, "flags": 0} == found[2]
        )
        assert found[3] == expected


@pytest.mark.parametrize(
    ("route", "length", "attributes", "scope", "flags"),
    [
        (Route(1500, 9, "10.0.1.50"), 32, {"RTA_DST": "10.0.1.50", "RTA_OIF": 9}, 253, 0),
        (Route(1501, 7, gateway="10.0.1.1"), 0, {"RTA_GATEWAY": "10.0.1.1", "RTA_OIF": 7}, 0, 4),
        (Route(77, 7, "10.6.0.0/16", metric=7), 16, {"RTA_DST": "10.6.0.0", "RTA_OIF": 7, "RTA_PRIORITY": 7}, 253, 0),
        (
            Route(1501, 7, gateway="fe80::1", family=AF_INET6),
            0,
            {"RTA_GATEWAY": "fe80::1", "RTA_OIF": 7},
            0,
            4,
        ),
    ],
)
def test_routes(
    monkeypatch: pytest.MonkeyPatch,
    kernel: Kernel,
    route: Route,
    length: int,
    attributes: dict[str, Any],
    scope: int,
    flags: int,
) -> None:
    expected = {"RTA_TABLE": route.table, **attributes}
    common = {"family": route.family, "dst_len": length, "src_len": 0, "tos": 0}
    found = written(monkeypatch, lambda: kernel.add_route(route))
    assert found[:2] == (24, ACK | CREATE_REPLACE)
    assert found[2] | common | {"proto": 158, "scope": scope, "type": 1, "flags": flags} == found[2]
    assert found[3] == expected
    found = written(monkeypatch, lambda: kernel.delete_route(FoundRoute(route, 4, 7)))
    assert found[:2] == (25, ACK)
    assert found[2] | common | {"proto": 4, "scope": 255, "type": 7, "flags": 0} == found[2]
    assert found[3] == expected


@pytest.mark.parametrize(("address", "length", "flags"), [("10.0.1.10", 32, 0), ("2001:db8::10", 128, 2)])
def test_addresses(monkeypatch: pytest.MonkeyPatch, kernel: Kernel, address: str, length: int, flags: int) -> None:
    found = written(monkeypatch, lambda: kernel.add_address(Address(7, address)))
    family = AF_INET if length == 32 else AF_INET6
    assert found[:2] == (20, ACK | CREATE_EXCL)
    assert found[2] == {"family": family, "prefixlen": length, "flags": flags, "scope": 0, "index": 7}
    assert found[3] == {"IFA_LOCAL": address, "IFA_ADDRESS": address}


def test_links(monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> None:
    for change, up, attributes in (
        (LinkChange(LINK, "up", 1), 1, {}),
        (LinkChange(LINK, "mtu", 1400), 0, {"IFLA_MTU": 1400}),
        (LinkChange(LINK, "group", 1501), 0, {"IFLA_GROUP": 1501}),
    ):
        found = written(monkeypatch, lambda change=change: kernel.set_link(change))
        assert found[:2] == (16, ACK)
        assert found[2] | {"family": 0, "ifi_type": 0, "index": 7, "flags": up, "change": up} == found[2]
        assert found[3] == attributes


def test_a_refusal_is_told_in_the_kernels_words(monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> None:
    route = Route(1501, 7, gateway="10.0.1.1")
    monkeypatch.setattr(socket, "socket", Sent(acknowledgement(errno.EINVAL, b"Nexthop has invalid gateway")))
    with pytest.raises(HostError, match="ip route default table 1501: Nexthop has invalid gateway"):
        kernel.add_route(route)
    monkeypatch.setattr(socket, "socket", Sent(acknowledgement(errno.EEXIST)))
    with pytest.raises(HostError, match="ip rule 500 lookup 1500: File exists; another program holds that place"):
        kernel.add_rule(Rule(500, 1500))


@pytest.mark.parametrize("gone", [errno.ENOENT, errno.ESRCH, errno.ENODEV])
def test_what_is_gone_needs_no_removal(monkeypatch: pytest.MonkeyPatch, kernel: Kernel, gone: int) -> None:
    monkeypatch.setattr(socket, "socket", Sent(acknowledgement(gone)))
    kernel.delete_rule(Rule(500, 1500))
    monkeypatch.setattr(socket, "socket", Sent(acknowledgement(errno.EPERM)))
    with pytest.raises(HostError, match="removing ip rule 500 lookup 1500: Operation not permitted"):
        kernel.delete_rule(Rule(500, 1500))
