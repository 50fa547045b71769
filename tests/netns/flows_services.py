"""A service of a cluster, as kube-proxy writes it on a node: by nftables, or by iptables in either of its kinds.

Facts of kubernetes pkg/proxy/iptables/proxier.go and pkg/proxy/nftables/proxier.go (1.31): names, marks, hooks and
priorities, and which packets are marked to be masqueraded (0x4000): what comes in by a node port, unless its traffic
policy is Local, and what a pod sends to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from tests.netns.flows import PORT, Place
from tests.netns.flows_stage import Node

SERVICE: Final = ("172.20.0.10", 80)  # outside of the VPC's CIDRs, as EKS chooses them
NODE_PORT: Final = 30080


@dataclass(frozen=True)
class Service:
    """At `SERVICE` and, on each address of the node, at `NODE_PORT`: TCP and UDP, to one pod. `local`: its external
    traffic policy is Local, so clients from outside keep their address."""

    pod: Place
    local: bool = False
    vip: tuple[str, int] = SERVICE


Proxy = Callable[[Node, Service], None]


def nftables(node: Node, service: Service) -> None:
    vip, port = service.vip
    pod = service.pod.address
    external = "" if service.local else "jump mark-for-masquerade"
    vips = ", ".join(f"{vip} . {kind} . {port} : goto service" for kind in ("tcp", "udp"))
    ports = ", ".join(f"{kind} . {NODE_PORT} : goto external" for kind in ("tcp", "udp"))
    node.run(
        *("nft", "-f", "-"),
        stdin=f"""
        table ip kube-proxy {{
          comment "rules for kube-proxy";
          map service-ips {{
            type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ {vips} }};
          }}
          map service-nodeports {{ type inet_proto . inet_service : verdict; elements = {{ {ports} }}; }}
          chain mark-for-masquerade {{ mark set mark or 0x4000; }}
          chain endpoint {{
            ip saddr {pod} jump mark-for-masquerade
            meta l4proto tcp dnat to {pod}:{PORT}
            meta l4proto udp dnat to {pod}:{PORT}
          }}
          chain external {{ {external}; goto endpoint; }}
          chain service {{ goto endpoint; }}
          chain services {{
            ip daddr . meta l4proto . th dport vmap @service-ips
            fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @service-nodeports
          }}
          chain masquerading {{
            mark and 0x4000 == 0 return
            mark set mark xor 0x4000
            masquerade fully-random
          }}
          chain filter-forward {{ type filter hook forward priority -110; ct state invalid drop; }}
          chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
          chain nat-output {{ type nat hook output priority -100; jump services; }}
          chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
        }}
        """,
    )


def _remove_nftables(node: Node) -> None:
    node.run("nft", "delete table ip kube-proxy")


def _iptables(kind: str) -> Proxy:
    def install(node: Node, service: Service) -> None:
        vip, port = service.vip
        pod = service.pod.address
        external = "" if service.local else "-A KUBE-EXT-X -j KUBE-MARK-MASQ"
        nat = [
            *(f":{chain} - [0:0]" for chain in ("KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING")),
            *(f":{chain} - [0:0]" for chain in ("KUBE-MARK-MASQ", "KUBE-EXT-X", "KUBE-SVC-X", "KUBE-SEP-X")),
            "-A PREROUTING -j KUBE-SERVICES",
            "-A OUTPUT -j KUBE-SERVICES",
            "-A POSTROUTING -j KUBE-POSTROUTING",
            "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
            "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
            "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
            "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
            external,
            "-A KUBE-EXT-X -j KUBE-SVC-X",
            "-A KUBE-SVC-X -j KUBE-SEP-X",
            f"-A KUBE-SEP-X -s {pod}/32 -j KUBE-MARK-MASQ",
        ]
        for proto in ("tcp", "udp"):
            nat += [
                f"-A KUBE-SEP-X -p {proto} -j DNAT --to-destination {pod}:{PORT}",
                f"-A KUBE-SERVICES -d {vip}/32 -p {proto} --dport {port} -j KUBE-SVC-X",
                f"-A KUBE-NODEPORTS -p {proto} --dport {NODE_PORT} -j KUBE-EXT-X",
            ]
        nat.append("-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")
        forward = [
            ":KUBE-FORWARD - [0:0]",
            "-A FORWARD -j KUBE-FORWARD",
            "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
            "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
            "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        ]
        lines = ["*nat", *filter(None, nat), "COMMIT", "*filter", *forward, "COMMIT", ""]
        node.run(f"iptables-{kind}-restore", "--noflush", stdin="\n".join(lines))

    install.__name__ = f"iptables_{kind}"
    return install


def _remove_iptables(kind: str) -> Callable[[Node], None]:
    def remove(node: Node) -> None:
        node.run(f"iptables-{kind}-restore", stdin="*nat\nCOMMIT\n*filter\nCOMMIT\n")

    return remove


iptables_nft, iptables_legacy = _iptables("nft"), _iptables("legacy")

PROXIES: Final = (nftables, iptables_nft, iptables_legacy)
_REMOVE: Final = {
    nftables: _remove_nftables,
    iptables_nft: _remove_iptables("nft"),
    iptables_legacy: _remove_iptables("legacy"),
}


@contextmanager
def served(proxy: Proxy, node: Node, service: Service) -> Iterator[None]:
    proxy(node, service)
    try:
        yield
    finally:
        _REMOVE[proxy](node)
