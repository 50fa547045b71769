"""What is in the way on a real kernel, written there by the tools that others use, is found and named; and a mere
neighbour is not."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from ipamd.host.clashes import Clash, find_clashes
from ipamd.settings import HostSettings
from ipamd.sim import netns

pytestmark = pytest.mark.netns


@dataclass(frozen=True)
class Host:
    namespace: str

    def run(self, *commands: str) -> None:
        for command in commands:
            argv = ["ip", "netns", "exec", self.namespace, "sh", "-ec", command]
            done = subprocess.run(argv, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}: {done.stderr}"

    def clashes(self, settings: HostSettings | None = None) -> list[Clash]:
        return netns.run_in(self.namespace, lambda: asyncio.run(find_clashes(settings or HostSettings())))


@pytest.fixture
def host(prefix: str) -> Iterator[Host]:
    name = f"{prefix}-h"
    subprocess.run(["ip", "netns", "add", name], check=True)
    made = Host(name)
    made.run(
        "ip link set lo up",
        "ip link add eth0 type veth peer name far0",
        "ip link set eth0 up && ip link set far0 up",
        "ip addr add 10.0.0.10/24 dev eth0",
    )
    yield made
    subprocess.run(["ip", "netns", "delete", name], check=True)


POD = "ip link add ipm{0} type veth peer name p{0}; ip link set ipm{0} up; "
CHAIN = "nft add table ip other; nft add chain ip other c '{ type filter hook %s priority %s; }'; "
NFT = CHAIN + "nft add rule ip other c "


@pytest.mark.parametrize(
    ("commands", "setting", "words"),
    [
        ("ip route add 10.9.0.0/16 dev eth0 table 1500", "host.table", ["10.9.0.0/16", "table 1500", "eth0"]),
        ("ip -6 route add 2001:db8::/64 dev eth0 table 1515", "host.table", ["2001:db8::/64", "1515"]),
        ("ip route add default via 10.0.0.1 table 1503 protocol bird", "host.table", ["1503", "protocol bird"]),
        ("ip rule add from 10.3.0.0/16 lookup 1504", "host.table", ["from 10.3.0.0/16", "lookup 1504"]),
        ("ip rule add from 10.3.0.0/16 lookup 77 priority 500", "host.rule_pods", ["ip rule 500:"]),
        ("ip rule add from 10.3.0.0/16 lookup 77 priority 1100", "host.rule_main", ["ip rule 1100:"]),
        ("ip rule add from 10.3.0.0/16 lookup 77 priority 1515", "host.rule_eni", ["ip rule 1515:"]),
        ("ip rule add from 10.3.0.0/16 lookup 51820 priority 32000", "host.rule_from", ["32000", "wg-quick"]),
        ("ip rule add fwmark 0x1 lookup 100 priority 499", "host.mark_mask", ["fwmark 0x1 lookup 100", "0x7f"]),
        (
            "ip rule add fwmark 0x40/0x40 lookup 100 priority 499",
            "host.main_mark",
            ["0x40", "0x1f80 and 0x2000 are free"],
        ),
        ("ip link set far0 group 1507", "host.table", ["link far0", "group 1507"]),
        ("nft add table inet ipamd; nft add chain inet ipamd input", "host.nft_table", ["inet ipamd"]),
        (NFT % ("forward", "0") + "meta mark '&' 0x40 == 0x40 drop", "host.main_mark", ["test bits 0x40", "other"]),
        (NFT % ("prerouting", "-150") + "meta mark set 0x1", "host.mark_mask", ["set bits 0x1 "]),
        (NFT % ("forward", "0") + "meta mark set 0x1000", "host.mark_mask", ["set bits 0x7f"]),
        (NFT % ("prerouting", "-150") + "meta mark set ct mark", "host.mark_mask", ["set bits 0x7f"]),
        (NFT % ("prerouting", "-150") + "ct mark set ct mark '&' 0xffffff00", "host.mark_mask", ["connection mark"]),
        (NFT % ("output", "0") + "meta mark '{ 0x1000, 0x2000 }' drop", "host.mark_mask", ["test bits 0x7f"]),
        (NFT % ("output", "0") + "meta mark set meta mark '<<' 1", "host.mark_mask", ["set bits 0x7f"]),
        (NFT % ("output", "0") + "meta mark '>' 0x1000 drop", "host.mark_mask", ["test bits 0x7f"]),
        (NFT % ("output", "0") + "ct mark '&' 0x3f vmap '{ 1 : drop }'", "host.mark_mask", ["test bits 0x3f"]),
        ("iptables-nft -t mangle -A PREROUTING -j MARK --set-mark 0x1", "host.mark_mask", ["chain PREROUTING"]),
        ("iptables-nft -t mangle -A OUTPUT -j CONNMARK --save-mark", "host.mark_mask", ["connection mark"]),
        ("iptables-nft -t mangle -A PREROUTING -j CONNMARK --restore-mark", "host.mark_mask", ["packet mark"]),
        ("iptables-nft -t mangle -A FORWARD -m mark --mark 0x40/0x60 -j DROP", "host.mark_mask", ["test bits 0x60"]),
        ("ip6tables-nft -t mangle -A FORWARD -m connmark --mark 0x4/0x4 -j DROP", "host.mark_mask", ["ip6 mangle"]),
        (
            "iptables-legacy -t mangle -A PREROUTING -j MARK --set-mark 0x1",
            "host.mark_mask",
            ["mangle-legacy, chain PR"],
        ),
        ("iptables-legacy -t mangle -A FORWARD -j MARK --set-mark 0x1000", "host.mark_mask", ["set bits 0x7f"]),
        ("iptables-legacy -A FORWARD -p udp -m mark --mark 0x40/0x60 -j DROP", "host.mark_mask", ["test bits 0x60"]),
        ("ip6tables-legacy -t mangle -A OUTPUT -j CONNMARK --restore-mark", "host.mark_mask", ["chain OUTPUT"]),
        (
            "iptables-legacy -N KUBE-X; iptables-legacy -A KUBE-X -m connmark --mark 1 -j DROP",
            "host.mark_mask",
            ["chain KUBE-X", "probably Kubernetes"],
        ),
        (
            "iptables-nft -t mangle -N A; iptables-nft -t mangle -N B; iptables-nft -t mangle -A PREROUTING -j A; "
            "iptables-nft -t mangle -A FORWARD -j B; iptables-nft -t mangle -A B -j A; "
            "iptables-nft -t mangle -A A -j MARK --set-mark 0x1000",
            "host.mark_mask",
            ["chain A: rules set bits 0x7f"],
        ),
        (
            "nft add table ip other; nft add chain ip other d; nft add rule ip other d meta mark set 0x1000; "
            + NFT % ("prerouting", "-150")
            + "tcp dport vmap '{ 80 : jump d }'",
            "host.mark_mask",
            ["chain d: rules set bits 0x7f"],
        ),
        (
            "iptables-nft -t mangle -N ISTIO_INBOUND; iptables-nft -t mangle -A ISTIO_INBOUND -j MARK --set-mark 1",
            "host.mark_mask",
            ["probably Istio"],
        ),
    ],
)
def test_clash_names_the_object_and_the_setting_that_moves_ours(
    host: Host, commands: str, setting: str, words: list[str]
) -> None:
    assert host.clashes() == []
    host.run(commands)
    (clash,) = host.clashes()
    assert clash.setting == setting
    assert all(word in str(clash) for word in words), str(clash)


@pytest.mark.parametrize(
    ("commands", "moved"),
    [
        ("ip route add default via 10.0.0.1 table 1503", {"table": 3000}),
        ("ip rule add lookup 77 priority 500", {"rule_pods": 499}),
        ("ip rule add fwmark 0x1/0xf lookup 100 priority 499", {"mark_mask": 0x3F0, "main_mark": 0x400}),
        ("nft add table inet ipamd; nft add chain inet ipamd input", {"nft_table": "ipamd-pods"}),
        (NFT % ("forward", "0") + "meta mark '&' 0x40 == 0x40 drop", {"main_mark": 0x80}),
    ],
)
def test_the_setting_that_it_names_helps(host: Host, commands: str, moved: dict[str, object]) -> None:
    host.run(commands)
    assert len(host.clashes()) == 1
    assert host.clashes(HostSettings.model_validate(moved)) == []


@pytest.mark.parametrize(
    "commands",
    [
        "ip route add 10.9.0.0/16 dev eth0 table 1499; ip route add 10.9.0.0/16 dev eth0 table 1516",
        "ip rule add fwmark 0x80/0x80 lookup main priority 1024; ip rule add from 10.0.0.9 lookup 2 priority 1536",
        "ip rule add fwmark 0x200/0xf00 lookup 2004 priority 9",
        "ip rule add not fwmark 0xca6c lookup 51820 priority 499",
        "ip rule add fwmark 0x1 lookup 100 priority 32764",
        "ip rule add lookup 77 priority 1500; ip rule add lookup 77 priority 1516",
        # The kernel's own for VRFs, with its priority, and moved to each of ours.
        "ip rule add l3mdev priority 1000 protocol kernel; ip -6 rule add l3mdev priority 1000 protocol kernel",
        "for each in 500 1100 1501 32000; do ip rule add l3mdev priority $each; done",
        "ip link set far0 group 1516",
        "nft add table ip ipamd; nft add chain ip ipamd c",
        "iptables-nft -t nat -A PREROUTING -j MARK --or-mark 0x4000",
        "iptables-nft -t mangle -A FORWARD -m mark --mark 0x10000/0xffff0000 -j MARK --set-xmark 0x20000/0xffff0000",
        "iptables-nft -t mangle -A PREROUTING -i eni+ -j CONNMARK --restore-mark --mask 0x80",
        "iptables-nft -t mangle -A PREROUTING -j CONNMARK --set-mark 0x80/0x80",
        "iptables-nft -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT",
        "iptables-legacy -t nat -A PREROUTING -j MARK --or-mark 0x4000; iptables-legacy -t mangle -A PREROUTING "
        "-i eni+ -j CONNMARK --restore-mark --mask 0x80; "
        "iptables-legacy -t mangle -A PREROUTING -j MARK --set-mark 0x4000",
        # As Cilium does for its proxy.
        "iptables-nft -t mangle -N CILIUM_PRE_mangle; iptables-nft -t mangle -A PREROUTING -j CILIUM_PRE_mangle; "
        "iptables-nft -t mangle -A CILIUM_PRE_mangle -p tcp -j MARK --set-xmark 0x200/0xffffffff",
        # What only clears is no harm before our own chain and in the host's own packets.
        NFT % ("prerouting", "-150") + "meta mark set 0x1000",
        NFT % ("output", "0") + "meta mark set 0x1000",
        "nft add table ip n; nft add chain ip n c '{ type nat hook prerouting priority -90; }'; "
        "nft add rule ip n c meta mark set ct mark '&' 0x80; nft add rule ip n c ct mark set 0x80",
    ],
)
def test_a_neighbour_is_no_clash(host: Host, commands: str) -> None:
    host.run(commands)
    assert host.clashes() == []


OWN = POD.format(1) + "ip link set ipm1 group 1501; ip route add 10.0.1.50 dev ipm1 table 1500 protocol 158; "


def test_ours_is_no_clash(host: Host) -> None:
    host.run(
        OWN,
        "ip rule add lookup 1500 priority 500 protocol 158; ip rule add fwmark 1/0x7f lookup 1501 priority 1501 "
        "protocol 158; ip route add default via 10.0.0.1 table 1501 protocol 158",
        "nft add table inet ipamd '{ comment \"made by ipamd\"; }'; nft add chain inet ipamd x; "
        "nft add rule inet ipamd x meta mark set 1",
    )
    assert host.clashes() == []
    host.run("nft delete table inet ipamd; nft add table inet ipamd")
    host.run("nft add chain inet ipamd prerouting; nft add chain inet ipamd from_pod")
    assert host.clashes() == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"table": 2500}, ["restore host.table = 1500,", "1 route of"]),
        ({"route_protocol": 200}, ["restore host.route_protocol = 158,"]),
        ({"table": 2500, "route_protocol": 200}, ["host.table = 1500 and host.route_protocol = 158"]),
    ],
)
def test_pods_that_stand_where_other_settings_put_them(
    host: Host, settings: dict[str, object], words: list[str]
) -> None:
    host.run(OWN)
    (clash,) = host.clashes(HostSettings.model_validate(settings))
    assert all(word in str(clash) for word in [*words, "drain"]), str(clash)


def test_everything_at_once(host: Host) -> None:
    """Every clash is named, so that one restart mends them all."""
    host.run(
        "ip route add 10.9.0.0/16 dev eth0 table 1500; ip route add 10.10.0.0/16 dev eth0 table 1500",
        "ip rule add lookup 77 priority 500",
        "iptables-nft -t mangle -A FORWARD -m mark --mark 0x3 -j DROP",
    )
    found = host.clashes()
    assert [clash.setting for clash in found] == ["host.table", "host.rule_pods", "host.mark_mask"]
    assert "and 1 more" in str(found[0])
