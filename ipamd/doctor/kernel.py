"""The kernel: what it lacks, how it is set, and which chains of others drop what it forwards."""

from __future__ import annotations

from collections.abc import Iterator
from socket import AF_INET

from ipamd.doctor.facts import Facts, drops_forwarded
from ipamd.doctor.report import Finding, fail, note, ok, warn
from ipamd.host import owners
from ipamd.host.desired import MAIN_TABLE


def privileges(facts: Facts) -> Iterator[Finding]:
    check = "root"
    if not facts.is_root:
        yield fail(check, "not run as root: most of this can't be seen", "sudo ipamctl doctor")
    elif facts.unreadable:
        yield fail(check, facts.unreadable, "see the message")
    else:
        yield ok(check, "the kernel's tables can be read")


def nftables(facts: Facts) -> Iterator[Finding]:
    check = "nftables"
    if not facts.nft:
        yield fail(
            check, "there is no nft command", "install the package nftables (apt, dnf or yum install nftables)"
        )
    elif facts.missing and facts.is_root:
        what = "; ".join(f"{name}: {words}" for name, words in facts.missing.items())
        remedy = "boot a kernel that has them, or load its modules: modprobe nf_tables nft_ct nft_fib_inet nft_nat"
        yield fail(check, f"the kernel lacks {what}", remedy)
    else:
        yield ok(check, f"{facts.nft}, and the kernel has what our table needs")


def forwarding(facts: Facts) -> Iterator[Finding]:
    """The kernel forwards what comes in by a link whose own switch is on (Documentation/networking/ip-sysctl.rst)."""
    check = "IPv4 forwarding"
    if facts.sysctls.get("ipv4/ip_forward") != "1":
        remedy = "let no file in /etc/sysctl.d set net.ipv4.ip_forward to 0"
        yield note(
            check, "off: no pod is reached from outside of the node until the daemon starts and turns it on", remedy
        )
        return
    links = [eni.link.name for eni in facts.enis] + [link.name for link in facts.pods]
    deaf = [name for name in links if facts.sysctls.get(f"ipv4/conf/{name}/forwarding") == "0"]
    if deaf:
        listed = ", ".join(deaf[:5]) + (f" and {len(deaf) - 5} more" if len(deaf) > 5 else "")
        found = f"off for {listed}: what comes in by these links is not forwarded"
        commands = " ".join(f"net.ipv4.conf.{name}.forwarding=1" for name in deaf[:5])
        remedy = f"start the daemon, which turns it on and keeps it on; by hand: sysctl -w {commands}"
        yield warn(check, found, remedy)
    elif facts.sysctls.get("ipv4/conf/default/forwarding") == "0":
        remedy = (
            "let no file in /etc/sysctl.d set net.ipv4.conf.default.forwarding to 0, if other software makes links"
        )
        yield note(check, "on, but off for links to come: ipamd turns it on for ENIs and pods itself", remedy)
    else:
        yield ok(check, "on, for each link and for links to come")


def ipv6(facts: Facts) -> Iterator[Finding]:
    check = "IPv6"
    if facts.sysctls.get("ipv6/conf/all/disable_ipv6", "1") == "0":
        yield ok(check, "enabled")
        return
    remedy = "if pods are to have IPv6: sysctl -w net.ipv6.conf.all.disable_ipv6=0 (no ipv6.disable=1 at boot)"
    yield note(check, "disabled: pods have IPv4 alone", remedy)


def reverse_path(facts: Facts) -> Iterator[Finding]:
    """The kernel takes the larger of the two values for each link (Documentation/networking/ip-sysctl.rst)."""
    check = "rp_filter"
    if not facts.enis:
        yield note(check, "could not tell: no ENI found")
        return
    every = _number(facts.sysctls.get("ipv4/conf/all/rp_filter"))
    strict = [
        eni.link.name
        for eni in facts.enis
        if max(every, _number(facts.sysctls.get(f"ipv4/conf/{eni.link.name}/rp_filter"))) == 1
    ]
    if not strict:
        yield ok(check, "no ENI is strict about where packets come from")
        return
    found = f"strict on {', '.join(strict)}: packets for pods that come in by another ENI than the main route's drop"
    lines = " ".join(f"net.ipv4.conf.{name}.rp_filter=2" for name in strict)
    remedy = f"sysctl -w {lines} (the daemon does it when it starts; look in /etc/sysctl.d for who sets it back)"
    yield warn(check, found, remedy)


def main_routes(facts: Facts) -> Iterator[Finding]:
    """Somebody who gives a secondary ENI its address with the subnet's prefix length makes such a route."""
    check = "main routing table"
    secondary = {eni.link.index: eni.link.name for eni in facts.secondary}
    wrong = [
        route
        for route in facts.routes
        if (route.table, route.family) == (MAIN_TABLE, AF_INET) and route.index in secondary
    ]
    if not wrong:
        yield ok(check, "no route in it leads out by a secondary ENI")
        return
    listed = ", ".join(f"{route.destination} dev {secondary[route.index]}" for route in wrong)
    remedy = "ip route del " + "; ip route del ".join(
        f"{route.destination} dev {secondary[route.index]}" for route in wrong
    )
    yield warn(
        check,
        f"{listed}: what the node itself or a NodePort sends there leaves by the wrong ENI, and the VPC drops it",
        f"{remedy}; and let nothing but ipamd configure these links (see the checks of networkd and NetworkManager)",
    )


def mtu(facts: Facts) -> Iterator[Finding]:
    check = "MTU"
    if not facts.enis:
        yield note(check, "could not tell: no ENI found")
        return
    host = facts.settings.host
    sizes = {eni.link.name: eni.link.mtu for eni in facts.enis}
    troubles = []
    if host.mtu and any(size != host.mtu for size in sizes.values()):
        wrong = ", ".join(f"{name} {size}" for name, size in sizes.items() if size != host.mtu)
        remedy = f"let nothing but ipamd set it: it sets host.mtu ({host.mtu}) when it starts; or set host.mtu = 0"
        troubles.append(warn(check, f"host.mtu is {host.mtu}, but {wrong}", remedy))
    elif len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        remedy = "set host.mtu to what all of them and the way beyond can carry, for instance 9001"
        troubles.append(warn(check, f"ENIs differ: {listed}", remedy))
    biggest = max(sizes.values(), default=0)
    wide = [link.name for link in facts.pods if biggest and link.mtu > biggest]
    if wide:
        found = f"larger on pods' links than on any ENI ({biggest}): {', '.join(wide[:5])}"
        remedy = "start these pods anew, or raise the ENIs' MTU again: ip link set dev ENI mtu N"
        troubles.append(warn(check, found, remedy))
    yield from troubles or [ok(check, "ENIs and pods' links agree")]


def forward_chains(facts: Facts) -> Iterator[Finding]:
    check = "forward chains"
    troubles = []
    for chain in facts.chains:
        name = f"{chain.family} {chain.table} {chain.name}"
        if drops_forwarded(chain) and (chain.family, chain.table) not in facts.forwards_pods:
            owner = _owner(facts, chain.family, chain.table)
            target = "DOCKER-USER" if owner == "Docker" else chain.name
            remedy = (
                f"nft insert rule {chain.family} {chain.table} {target} iifname 'ipm*' accept; nft insert rule "
                f"{chain.family} {chain.table} {target} oifname 'ipm*' accept (with each boot: in /etc/nftables.conf "
                "or a unit of its own)"
            )
            whose = f" ({owner})" if owner else ""
            troubles.append(
                warn(check, f"chain {name}{whose} drops what no rule of it accepts, pods' packets", remedy)
            )
    if any(table.name == "firewalld" for table in facts.tables):
        remedy = "firewall-cmd --permanent --zone=trusted --add-interface=ipm+ && firewall-cmd --reload"
        troubles.append(warn(check, "firewalld rejects what is forwarded between zones", remedy))
    yield from troubles or [ok(check, "none drops pods' packets")]


def legacy_iptables(facts: Facts) -> Iterator[Finding]:
    check = "iptables-legacy"
    if facts.legacy_tables:
        tables = ", ".join(sorted(facts.legacy_tables))
        found = f"its tables are in use ({tables}): their rules count too, and a policy of theirs is not looked at"
        yield note(check, found, "look for policy DROP in the output of iptables-legacy-save")
    else:
        yield ok(check, "not in use")


CHECKS = (privileges, nftables, forwarding, ipv6, reverse_path, main_routes, mtu, forward_chains, legacy_iptables)


def _owner(facts: Facts, family: str, table: str) -> str:
    names = ["", *(chain.name for chain in facts.chains if (chain.family, chain.table) == (family, table))]
    return next((owner for name in names if (owner := owners.of_chain(table, name))), "")


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0
