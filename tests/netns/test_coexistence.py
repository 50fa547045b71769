"""A node on which other software already gives pods and containers a network: theirs goes on, and ours works too.

    pod namespaces                 node namespace                        router namespace
    aws0  10.0.0.50 --- eni0       eth0 10.0.0.10, the primary ENI ----- p0 10.0.0.1
    ours0 10.0.0.60 --- ipm0
    aws1  10.0.1.50 --- eni1       eth1 10.0.1.10, theirs -------------- p1 10.0.1.1
    ours2 10.0.2.60 --- ipm2       eth2 10.0.2.10, ours ---------------- p2 10.0.2.1
    box   172.17.0.2 -- docker0    172.17.0.1                            lo 10.0.9.9        another host of the VPC
                                                                            198.51.100.10   a host outside

What the AWS VPC CNI writes is written here rule by rule as its sources have it (pkg/networkutils of v1.23):
priorities 512, 1024, 1536 and 32765, table 2, mark 0x80, its chains in nat and mangle, and the connection mark in
each of its three ways. The router drops what comes from an ENI with an address that is not that ENI's, and what goes
outside from anything but the primary address.
"""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
from collections.abc import Iterator
from typing import Final

import pytest

from ipamd.host import EniNetwork, HostNetwork, NodeNetwork, link_group
from ipamd.host.clashes import Clash, find_clashes
from ipamd.settings import HostSettings
from ipamd.sim import netns

pytestmark = pytest.mark.netns

VPC_HOST: Final = "10.0.9.9"
OUTSIDE: Final = "198.51.100.10"
NODE: Final = NodeNetwork(
    tuple(
        EniNetwork(f"eni-{i}", f"02:00:00:00:20:0{i}", i, i == 0, f"10.0.{i}.10", f"10.0.{i}.0/24") for i in (0, 2)
    ),
    ("10.0.0.0/16",),
)
# Pod -> (address, the host's end of its veth)
PODS: Final = {
    "aws0": ("10.0.0.50", "eni0"),
    "aws1": ("10.0.1.50", "eni1"),
    "ours0": ("10.0.0.60", "ipm0"),
    "ours2": ("10.0.2.60", "ipm2"),
    "box": ("172.17.0.2", "docker0"),
}
AWS: Final = ("aws0", "aws1")
OURS: Final = ("ours0", "ours2")

_ROUTER: Final = """
table ip vpc {
  chain prerouting {
    type filter hook prerouting priority raw; policy accept;
    iifname "p0" ip saddr != { 10.0.0.10, 10.0.0.50, 10.0.0.60 } drop
    iifname "p1" ip saddr != { 10.0.1.10, 10.0.1.50 } drop
    iifname "p2" ip saddr != { 10.0.2.10, 10.0.2.60 } drop
    iifname "p*" ip daddr 10.0.0.0/16 accept
    iifname "p*" ip saddr != 10.0.0.10 drop
  }
}
"""

_AWS_COMMON: Final = """
{ipt} -t nat -N AWS-SNAT-CHAIN-0
{ipt} -t nat -A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0
{ipt} -t nat -A AWS-SNAT-CHAIN-0 -d 10.0.0.0/16 -m comment --comment "AWS SNAT CHAIN" -j RETURN
{ipt} -t nat -A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment "AWS, SNAT" -m addrtype ! --dst-type LOCAL \
  -j SNAT --to-source 10.0.0.10 --random-fully
{ipt} -t mangle -A PREROUTING -i eth0 -m comment --comment "AWS, primary ENI" -m addrtype --dst-type LOCAL \
  --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80
{ipt} -t mangle -A PREROUTING -i eni+ -m comment --comment "AWS, primary ENI" \
  -j CONNMARK --restore-mark --mask 0x80
"""
_AWS_CONNMARK: Final = """
{ipt} -t nat -N AWS-CONNMARK-CHAIN-0
{ipt} -t nat -A PREROUTING -i eni+ -m comment --comment "AWS, outbound connections" -j AWS-CONNMARK-CHAIN-0
{ipt} -t nat -A AWS-CONNMARK-CHAIN-0 -d 10.0.0.0/16 -m comment --comment "AWS CONNMARK CHAIN, VPC CIDR" -j RETURN
{ipt} -t nat -A AWS-CONNMARK-CHAIN-0 -m comment --comment "AWS, CONNMARK" -j CONNMARK --set-xmark 0x80/0x80
{ipt} -t nat -A PREROUTING -m comment --comment "AWS, CONNMARK" -j CONNMARK --restore-mark --mask 0x80
"""
_AWS_NFT: Final = """
table ip aws-cni {
  chain nat-prerouting {
    type nat hook prerouting priority -90; policy accept;
    fib daddr type local return
    iifname "eni*" counter jump snat-mark
    ct mark & 0x80 == 0x0 counter meta mark set meta mark & 0xffffff7f
    ct mark & 0x80 == 0x80 counter meta mark set meta mark | 0x80
  }
  chain snat-mark {
    counter ip daddr 10.0.0.0/16 return
    counter ct mark set ct mark | 0x80
  }
}
"""
_DOCKER: Final = """
{ipt} -t nat -N DOCKER
{ipt} -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
{ipt} -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
{ipt} -t nat -I POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
{ipt} -N DOCKER-USER
{ipt} -N DOCKER-ISOLATION-STAGE-1
{ipt} -A FORWARD -j DOCKER-USER
{ipt} -A FORWARD -j DOCKER-ISOLATION-STAGE-1
{ipt} -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
{ipt} -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
{ipt} -A DOCKER-USER -i eni+ -j ACCEPT
{ipt} -A DOCKER-USER -o eni+ -j ACCEPT
{ipt} -A DOCKER-USER -i ipm+ -j ACCEPT
{ipt} -A DOCKER-USER -o ipm+ -j ACCEPT
{ipt} -P FORWARD DROP
"""
_KUBE_PROXY: Final = """
{ipt} -t nat -N KUBE-SERVICES
{ipt} -t nat -N KUBE-MARK-MASQ
{ipt} -t nat -N KUBE-POSTROUTING
{ipt} -t nat -I PREROUTING -j KUBE-SERVICES
{ipt} -t nat -I OUTPUT -j KUBE-SERVICES
{ipt} -t nat -I POSTROUTING -j KUBE-POSTROUTING
{ipt} -t nat -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
{ipt} -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
{ipt} -t nat -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
{ipt} -t nat -A KUBE-POSTROUTING -j MASQUERADE --random-fully
{ipt} -N KUBE-FORWARD
{ipt} -A FORWARD -j KUBE-FORWARD
{ipt} -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
{ipt} -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
{ipt} -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
"""
_KUBE_PROXY_NFT: Final = """
table ip kube-proxy {
  chain nat-prerouting { type nat hook prerouting priority dstnat; policy accept; jump services; }
  chain nat-postrouting { type nat hook postrouting priority srcnat; policy accept; jump masquerading; }
  chain services { }
  chain mark-for-masquerade { meta mark set meta mark | 0x4000; }
  chain masquerading {
    meta mark & 0x4000 == 0 return
    meta mark set meta mark ^ 0x4000
    masquerade fully-random
  }
}
"""


class Node:
    """`ipt` is the iptables binary that the others on this node use."""

    def __init__(self, prefix: str, ipt: str) -> None:
        self.node, self.router, self.prefix, self.ipt = f"{prefix}-node", f"{prefix}-router", prefix, ipt
        self._sockets: list[socket.socket] = []
        self._next_port = 31000
        self.kube_proxy = ""

    def place(self, who: str) -> str:
        return {"node": self.node, "router": self.router}.get(who, f"{self.prefix}-{who}")

    def run(self, who: str, script: str, stdin: str = "") -> str:
        argv = ["ip", "netns", "exec", self.place(who), "sh", "-ec", script]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True)
        assert done.returncode == 0, f"{script}: {done.stderr}"
        return done.stdout

    def nft(self, script: str) -> None:
        self.run("node", "nft -f -", script)

    def iptables(self, script: str) -> None:
        self.run("node", script.format(ipt=f"{self.ipt} -w"))

    def build(self) -> None:
        for name in ("node", "router", *PODS):
            subprocess.run(["ip", "netns", "add", self.place(name)], check=True)
            self.run(name, "ip link set lo up")
        self.run("router", f"ip addr add {VPC_HOST}/32 dev lo; ip addr add {OUTSIDE}/32 dev lo")
        netns.write_sysctls(self.router, {"ipv4/ip_forward": 1, "ipv4/conf/all/rp_filter": 0})
        values = {"ipv4/ip_forward": 1, "ipv4/conf/all/rp_filter": 0, "ipv4/conf/default/rp_filter": 0}
        # Duplicate address detection would go on changing the dump for seconds after a link went up.
        values |= {"ipv6/conf/all/accept_dad": 0, "ipv6/conf/default/accept_dad": 0}
        netns.write_sysctls(self.node, values)
        for i in range(3):
            self.run(
                "router",
                f"ip link add p{i} type veth peer name eth{i} address 02:00:00:00:20:0{i} netns {self.node}\n"
                f"ip link set p{i} up; ip addr add 10.0.{i}.1/24 dev p{i}",
            )
        self.run("node", "ip link set eth0 up; ip addr add 10.0.0.10/24 dev eth0; ip route add default via 10.0.0.1")
        self.run("router", "nft -f -", _ROUTER)
        for index, (name, (address, link)) in enumerate(PODS.items()):
            self._plumb(index, name, address, link)
        self._aws()

    def _plumb(self, index: int, name: str, address: str, link: str) -> None:
        mac = f"0a:59:00:00:01:0{index}"
        self.run(
            "node",
            f"ip link add {link} address {mac} type veth peer name eth0 netns {self.place(name)}\n"
            f"ip link set {link} up",
        )
        gateway = "169.254.1.1"
        self.run(
            name,
            f"ip addr add {address}/32 dev eth0; ip link set eth0 up; ip route add {gateway} dev eth0 scope link\n"
            f"ip route add default via {gateway} dev eth0\n"
            f"ip neigh add {gateway} lladdr {mac} dev eth0 nud permanent",
        )
        if name in OURS:
            settings = HostSettings()
            group = link_group(settings, int(name[-1]))
            self.run(
                "node",
                f"ip link set {link} group {group}; ip route add {address} dev {link} scope link "
                f"table {settings.table} protocol {settings.route_protocol}",
            )
        else:
            self.run("node", f"ip route add {address} dev {link} scope link")
        if name != "box":
            eni = address.split(".")[2]
            self.run("router", f"ip route add {address} via 10.0.{eni}.10 dev p{eni}")

    def _aws(self) -> None:
        self.run(
            "node",
            """
            echo 2 > /proc/sys/net/ipv4/conf/eth0/rp_filter
            ip link set eth1 up; ip addr add 10.0.1.10/24 dev eth1; ip route del 10.0.1.0/24 dev eth1
            ip route add 10.0.1.1 dev eth1 scope link table 2; ip route add default via 10.0.1.1 dev eth1 table 2
            ip rule add to 10.0.0.50 lookup main priority 512; ip rule add to 10.0.1.50 lookup main priority 512
            ip rule add fwmark 0x80/0x80 lookup main priority 1024
            ip rule add from 10.0.1.50 lookup 2 priority 1536
            ip rule add from 10.0.1.10 lookup 2 priority 32765
            """,
        )
        self.iptables(_AWS_COMMON)

    def close(self) -> None:
        for each in self._sockets:
            each.close()
        for name in ("node", "router", *PODS):
            subprocess.run(["ip", "netns", "delete", self.place(name)], check=True)

    # The subject

    def apply(self) -> None:
        async def inside() -> None:
            network = HostNetwork(HostSettings())
            await network.open()
            try:
                await network.apply(NODE)
            finally:
                await network.close()

        netns.run_in(self.node, lambda: asyncio.run(inside()))

    def clashes(self, settings: HostSettings | None = None) -> list[Clash]:
        return netns.run_in(self.node, lambda: asyncio.run(find_clashes(settings or HostSettings())))

    def theirs(self) -> dict[str, str]:
        """A full dump, without what is ours and without counters."""
        ours = re.compile(r"proto 158|\bipm\d|\beth2\b")
        dump = {
            "rules": self.run("node", "ip rule; ip -6 rule"),
            "routes": self.run("node", "ip route show table all; ip -6 route show table all"),
            "links": self.run("node", "ip -o -d link show"),
            "addresses": self.run("node", "ip -o addr show"),
            "iptables-nft": self.run("node", "iptables-nft-save; ip6tables-nft-save"),
            "iptables-legacy": self.run("node", "iptables-legacy-save; ip6tables-legacy-save"),
            "nft": re.sub(
                r"(?ms)^table inet ipamd \{.*?^\}\n", "", self.run("node", "nft -s list ruleset 2>/dev/null")
            ),
            "sysctls": self.run(
                "node",
                "cd /proc/sys/net/ipv4/conf; for each in all default eth1 eni0 eni1 docker0; do "
                "grep -H . $each/rp_filter $each/arp_ignore $each/arp_announce $each/forwarding; done",
            ),
        }
        kept = {}
        for what, text in dump.items():
            lines = [line for line in text.splitlines() if what in ("nft", "sysctls") or not ours.search(line)]
            lines = [re.sub(r"\[\d+:\d+\]|valid_lft.*", "", line) for line in lines if not line.startswith("#")]
            kept[what] = "\n".join(lines)
        return kept

    # Flows. Each raises TimeoutError when a packet takes a wrong way.

    def flow(self, client: str, to: str, server: str, *, at: str = "", source: str = "", port: int = 0) -> str:
        """A TCP connection from `client` to `to` that ends at `server` (listening at `at`, by default `to`). Returns
        the client's address as the server sees it."""
        self._next_port += 1
        at_port = self._next_port
        listener = netns.listen_in(self.place(server), at or to, at_port)
        self._sockets.append(listener)
        if port:
            self._forward(to, port, at, at_port)
        bound = (source, 0) if source else None
        connection = netns.run_in(
            self.place(client), lambda: socket.create_connection((to, port or at_port), 4.0, source_address=bound)
        )
        with connection:
            listener.settimeout(4.0)
            accepted, peer = listener.accept()
            with accepted:
                connection.sendall(b"?")
                assert accepted.recv(1) == b"?"
                accepted.sendall(b"!")
                assert connection.recv(1) == b"!"
        return str(peer[0])

    def _forward(self, to: str, port: int, at: str, at_port: int) -> None:
        """A NodePort: kube-proxy's, masqueraded by mark as for a pod of another node; else nobody's in particular."""
        if self.kube_proxy == "iptables":
            self.iptables(
                "{ipt} -t nat -F KUBE-SERVICES\n"
                f"{{ipt}} -t nat -A KUBE-SERVICES -d {to} -p tcp --dport {port} -j KUBE-MARK-MASQ\n"
                f"{{ipt}} -t nat -A KUBE-SERVICES -d {to} -p tcp --dport {port} -j DNAT --to {at}:{at_port}\n"
            )
            return
        if self.kube_proxy == "nft":
            rule = f"add rule ip kube-proxy services ip daddr {to} tcp dport {port}"
            chain = f"{rule} jump mark-for-masquerade\n{rule} dnat to {at}:{at_port}\n"
            self.nft(f"flush chain ip kube-proxy services\n{chain}")
            return
        self.nft(
            "table ip service\ndelete table ip service\ntable ip service { chain prerouting {\n"
            "type nat hook prerouting priority dstnat; policy accept;\n"
            f"ip daddr {to} tcp dport {port} dnat to {at}:{at_port}\n}}\n}}\n"
        )

    def pods_work(self, *pods: str) -> None:
        for pod in pods:
            address, _ = PODS[pod]
            assert self.flow(pod, VPC_HOST, "router") == address
            assert self.flow(pod, OUTSIDE, "router") == "10.0.0.10"
            assert self.flow("router", address, pod, source=VPC_HOST) == VPC_HOST
            assert self.flow("node", address, pod) in ("10.0.0.10", "10.0.1.10", "10.0.2.10")
            assert self.flow(pod, "10.0.0.10", "node") == address
            # A NodePort at the primary ENI, whatever ENI the pod is on.
            assert self.flow("router", "10.0.0.10", pod, at=address, source=VPC_HOST, port=30080) == VPC_HOST
            self.nft("delete table ip service")

    def meet(self, *pods: str) -> None:
        for client in pods:
            for server in pods:
                if client != server:
                    assert self.flow(client, PODS[server][0], server) == PODS[client][0]


@pytest.fixture(params=["iptables-nft", "iptables-legacy", "nft table"])
def node(request: pytest.FixtureRequest, prefix: str) -> Iterator[Node]:
    ipt = "iptables-legacy" if request.param == "iptables-legacy" else "iptables-nft"
    made = Node(prefix, ipt)
    made.build()
    if request.param == "nft table":
        made.nft(_AWS_NFT)
    else:
        made.iptables(_AWS_CONNMARK)
    yield made
    made.close()


def test_beside_the_aws_vpc_cni(node: Node) -> None:
    node.pods_work(*AWS)
    node.meet(*AWS)
    before = node.theirs()
    assert node.clashes() == []
    node.apply()
    assert node.theirs() == before
    node.pods_work(*AWS, *OURS)
    node.meet(*AWS, *OURS)
    node.apply()
    assert node.theirs() == before
    assert node.clashes() == []


def test_the_dump_sees_what_is_theirs(node: Node) -> None:
    """Else its being unchanged says nothing."""
    before = node.theirs()
    for what, change in {
        "rules": "ip rule del priority 1024",
        "routes": "ip route del default table 2",
        "links": "ip link set eni1 mtu 1400",
        "addresses": "ip addr del 10.0.1.10/24 dev eth1",
        "sysctls": "echo 1 > /proc/sys/net/ipv4/conf/eth1/rp_filter",
        node.ipt: f"{node.ipt} -t mangle -F",
    }.items():
        node.run("node", change)
        after = node.theirs()
        assert after[what] != before[what]
        before = after
    node.run("node", "nft add table ip other")
    assert node.theirs()["nft"] != before["nft"]


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"main_mark": 0x80}, "main_mark"), ({"rule_pods": 512}, "rule_pods"), ({"rule_eni": 1521}, "rule_eni")],
)
def test_settings_that_would_meet_theirs_are_refused(node: Node, settings: dict[str, int], key: str) -> None:
    found = node.clashes(HostSettings.model_validate(settings))
    assert found and {clash.setting for clash in found} == {f"host.{key}"}
    assert "AWS VPC CNI" in {clash.owner for clash in found}


@pytest.mark.parametrize("kube_proxy", ["iptables", "nft"])
def test_beside_docker_and_kube_proxy(node: Node, kube_proxy: str) -> None:
    node.iptables(_DOCKER)
    if kube_proxy == "nft":
        node.nft(_KUBE_PROXY_NFT)
    else:
        node.iptables(_KUBE_PROXY)
    assert node.flow("box", OUTSIDE, "router") == "10.0.0.10"
    before = node.theirs()
    assert node.clashes() == []
    node.apply()
    assert node.theirs() == before
    assert node.flow("box", OUTSIDE, "router") == "10.0.0.10"
    node.pods_work(*AWS, *OURS)
    node.meet(*AWS, *OURS)
    node.kube_proxy = kube_proxy
    for pod in (*AWS, *OURS):
        seen = node.flow("router", "10.0.0.10", pod, at=PODS[pod][0], source=VPC_HOST, port=30080)
        assert seen.startswith("10.0.") and seen != VPC_HOST
