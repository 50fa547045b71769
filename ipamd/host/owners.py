"""Whose a rule, route or table of the kernel's probably is: told by what software is known to write.

Nothing in the kernel says who made an object; numbers and names give it away. Sources: the programs' own defaults
(AWS VPC CNI: priorities and chains of docs/cni-proposal and pkg/networkutils; kube-proxy: proxy/iptables and
proxy/nftables; Calico: felix dataplane chain names; Cilium: pkg/datapath/linux; wg-quick(8); tailscale's router).
"""

from __future__ import annotations

from pathlib import Path

# iproute2's files: /etc overrides what the package ships.
_FOLDERS = ("usr/share/iproute2", "usr/lib/iproute2", "etc/iproute2")

_BY_CHAIN = {
    "AWS-": "AWS VPC CNI",
    "E4-": "AWS VPC CNI (egress)",
    "E6-": "AWS VPC CNI (egress)",
    "KUBE-ROUTER-": "kube-router",
    "KUBE-POD-FW-": "kube-router",
    "KUBE-NWPLCY-": "kube-router",
    "KUBE-": "Kubernetes (kube-proxy, kubelet)",
    "cali-": "Calico",
    "CILIUM_": "Cilium",
    "OLD_CILIUM_": "Cilium",
    "FLANNEL-": "flannel",
    "WEAVE": "Weave Net",
    "CNI-": "CNI plugins (portmap, bridge)",
    "DOCKER": "Docker",
    "NETAVARK": "podman (netavark)",
    "LIBVIRT_": "libvirt",
    "ISTIO_": "Istio",
    "ts-": "Tailscale",
    "ufw": "ufw",
    "f2b-": "fail2ban",
}
_BY_TABLE = {
    "aws-cni": "AWS VPC CNI",
    "kube-proxy": "kube-proxy",
    "kube-network-policies": "kube-network-policies",
    "firewalld": "firewalld",
    "docker-bridges": "Docker",
    "netavark": "podman (netavark)",
    "calico": "Calico",
    "cilium": "Cilium",
    "flannel-ipv4": "flannel",
    "flannel-ipv6": "flannel",
    "cni_hostport": "CNI plugins (portmap)",
    "connman": "ConnMan",
}
_BY_LINK = {
    "cali": "Calico",
    "tunl": "Calico",
    "vxlan.calico": "Calico",
    "cilium": "Cilium",
    "lxc": "Cilium",
    "flannel": "flannel",
    "cni0": "flannel or the bridge plugin",
    "weave": "Weave Net",
    "eni": "AWS VPC CNI",
    "vlan.eth": "AWS VPC CNI",
    "docker": "Docker",
    "br-": "Docker",
    "podman": "podman",
    "virbr": "libvirt",
    "wg": "WireGuard",
    "tailscale": "Tailscale",
}
# Routing tables that programs are known by.
_BY_ROUTING_TABLE = {51820: "wg-quick", 52: "Tailscale", 2004: "Cilium", 2005: "Cilium"}
# Priorities of the AWS VPC CNI; its 32765 is also what ip(8) takes when none is asked for.
_BY_PRIORITY = {512: "AWS VPC CNI", 1024: "AWS VPC CNI", 1536: "AWS VPC CNI"}

# Protocols that everybody uses: unspec, kernel, boot (what ip(8) writes without a word), static.
_ANONYMOUS = {0, 2, 3, 4}


def of_chain(table: str, chain: str) -> str:
    """Empty when nothing is known, as with all of these."""
    return _by_prefix(_BY_CHAIN, chain) or _by_prefix(_BY_TABLE, table)


def of_link(name: str) -> str:
    return _by_prefix(_BY_LINK, name)


def of_protocol(protocol: int, root: Path = Path("/")) -> str:
    """By its name in iproute2's list, or its number: somebody chose it. Empty for one that everybody uses."""
    if protocol in _ANONYMOUS:
        return ""
    return f"protocol {_protocol_names(root).get(protocol, protocol)}"


def of_rule(priority: int, table: int, protocol: int, root: Path = Path("/")) -> str:
    return _BY_ROUTING_TABLE.get(table) or _BY_PRIORITY.get(priority) or of_protocol(protocol, root)


def of_route(table: int, protocol: int, link: str, root: Path = Path("/")) -> str:
    return of_link(link) or of_protocol(protocol, root) or _BY_ROUTING_TABLE.get(table, "")


def _by_prefix(known: dict[str, str], name: str) -> str:
    return next((owner for prefix, owner in known.items() if name.startswith(prefix)), "")


def _protocol_names(root: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for folder in _FOLDERS:
        files = [root / folder / "rt_protos", *sorted((root / folder / "rt_protos.d").glob("*.conf"))]
        for file in files:
            try:
                lines = file.read_text(errors="replace").splitlines()
            except OSError:
                continue
            for line in lines:
                words = line.partition("#")[0].split()
                if len(words) == 2 and words[0].isdigit():
                    names[int(words[0])] = words[1]
    return names
