"""Whatever arrives in the place of the kernel's answers, the netlink socket ends with outcomes or its own error."""

from __future__ import annotations

from contextlib import suppress
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_shim import netlink

STEPS = (
    netlink.get_link(b"ipmx"),
    netlink.set_link_up(7, netlink.IPV4_DEVCONF_ARP_IGNORE, 1),
    netlink.get_route(b"\xc6\x33\x64\1", b"\x0a\0\0\1"),
)


class Kernel:
    """Answers with the given datagrams, then for ever with the last one, or with silence."""

    def __init__(self, datagrams: list[bytes], silent: bool) -> None:
        self.datagrams = datagrams
        self.silent = silent
        self.asked = 0

    def send(self, data: bytes) -> int:
        return len(data)

    def recv(self, size: int) -> bytes:
        self.asked += 1
        assert self.asked < 10_000, "reads without end"
        if len(self.datagrams) > (0 if self.silent else 1):
            return self.datagrams.pop(0)[:size]
        if self.silent:
            raise TimeoutError("timed out")
        return self.datagrams[0][:size]


def connected(kernel: Kernel) -> netlink.Socket:
    made = netlink.Socket.__new__(netlink.Socket)
    made._socket = kernel  # type: ignore[assignment]
    made._sequence = 0
    return made


def message(kind: int, flags: int, sequence: int, body: bytes, longer: int = 0) -> bytes:
    return pack("=IHHII", 16 + len(body) + longer, kind, flags, sequence, 0) + body + b"\0" * (-len(body) & 3)


messages = st.builds(
    message,
    st.sampled_from([netlink.NLMSG_ERROR, netlink.NLMSG_ERROR, netlink.RTM_NEWLINK, 3]),
    st.sampled_from([0, 0x100, 0x200, 0x300, 0xFFFF]),
    st.integers(0, 4),
    st.one_of(
        st.binary(max_size=60),
        st.builds(
            lambda error, rest: pack("=i", error) + rest,
            st.sampled_from([0, -17, 5, -(2**31)]),
            st.binary(max_size=60),
        ),
    ),
    st.sampled_from([0, 0, 0, -16, -1, 1, 5000]),
)
datagrams = st.one_of(st.binary(max_size=120), st.lists(messages, max_size=6).map(b"".join))


@given(st.lists(datagrams, min_size=1, max_size=4), st.booleans())
def test_outcomes_or_a_netlink_error(answers: list[bytes], silent: bool) -> None:
    with suppress(netlink.NetlinkError):
        for outcome in connected(Kernel(answers, silent)).attempt(*STEPS):
            assert 0 <= outcome.errno < 4096 and outcome.reason
            if not outcome.errno:
                netlink.Way(outcome.answer)
                netlink.Link(outcome.answer)


@given(st.binary(max_size=200), st.integers(0, 20))
def test_any_bytes_are_attributes(data: bytes, at: int) -> None:
    assert all(0 <= kind < 0x4000 for kind in netlink.attributes(data, at))
    netlink.Way(data)
    with suppress(netlink.NetlinkError):
        netlink.Link(data)


def acknowledged(sequence: int) -> bytes:
    return message(netlink.NLMSG_ERROR, 0x100, sequence, pack("=i", 0) + bytes(16))


def test_an_acknowledgement_counts_once() -> None:
    kernel = Kernel([acknowledged(1) * 3, acknowledged(2), acknowledged(3)], silent=True)
    assert [outcome.errno for outcome in connected(kernel).attempt(*STEPS)] == [0, 0, 0]
    assert kernel.datagrams == []


def test_the_step_to_be_acknowledged_is_named_when_it_is_not() -> None:
    with pytest.raises(
        netlink.NetlinkError, match="ask for the route out of the container: the kernel does not answer"
    ):
        connected(Kernel([acknowledged(1)], silent=True)).attempt(*STEPS)


def test_a_link_that_was_asked_for_but_not_described() -> None:
    with pytest.raises(netlink.NetlinkError, match="look the interface up"):
        netlink.Link(b"")
