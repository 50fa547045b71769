"""What is written to a node's kernel, and what is left alone there. The stage is `node_stage`'s. Which way packets
take, and what each object is needed for, is shown by the tests named test_flows_*.
"""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ipamd.host import EniNetwork, HostError, HostNetwork
from ipamd.host.desired import FoundRoute, Route, Rule
from ipamd.host.kernel import Kernel
from ipamd.settings import HostSettings
from ipamd.sim import netns
from tests.netns.node_stage import ENIS, NODE, OUTSIDE, VPC_HOST, Topology

pytestmark = pytest.mark.netns


@pytest.fixture
def stage(prefix: str) -> Iterator[Topology]:
    with Topology(prefix) as topology:
        yield topology


# Ways. Each raises TimeoutError, or fails, when a packet takes a wrong one.


def pod_to_vpc(stage: Topology, pod: str = "pod1", patience: float = 10.0) -> None:
    listener, port = stage.listen("router", VPC_HOST)
    assert stage.connect(pod, VPC_HOST, port, listener, patience=patience) == f"10.0.{pod[-1]}.50"


def pod_to_outside(stage: Topology, pod: str = "pod1", patience: float = 10.0) -> None:
    listener, port = stage.listen("router", OUTSIDE)
    assert stage.connect(pod, OUTSIDE, port, listener, patience=patience) == "10.0.0.10"


def node_port(stage: Topology, eni: int = 0, pod: str = "pod1", patience: float = 10.0) -> None:
    """In by one ENI's own address, on to a pod that is on another."""
    target = f"10.0.{pod[-1]}.50"
    listener, port = stage.listen(pod, target)
    stage.nft(stage.node, _dnat(f"ip daddr 10.0.{eni}.10 tcp dport 30080 dnat to {target}:{port}"))
    address = f"10.0.{eni}.10"
    assert stage.connect("router", address, 30080, listener, source=VPC_HOST, patience=patience) == VPC_HOST


def node_port_of_a_secondary_eni(stage: Topology, patience: float = 10.0) -> None:
    node_port(stage, 1, "pod2", patience)


def _dnat(rule: str) -> str:
    return f"""table ip service
delete table ip service
table ip service {{
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    {rule}
  }}
}}
"""


def test_other_bits_of_the_marks_are_left_alone(stage: Topology) -> None:
    """Somebody else's bits, set before us on packet and connection, are still there behind us."""
    stage.nft(
        stage.node,
        """table ip other {
          chain early { type filter hook prerouting priority mangle; policy accept;
            meta mark set meta mark | 0xabcd4000
            ct state new ct mark set ct mark | 0x12348000
          }
          chain late { type filter hook postrouting priority 300; policy accept;
            oifname "eth*" ip saddr { 10.0.0.10, 10.0.0.50, 10.0.1.50 } meta mark & 0xffffff80 != 0xabcd4000 counter
            oifname "eth*" ct mark & 0xffffff80 != 0x12348000 counter
            ct original ip saddr 10.0.1.50 ct mark & 0x7f != 0 counter comment "not for what a pod opened"
            oifname "eth*" meta mark & 0x7f != 0 counter comment "ours"
          }
        }
        """,
    )
    stage.apply()
    for way in (pod_to_vpc, pod_to_outside, node_port):
        way(stage)
    counters = re.findall(r"counter packets (\d+)", stage.nft(stage.node, "list chain ip other late\n"))
    wrong_mark, wrong_ct_mark, needless_ct_mark, ours = map(int, counters)
    assert (wrong_mark, wrong_ct_mark, needless_ct_mark) == (0, 0, 0)
    assert ours > 0


def test_foreign_values_in_our_connmark_bits_misroute_no_pod(stage: Topology) -> None:
    """Such as CONNMARK --save-mark does, which knows of no mask. Nobody answers a connection that a pod opened."""
    stage.nft(
        stage.node,
        """table ip other {
          chain early { type filter hook prerouting priority mangle; policy accept;
            ct state new iifname "ipm1" ct mark set 0x40
          }
        }
        """,
    )
    stage.apply()
    pod_to_vpc(stage)


def test_host_marked_connection_keeps_its_port_on_primary_eni(stage: Topology) -> None:
    stage.apply()
    listener, port = stage.listen("router", OUTSIDE)

    def connect() -> socket.socket:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, stage.settings.main_mark)
        client.settimeout(10.0)
        client.bind(("10.0.0.10", 0))
        client.connect((OUTSIDE, port))
        return client

    listener.settimeout(10.0)
    with netns.run_in(stage.node, connect) as client, listener.accept()[0] as server:
        assert server.getpeername() == client.getsockname()


# State


def test_what_the_kernel_holds(stage: Topology) -> None:
    stage.apply()
    rules = stage.ip(stage.node, "rule show")
    for line in (
        "500:\tfrom all lookup 1500 proto 158",
        "1100:\tfrom all fwmark 0x40/0x40 lookup main proto 158",
        "1502:\tfrom all fwmark 0x2/0x7f lookup 1502 proto 158",
        "32000:\tfrom 10.0.2.10 lookup 1502 proto 158",
    ):
        assert line in rules
    assert stage.ip(stage.node, "route show table 1502").split("\n")[:2] == [
        "default via 10.0.2.1 dev eth2 proto 158 onlink ",
        "10.0.2.1 dev eth2 proto 158 scope link ",
    ]
    assert "eth2" not in stage.ip(stage.node, "route show table main")
    for eni in ("eth0", "eth1", "eth2"):
        conf = f"/proc/sys/net/ipv4/conf/{eni}"
        for name, value in (("rp_filter", "2"), ("arp_ignore", "1"), ("arp_announce", "2")):
            argv = ["ip", "netns", "exec", stage.node, "cat", f"{conf}/{name}"]
            assert subprocess.run(argv, text=True, capture_output=True, check=True).stdout.strip() == value


def test_a_second_apply_writes_nothing(stage: Topology) -> None:
    async def steps(network: HostNetwork) -> None:
        assert await network.apply(NODE)
        with _notifications() as kernel:
            assert (await network.apply(NODE)).done == []
            with pytest.raises(BlockingIOError):
                kernel[0].recv(1 << 16)
            with pytest.raises(BlockingIOError):
                kernel[1].recv(1 << 16)
            # They do tell of writing.
            assert (await network.apply(replace(NODE, enis=ENIS[:2]))).done
            assert kernel[0].recv(1 << 16)
            assert kernel[1].recv(1 << 16)

    stage.host(steps)
    assert stage.apply(replace(NODE, enis=ENIS[:2])) == []  # nor does a daemon that starts anew


class _notifications:
    """What the kernel tells of changes to IPv4 addresses, routes and rules, and to nftables; it does so before the
    change is acknowledged, so that nothing has to be waited for. (Not of links: it tells of their carrier when it
    comes to it.)"""

    def __enter__(self) -> tuple[socket.socket, socket.socket]:
        route_groups = 1 << 4 | 1 << 6 | 1 << 7  # linux/rtnetlink.h: RTMGRP_IPV4_IFADDR, _ROUTE, _RULE
        nft_group = 1 << 6  # linux/netfilter/nfnetlink.h: NFNLGRP_NFTABLES
        self._sockets = []
        for protocol, groups in ((0, route_groups), (12, nft_group)):
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
            sock.bind((0, groups))
            self._sockets.append(sock)
        return self._sockets[0], self._sockets[1]

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets:
            sock.close()


def test_removing_an_eni_removes_what_is_its_and_nothing_else(stage: Topology) -> None:
    stage.nft(stage.node, 'table inet other { chain c { counter comment "stays"; }; }\n')
    stage.ip(stage.node, "link set eth2 up", "addr add 10.0.2.99/24 dev eth2", "route add 192.0.2.0/24 dev eth0")
    stage.ip(
        stage.node, "route add 203.0.113.0/24 dev eth2 table 1502 proto static", "rule add from 1.2.3.4 prio 1502"
    )
    before = _foreign(stage)
    stage.apply()
    assert _foreign(stage) == before
    assert stage.ip(stage.node, "route show table 1502 proto 158")
    assert stage.apply(replace(NODE, enis=ENIS[:2])) == [
        "set nft table inet ipamd",
        "removed rule 1502 lookup 1502",
        "removed rule 32000 lookup 1502",
        "removed route default table 1502",
        "removed route 10.0.2.1 table 1502",
    ]
    assert _foreign(stage) == before
    assert stage.ip(stage.node, "route show table 1502 proto 158") == ""
    assert "lookup 1502" not in stage.ip(stage.node, "rule show")
    assert "1502" not in stage.nft(stage.node, "list table inet ipamd\n")
    pod_to_vpc(stage)


def _foreign(stage: Topology) -> tuple[str, ...]:
    rules = [line for line in stage.ip(stage.node, "rule show").splitlines() if "proto 158" not in line]
    routes = [
        line
        for line in stage.ip(stage.node, "route show table all").splitlines()
        if "proto 158" not in line
        and "table local" not in line
        and "eth2 proto kernel" not in line
        and "fe80::" not in line
    ]
    addresses = re.findall(r"inet \S*99/\d+", stage.ip(stage.node, "addr show dev eth2"))
    return "\n".join(rules), "\n".join(routes), *addresses, stage.nft(stage.node, "list table inet other\n")


@pytest.mark.parametrize(
    "intrusion",
    [
        "route replace default dev eth2 table 1501 proto static",
        "route prepend default via 10.0.2.1 dev eth2 onlink table 1501",
        "route replace unreachable default table 1501",
        "route replace blackhole default table 1501 proto 158",
        "route replace 10.0.1.1 dev eth2 table 1501",
    ],
)
def test_our_place_in_our_table_is_ours(stage: Topology, intrusion: str) -> None:
    stage.apply()
    others = "203.0.113.0/24 dev eth2 proto static"
    before = stage.ip(stage.node, "route show table 1501")
    stage.ip(stage.node, f"route add {others} table 1501", intrusion)
    assert stage.apply()
    assert stage.apply() == []
    assert stage.ip(stage.node, "route show table 1501").replace(f"{others} scope link \n", "") == before
    pod_to_vpc(stage)


def test_a_failure_half_way_is_made_up_for(stage: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    fewer = replace(NODE, enis=ENIS[:2])
    for name in ("delete_rule", "delete_route"):
        stage.apply()

        def refuse(*_: object) -> None:
            raise HostError("refused")

        with monkeypatch.context() as patched:
            patched.setattr(Kernel, name, refuse)

            async def fails(network: HostNetwork) -> None:
                assert {str(failure.error) for failure in (await network.apply(fewer)).failed} == {"refused"}

            stage.host(fails)
    assert stage.apply(fewer)
    assert stage.apply(fewer) == []
    assert stage.ip(stage.node, "route show table all proto 158").count("table 1502") == 0


@pytest.mark.parametrize(
    "tampering",
    [
        "flush table inet ipamd",
        "delete table inet ipamd",
        "add element inet ipamd inside { 198.51.100.0/24 }",
        "add chain inet ipamd extra",
        "insert rule inet ipamd prerouting accept",
    ],
)
def test_a_table_that_somebody_changed_is_repaired(stage: Topology, tampering: str) -> None:
    stage.apply()
    stage.nft(stage.node, f"{tampering}\n")
    assert stage.apply() == ["set nft table inet ipamd"]
    assert stage.apply() == []
    pod_to_outside(stage)


def test_a_change_leaves_no_moment_without_a_table(stage: Topology) -> None:
    """Its chains stay hooked where they are: what is in them is exchanged at once."""

    def hooks() -> list[str]:
        listing = stage.nft(stage.node, "list table inet ipamd\n")
        return re.findall(
            r"chain (?:guard|prerouting|postrouting) \{ # handle \d+|table inet ipamd \{ # handle \d+", listing
        )

    stage.apply()
    before = hooks()
    assert len(before) == 4
    assert "set nft table inet ipamd" in stage.apply(replace(NODE, enis=ENIS[:2]))
    assert "leave_1502" not in stage.nft(stage.node, "list table inet ipamd\n")
    assert "set nft table inet ipamd" in stage.apply()
    stage.nft(stage.node, "add element inet ipamd inside { 198.51.100.0/24 }\nadd chain inet ipamd extra\n")
    assert stage.apply() == ["set nft table inet ipamd"]
    assert hooks() == before
    stage.nft(
        stage.node,
        "delete chain inet ipamd guard\n"
        "add chain inet ipamd guard { type filter hook prerouting priority 5; policy accept; }\n",
    )
    assert stage.apply() == ["set nft table inet ipamd"]
    assert stage.apply() == []


def test_a_link_that_the_system_has_set_up_already(stage: Topology) -> None:
    """By DHCP, say: up, with its address. The address that is ours comes beside it."""
    stage.ip(stage.node, "link set eth1 up", "addr add 10.0.1.10/24 dev eth1")
    stage.apply()
    assert stage.apply() == []
    pod_to_vpc(stage)


def test_an_eni_that_is_renamed_is_served_as_before(stage: Topology) -> None:
    """As udev does with a hot-plugged one. The new name holds a dot, at which sysctl(8) would split."""
    stage.apply()
    for old, new in (("eth0", "ens5"), ("eth1", "ens6.v-0_longes")):
        stage.ip(stage.node, f"link set {old} name {new}")
    pod_to_vpc(stage)
    pod_to_outside(stage)
    node_port(stage)
    node_port_of_a_secondary_eni(stage)
    assert stage.apply() == []
    stage.ip(stage.node, "link delete ens6.v-0_longes")
    stage.plug(ENIS[1])
    stage.ip(stage.node, "link set eth1 name ens6.new")
    assert "set sysctl net/ipv4/conf/ens6.new/rp_filter=2" in stage.apply()
    assert stage.apply() == []
    pod_to_vpc(stage)


def test_what_somebody_took_away_comes_back(stage: Topology) -> None:
    stage.apply()
    stage.ip(stage.node, "rule delete prio 500", "rule delete prio 1501", "addr flush dev eth1", "link set eth1 down")
    assert len(stage.apply()) == 6
    assert stage.apply() == []
    pod_to_vpc(stage)


def test_an_eni_that_was_pulled_off_does_not_stop_the_others(stage: Topology) -> None:
    stage.apply(replace(NODE, enis=ENIS[:2]))
    stage.ip(stage.node, "link delete eth1")
    stage.apply()
    pod_to_vpc(stage, "pod2")
    assert "1501" not in stage.ip(stage.node, "rule show")


def test_an_eni_that_comes_back_elsewhere_is_served_there(stage: Topology) -> None:
    """Same ENI, same index, another device: the routes lead to the new one."""
    stage.apply()
    stage.ip(stage.node, "link delete eth1")
    stage.plug(ENIS[1])
    stage.apply()
    pod_to_vpc(stage)


def test_a_primary_eni_that_is_missing_is_an_error(stage: Topology) -> None:
    stage.ip(stage.node, "link delete eth0")
    with pytest.raises(HostError, match=ENIS[0].mac):
        stage.apply()


def test_a_device_that_has_just_gone_is_passed_over(stage: Topology) -> None:
    """Its event is read before the wish is made."""

    async def steps(network: HostNetwork) -> None:
        stage.ip(stage.node, "link delete eth1")
        assert (await network.apply(NODE)).failed == []

    stage.host(steps)
    assert "1501" not in stage.ip(stage.node, "rule show")


def test_nothing_is_left_open(stage: Topology) -> None:
    """Neither by work that succeeds nor by work that fails."""

    async def steps(network: HostNetwork) -> None:
        await network.apply(NODE)  # what is opened once and kept, is open now
        before = _open_files()
        for node in (replace(NODE, enis=ENIS[:2]), NODE, NODE):
            await network.apply(node)
            await network.pod_routes()
        stage.ip(stage.node, "link delete eth0")
        with pytest.raises(HostError):
            await network.apply(NODE)
        await asyncio.sleep(0)  # closing a socket's transport takes one turn of the loop
        assert _open_files() == before
        assert len(asyncio.all_tasks()) == 1

    before = _open_files()
    stage.host(steps)
    assert _open_files() == before


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("more", [["0.0.0.0/0"], ["192.0.2.7/32", "10.1.0.0/24", "10.1.1.0/24", "172.16.1.0/24"]])
def test_the_table_reads_back_as_it_was_written(prefix: str, more: list[str]) -> None:
    """As nft spells it, with as many ENIs as an instance can have: a daemon that starts anew writes nothing."""
    with Topology(prefix, HostSettings(snat_exclude=more)) as stage:
        enis = list(ENIS)
        for i in range(3, 15):
            eni = EniNetwork(f"eni-{i}", f"02:00:00:00:10:{i:02x}", i, False, f"10.0.{i}.10", f"10.0.{i}.0/24")
            stage.plug(eni)
            enis.append(eni)
        node = replace(NODE, enis=tuple(enis))
        assert "set nft table inet ipamd" in stage.apply(node)
        assert stage.apply(node) == []


def test_what_is_gone_already_is_removed(stage: Topology) -> None:
    """Between the look at the kernel and the removal somebody else was faster, or the device went."""

    def inside() -> None:
        kernel = Kernel(stage.settings.route_protocol)
        kernel.delete_rule(Rule(1599, 1599, 0x1F, 0x7F))
        kernel.delete_route(FoundRoute(Route(1599, 1, gateway="10.0.2.1"), 158, 1))
        kernel.delete_route(FoundRoute(Route(1599, 999_999, "10.0.2.1"), 158, 1))

    netns.run_in(stage.node, inside)


def test_mtu_of_enis(prefix: str) -> None:
    with Topology(prefix, HostSettings(mtu=1400)) as stage:

        async def steps(network: HostNetwork) -> None:
            await network.apply(NODE)
            assert (await network.apply(NODE)).done == []
            assert [network.mtu(eni.mac) for eni in ENIS] == [1400] * 3

        stage.host(steps)


def test_pods_are_found_again(stage: Topology) -> None:
    stage.ip(stage.node, "route add 10.0.1.77/32 dev ipm1 table 1500 proto static")

    async def steps(network: HostNetwork) -> None:
        assert await network.pod_routes() == {"10.0.0.50": "ipm0", "10.0.1.50": "ipm1", "10.0.2.50": "ipm2"}
        assert sorted(link.name for link in network.host_veths()) == ["ipm0", "ipm1", "ipm2"]

    stage.host(steps)
