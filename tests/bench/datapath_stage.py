"""Nodes with many pods, each laid out in one of the ways that are compared.

    pod namespace                node namespace                         VPC namespace
    eth0 10.0.<i>.<50...> ------ <veth>     eth<i> 10.0.<i>.10 -------- p<i> 10.0.<i>.1
                                 <veth>  of each other pod              lo 10.0.200.9  the host beyond

One pod is measured; it lives in a namespace of its own. The other pods' ends of their veths share a namespace, for
nobody looks at them. Pods take ENIs in turns, as many ENIs as it takes with 50 pods on each (two at least: nobody is
alone on the primary). The measured pod is on the middle ENI, and, unless another place is asked for, the middle one
of the list of pods: a list of rules is searched from its start.

The layouts:

- IPAMD: what `HostNetwork` makes of the node, with one rule for all pods.
- TWO_RULES: the rules, tables and routes of the AWS VPC CNI (v1.23, cmd/routed-eni-cni-plugin/driver/driver.go and
  pkg/networkutils/network.go): for each pod `to <pod> lookup main` at priority 512, and, on a secondary ENI, `from
  <pod> lookup <that ENI's table>` at 1536. No netfilter at all, which in real life it has.
- TWO_RULES_SNAT: the same with that CNI's iptables rules for SNAT and connection marks, as on a real node.
- FORWARDING: the least that a node can do: one route to the pod, one to the host beyond, no rules, no netfilter.
- WIRE: no node; a veth between pod and host. What is left is what the measurement itself costs.

What else matters to a forwarded packet is the same on all nodes: reverse-path filter, MTU, no IPv6. The VPC drops, by
its strict reverse-path filter, what comes from an ENI that has not the pod's address: who is answered took the right
way.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from ipamd.host import EniNetwork, HostNetwork, NodeNetwork, PodNetwork, link_group
from ipamd.settings import HostSettings
from ipamd.sim import netns

IPAMD: Final = "ipamd"
TWO_RULES: Final = "two rules per pod"
TWO_RULES_SNAT: Final = "two rules per pod, iptables"
FORWARDING: Final = "forwarding alone"
WIRE: Final = "a wire"

VPC_HOST: Final = "10.0.200.9"
VPC_CIDR: Final = "10.0.0.0/16"
PODS_PER_ENI: Final = 50
MOST_PODS: Final = 15 * PODS_PER_ENI - 1  # beside the measured one; no instance has more ENIs (AWS, "Maximum ENIs")
MIDDLE: Final = 0.5
MTU: Final = 9001

_GATEWAY: Final = "169.254.1.1"  # of every pod
_HOST_MAC: Final = "0a:59:00:00:00:01"  # of the host's end of the measured pod's veth
_AWS_TO_POD, _AWS_MARKED, _AWS_FROM_POD, _AWS_FROM_ENI = 512, 1024, 1536, 32765  # priorities

# The SNAT and CONNMARK rules with AWS_VPC_K8S_CNI_EXTERNALSNAT=false and NodePort support, the defaults.
_AWS_IPTABLES: Final = f"""*nat
:AWS-SNAT-CHAIN-0 - [0:0]
:AWS-CONNMARK-CHAIN-0 - [0:0]
-A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0
-A AWS-SNAT-CHAIN-0 -d {VPC_CIDR} -m comment --comment "AWS SNAT CHAIN" -j RETURN
-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment "AWS, SNAT" -m addrtype ! --dst-type LOCAL \
-j SNAT --to-source 10.0.0.10 --random-fully
-A PREROUTING -i eni+ -m comment --comment "AWS, outbound connections" -j AWS-CONNMARK-CHAIN-0
-A AWS-CONNMARK-CHAIN-0 -d {VPC_CIDR} -m comment --comment "AWS CONNMARK CHAIN, VPC CIDR" -j RETURN
-A AWS-CONNMARK-CHAIN-0 -m comment --comment "AWS, CONNMARK" -j CONNMARK --set-xmark 0x80/0x80
-A PREROUTING -m comment --comment "AWS, CONNMARK" -j CONNMARK --restore-mark --mask 0x80
COMMIT
*mangle
-A PREROUTING -i eth0 -m comment --comment "AWS, primary ENI" -m addrtype --dst-type LOCAL --limit-iface-in \
-j CONNMARK --set-mark 0x80/0x80
-A PREROUTING -i eni+ -m comment --comment "AWS, primary ENI" -j CONNMARK --restore-mark --mask 0x80
COMMIT
"""


def run(*argv: str, stdin: str = "") -> str:
    """A system command, to its end. Raises `netns.CommandError`.

    Not by asyncio: Ctrl-C may fall into a step of its loop, which then waits for the command for ever.
    """
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True)
    if done.returncode:
        raise netns.CommandError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


class Namespaces:
    """All that a benchmark makes, under one prefix that nobody else uses; gone at the end, however it ends."""

    def __init__(self) -> None:
        self.prefix = f"dp{os.getpid()}-{secrets.token_hex(2)}"
        self._made: list[str] = []

    def __enter__(self) -> Namespaces:
        # Ended from outside is as good an end as Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C does not leave half of it behind
        try:
            self.delete(list(self._made))
        finally:
            signal.signal(signal.SIGINT, before)

    def make(self, name: str) -> str:
        name = f"{self.prefix}-{name}"
        self._made.append(name)
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        off = {f"ipv6/conf/{which}/disable_ipv6": 1 for which in ("all", "default")}
        netns.write_sysctls(name, {"ipv4/conf/all/rp_filter": 0, "ipv4/conf/default/rp_filter": 0, **off})
        return name

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            # Not there: the benchmark was ended while it was being made.
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)
            self._made.remove(name)


@dataclass(frozen=True, slots=True)
class Pod:
    """`link` is the host's end of its veth."""

    address: str
    device_index: int
    link: str


class Stage:
    """One node in one layout, with `others` pods beside the measured one, and what it talks to. `place` is the
    measured pod's in the list of pods: 0 the first, 1 the last."""

    def __init__(self, namespaces: Namespaces, layout: str, others: int, place: float = MIDDLE) -> None:
        self.layout, self.others, self.place = layout, others, place
        self.settings = HostSettings()
        prefix = "ipm" if layout == IPAMD else "eni"
        enis = max(2, -(-(others + 1) // PODS_PER_ENI))
        measured = int(others * place)
        self.enis = tuple(
            EniNetwork(f"eni-{i}", f"02:00:00:00:10:{i:02x}", i, i == 0, f"10.0.{i}.10", f"10.0.{i}.0/24")
            for i in range(enis)
        )
        self.pods: list[Pod] = []
        taken = [0] * enis
        for number in range(others + 1):
            i = (number - measured + enis // 2) % enis
            self.pods.append(Pod(f"10.0.{i}.{50 + taken[i]}", i, f"{prefix}{number:011x}"))
            taken[i] += 1
        self.measured = self.pods[measured]
        self._namespaces = namespaces
        name = secrets.token_hex(3)
        self._made = [f"{name}-{part}" for part in ("node", "vpc", "pod", "others")]
        self.node, self.vpc, self.pod, self._others = (f"{namespaces.prefix}-{each}" for each in self._made)

    def build(self) -> Stage:
        """As the node is when its ENIs are attached and the plugin has made the pods' veths, and then laid out."""
        self.prepare()
        if self.layout == IPAMD:
            netns.run_in(self.node, lambda: asyncio.run(self._apply()))
        elif self.layout == FORWARDING:
            self._enis_up()
            to_pod = f"route add {self.measured.address} dev {self.measured.link}"
            self._ip(self.node, to_pod, *_way_out(self.measured.device_index, "main"))
        elif self.layout != WIRE:
            self._lay_out_two_rules()
        return self

    def prepare(self) -> None:
        """Namespaces, ENIs and veths; the node's own state is that of a machine that has just booted."""
        for name in self._made:
            self._namespaces.make(name)
        netns.write_sysctls(self.vpc, {"ipv4/conf/all/rp_filter": 1})
        self._ip(self.vpc, f"addr add {VPC_HOST}/32 dev lo")
        if self.layout == WIRE:
            self._ip(
                self.vpc,
                f"link add wire mtu {MTU} address {_HOST_MAC} type veth peer name eth0 mtu {MTU} netns {self.pod}",
                "link set wire up",
                f"route add {self.measured.address} dev wire",
            )
        else:
            netns.write_sysctls(self.node, {"ipv4/ip_forward": 1})
            self._plug_enis()
            self._add_veths()
        self._ip(
            self.pod,
            f"addr add {self.measured.address}/32 dev eth0",
            "link set eth0 up",
            f"route add {_GATEWAY} dev eth0 scope link",
            f"route add default via {_GATEWAY} dev eth0",
            f"neigh add {_GATEWAY} lladdr {_HOST_MAC} dev eth0 nud permanent",
        )

    def remove(self) -> None:
        self._namespaces.delete((self.node, self.vpc, self.pod, self._others))

    @property
    def network(self) -> NodeNetwork:
        """What ipamd should bring about here."""
        pods = tuple(PodNetwork(pod.address, pod.link, pod.device_index) for pod in self.pods)
        return NodeNetwork(self.enis, (VPC_CIDR,), pods)

    # Parts

    async def _apply(self) -> None:
        network = HostNetwork(self.settings)
        await network.open()
        try:
            await network.apply(self.network)
        finally:
            await network.close()

    def _plug_enis(self) -> None:
        for eni in self.enis:
            i = eni.device_index
            ends = f"link add p{i} mtu {MTU} type veth peer name eth{i} mtu {MTU} address {eni.mac} netns {self.node}"
            self._ip(self.vpc, ends, f"link set p{i} up", f"addr add 10.0.{i}.1/24 dev p{i}")
        eni = self.enis[self.measured.device_index]
        self._ip(self.vpc, f"route add {self.measured.address} via {eni.primary_ip} dev p{eni.device_index}")
        self._ip(
            self.node,
            "link set eth0 up",
            f"addr add {self.enis[0].primary_ip}/24 dev eth0",
            "route add default via 10.0.0.1 dev eth0",
        )

    def _add_veths(self) -> None:
        """With the group that the plugin gives them, which says something to ipamd alone."""
        commands = []
        for place, pod in enumerate(self.pods):
            peer, mac = f"name v{place} netns {self._others}", ""
            if pod is self.measured:
                peer, mac = f"name eth0 netns {self.pod}", f"address {_HOST_MAC}"
            group = link_group(self.settings, pod.device_index)
            commands.append(f"link add {pod.link} mtu {MTU} {mac} group {group} up type veth peer {peer} mtu {MTU}")
        self._ip(self.node, *commands)

    def _enis_up(self) -> None:
        commands = []
        for eni in self.enis[1:]:
            link = f"eth{eni.device_index}"
            commands += [f"link set {link} up", f"addr add {eni.primary_ip}/24 dev {link} noprefixroute"]
        self._ip(self.node, *commands)
        # As HostNetwork sets it; that CNI sets it for the primary ENI and leaves the others to the distribution.
        netns.write_sysctls(self.node, {f"ipv4/conf/eth{eni.device_index}/rp_filter": 2 for eni in self.enis})

    def _lay_out_two_rules(self) -> None:
        self._enis_up()
        commands = [f"rule add fwmark 0x80/0x80 lookup main prio {_AWS_MARKED}"]
        for eni in self.enis[1:]:
            table = eni.device_index + 1
            commands.append(f"rule add from {eni.primary_ip} lookup {table} prio {_AWS_FROM_ENI}")
            commands += _way_out(eni.device_index, str(table))
        for pod in self.pods:
            commands.append(f"route add {pod.address} dev {pod.link} scope link")
            commands.append(f"rule add to {pod.address} lookup main prio {_AWS_TO_POD}")
            if pod.device_index:
                commands.append(f"rule add from {pod.address} lookup {pod.device_index + 1} prio {_AWS_FROM_POD}")
        self._ip(self.node, *commands)
        if self.layout == TWO_RULES_SNAT:
            run("ip", "netns", "exec", self.node, "iptables-restore", stdin=_AWS_IPTABLES)

    def _ip(self, namespace: str, *commands: str) -> None:
        run("ip", "-n", namespace, "-batch", "-", stdin="\n".join([*commands, ""]))


def _way_out(device_index: int, table: str) -> list[str]:
    gateway, link = f"10.0.{device_index}.1", f"eth{device_index}"
    return [
        f"route replace {gateway} dev {link} scope link table {table}",
        f"route replace default via {gateway} dev {link} table {table}",
    ]
