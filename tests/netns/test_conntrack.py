"""Forgetting the tracked connections of one address, on a real kernel with real flows.

pods namespace                    node namespace (tracks, forwards)              peer namespace
10.1.0.1, 10.1.0.2 --- p0    n0   10.1.0.254   SNAT, DNAT   n1 10.2.0.254 --- p1    10.2.0.1
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from ipamd.host import HostNetwork, conntrack, netlink
from ipamd.settings import HostSettings
from ipamd.sim import netns

pytestmark = pytest.mark.netns

ONE, TWO, PEER, NODE = "10.1.0.1", "10.1.0.2", "10.2.0.1", "10.2.0.254"

# NAT of both kinds: port 5001 leaves with the node's address, the node's ports 30001 and 30002 lead to the pods. And
# port 5007 has a zone of its own.
RULES = f"""
table ip flows {{
  chain zones {{
    type filter hook prerouting priority raw; policy accept;
    udp dport 5007 ct zone set 7
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    ip daddr {NODE} udp dport 30001 dnat to {ONE}:5000
    ip daddr {NODE} udp dport 30002 dnat to {TWO}:5000
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    udp dport 5001 snat to {NODE}
  }}
}}
"""

T = TypeVar("T")


class Stage:
    def __init__(self, prefix: str) -> None:
        self.pods, self.node, self.peer = f"{prefix}-pods", f"{prefix}-node", f"{prefix}-peer"
        self._sockets: list[socket.socket] = []

    def build(self) -> None:
        for name in (self.pods, self.node, self.peer):
            subprocess.run(["ip", "netns", "add", name], check=True)
            ip(name, "link set lo up")
        netns.write_sysctls(self.node, {"ipv4/ip_forward": 1})
        ip(
            self.node,
            f"link add n0 type veth peer name p0 netns {self.pods}",
            f"link add n1 type veth peer name p1 netns {self.peer}",
            "addr add 10.1.0.254/24 dev n0",
            f"addr add {NODE}/24 dev n1",
            "link set n0 up",
            "link set n1 up",
        )
        gateway = "10.1.0.254"
        ip(
            self.pods,
            *(f"addr add {address}/24 dev p0" for address in (ONE, TWO)),
            "link set p0 up",
            f"route add default via {gateway}",
        )
        ip(self.peer, f"addr add {PEER}/24 dev p1", "link set p1 up", f"route add 10.1.0.0/24 via {NODE}")
        argv = ["ip", "netns", "exec", self.node, "nft", "-f", "-"]
        subprocess.run(argv, input=RULES, text=True, check=True)

    def remove(self) -> None:
        for each in self._sockets:
            each.close()
        for name in (self.pods, self.node, self.peer):
            subprocess.run(["ip", "netns", "delete", name], check=False)

    # Flows

    def udp(self, where: str, source: str, destination: str, port: int, *, answered: bool = False) -> None:
        """`answered`: it is received at the other end, and an answer comes back."""
        with self._socket(where, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.bind((source, 0))
            if not answered:
                client.sendto(b"?", (destination, port))
                return
            there = self.peer if where == self.pods else self.pods
            with self._socket(there, socket.SOCK_DGRAM) as server:
                server.settimeout(10)
                server.bind((destination, port))
                client.sendto(b"?", (destination, port))
                _, peer = server.recvfrom(16)
                server.sendto(b"!", peer)
                assert client.recv(16) == b"!"

    def tcp(self, source: str) -> None:
        """A connection that stays open."""
        listener = self._socket(self.peer, socket.SOCK_STREAM)
        listener.bind((PEER, 0))
        listener.listen()
        listener.settimeout(10)
        client = self._socket(self.pods, socket.SOCK_STREAM)
        client.settimeout(10)
        client.bind((source, 0))
        client.connect(listener.getsockname())
        self._sockets += [listener, client, listener.accept()[0]]

    def ping(self, source: str) -> None:
        with netns.run_in(
            self.pods, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        ) as client:
            client.bind((source, 0))
            kind, identity = 8 << 8, 77
            checksum = ~(kind + identity) & 0xFFFF
            client.sendto(struct.pack("!HHHH", kind, checksum, identity, 0), (PEER, 0))

    def all_kinds(self, address: str) -> int:
        """One flow of each kind that an entry can be found by; returns how many."""
        self.udp(self.pods, address, PEER, 5000, answered=True)
        self.udp(self.peer, PEER, address, 5000, answered=True)
        self.udp(self.pods, address, PEER, 5001, answered=True)  # SNAT
        self.udp(self.peer, PEER, NODE, 30000 + int(address[-1]))  # DNAT
        self.udp(self.pods, address, PEER, 5007)  # in a zone
        self.udp(self.pods, address, PEER, 5999)  # to a port where nobody listens
        self.tcp(address)
        self.ping(address)
        return 8

    def _socket(self, where: str, kind: socket.SocketKind) -> socket.socket:
        made = netns.run_in(where, lambda: socket.socket(socket.AF_INET, kind))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return made

    # The subject

    def entries(self, family: str = "ipv4") -> list[str]:
        """As conntrack(8) lists them."""
        argv = ["ip", "netns", "exec", self.node, "conntrack", "-L", "-f", family]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()

    def insert(self, *entries: str) -> None:
        """By conntrack(8), as it would save them."""
        argv = ["ip", "netns", "exec", self.node, "conntrack", "--load-file", "-"]
        subprocess.run(argv, input="\n".join([*entries, ""]), check=True, capture_output=True, text=True)

    def host(self, steps: Callable[[HostNetwork], Awaitable[T]]) -> T:
        """What `steps` returns, run inside the node."""

        async def inside() -> T:
            network = HostNetwork(HostSettings())
            await network.open()
            try:
                return await steps(network)
            finally:
                await network.close()

        return netns.run_in(self.node, lambda: asyncio.run(inside()))

    def forget(self, *addresses: str) -> list[int]:
        async def steps(network: HostNetwork) -> list[int]:
            return await asyncio.gather(*(network.forget_flows([address]) for address in addresses))

        return self.host(steps)


def ip(namespace: str, *commands: str) -> None:
    argv = ["ip", "-n", namespace, "-batch", "-"]
    subprocess.run(argv, input="\n".join(commands), text=True, check=True, capture_output=True)


def of(address: str, entries: list[str]) -> list[str]:
    return [entry for entry in entries if re.search(rf"\b(src|dst)={re.escape(address)} ", entry)]


@pytest.fixture
def stage(prefix: str) -> Iterator[Stage]:
    made = Stage(prefix)
    try:
        made.build()
        yield made
    finally:
        made.remove()


def stable(entry: str) -> str:
    """Without what time changes."""
    return re.sub(r"^(\S+\s+\d+) \d+", r"\1", entry)


def test_all_flows_of_the_address_go_and_no_other(stage: Stage) -> None:
    count = stage.all_kinds(ONE)
    assert stage.all_kinds(TWO) == count
    before = stage.entries()
    assert len(of(ONE, before)) == len(of(TWO, before)) == count
    others = [stable(entry) for entry in before if entry not in of(ONE, before)]

    assert stage.forget(ONE) == [count]
    after = stage.entries()
    assert of(ONE, after) == []
    assert sorted(map(stable, after)) == sorted(others)
    assert stage.forget(ONE) == [0]

    # The node's own address is the destination of one's replies and of the other's first packets.
    assert stage.forget(NODE) == [2]
    assert len(of(TWO, stage.entries())) == count - 2


def test_many_entries_of_several_addresses_at_once(stage: Stage) -> None:
    per_address = 3 * conntrack.BATCH + 5
    stage.insert(
        *(
            f"-I -p udp -s 10.9.0.{n} -d 10.9.9.9 --sport {port} --dport 53 -t 600"
            for n in (1, 2, 3)
            for port in range(2000, 2000 + per_address)
        )
    )
    assert stage.forget("10.9.0.1", "10.9.0.2", "10.9.0.99") == [per_address, per_address, 0]
    assert len(stage.entries()) == len(of("10.9.0.3", stage.entries())) == per_address


def test_an_entry_that_is_gone_meanwhile_is_not_counted(stage: Stage) -> None:
    stage.udp(stage.pods, ONE, PEER, 5999)
    stage.udp(stage.pods, ONE, PEER, 5998)

    def twice() -> tuple[int, int]:
        family, address = bytes([socket.AF_INET, 0, 0, 0]), socket.inet_aton(ONE)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER) as table:
            entries = [family + entry for entry in conntrack._find(table, family, frozenset({address}))]
            return conntrack._delete(table, entries[:1]), conntrack._delete(table, entries)

    assert netns.run_in(stage.node, twice) == (1, 1)
    assert of(ONE, stage.entries()) == []


def test_ipv6(stage: Stage) -> None:
    stage.insert(*(f"-I -p udp -s fd00::{n} -d fd00::9 --sport 7 --dport 53 -t 600" for n in (1, 2)))
    assert stage.forget("fd00::1") == [1]
    (left,) = stage.entries("ipv6")
    assert "src=fd00::2 " in left


def test_nothing_stays_open(stage: Stage) -> None:
    stage.udp(stage.pods, ONE, PEER, 5999)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert stage.forget(ONE, TWO) == [1, 0]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_the_host_has(stage: Stage) -> None:
    async def steps(network: HostNetwork) -> tuple[frozenset[str], frozenset[str]]:
        uses, _ = network.uses.now()
        addresses = frozenset(address for address, use in uses.hosts.items() if use.kind == "address")
        return addresses, await network.host_links()

    addresses, links = stage.host(steps)
    assert addresses == {"127.0.0.1", "10.1.0.254", NODE}
    assert links == {"lo", "n0", "n1"}
