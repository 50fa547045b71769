"""Everything that the checks look at, gathered once: the files below a root folder and what the kernel and the
metadata service say in the current network namespace."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ipamd.doctor import cloud_facts, imds, node_facts
from ipamd.doctor.cloud_facts import CloudAnswer
from ipamd.doctor.imds import Answer
from ipamd.doctor.node_facts import NodeFacts
from ipamd.host import HostError, others
from ipamd.host.clashes import Clash, find_clashes
from ipamd.host.desired import POD_LINK_PREFIX
from ipamd.host.others import AnyChain, AnyLink, AnyRoute, AnyRule, AnyTable
from ipamd.settings import Settings

SYSCTL = Path("/proc/sys/net")
SYSFS = Path("/sys/class/net")

# What our table needs of the kernel, loaded nowhere: nft -c has the kernel check it and then forget it.
_NEEDED = {
    "nftables itself": "",
    "connection tracking (nf_conntrack, nft_ct)": "ct state new ct mark set ct mark | 0x1",
    "route look-ups (nft_fib_inet)": "fib saddr . iif oif 0 drop",
    "verdict maps on link groups": "iifgroup vmap { 1501 : accept }",
    "source NAT (nft_nat)": "snat ip to 192.0.2.1 fully-random",
}


@dataclass(frozen=True, slots=True)
class Eni:
    """An ENI's link. `primary`: the default route leaves by it. `driver` as sysfs has it, empty if it has none."""

    link: AnyLink
    primary: bool
    driver: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """`forwards_pods`: the nftables tables (family, name) with a rule that accepts what goes to or comes from pods'
    links by their name. `legacy_tables`: those of iptables-legacy. `sysctls`: path below /proc/sys/net -> value.
    `mac_origins`: link -> addr_assign_type (linux/netdevice.h, 3: set by somebody). `missing`: what the kernel lacks
    -> nft's words for it. `unreadable`: why the kernel's tables could not be read, and then there are none here."""

    root: Path
    settings: Settings
    is_root: bool = True
    processes: frozenset[str] = frozenset()
    links: tuple[AnyLink, ...] = ()
    enis: tuple[Eni, ...] = ()
    routes: tuple[AnyRoute, ...] = ()
    rules: tuple[AnyRule, ...] = ()
    tables: tuple[AnyTable, ...] = ()
    chains: tuple[AnyChain, ...] = ()
    forwards_pods: frozenset[tuple[str, str]] = frozenset()
    legacy_tables: frozenset[str] = frozenset()
    sockets: frozenset[str] = frozenset()  # paths of the Unix sockets that somebody serves in our network namespace
    sysctls: Mapping[str, str] = field(default_factory=dict)
    mac_origins: Mapping[str, str] = field(default_factory=dict)
    nft: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)
    clashes: tuple[Clash, ...] = ()
    unreadable: str = ""
    metadata: Answer = field(default_factory=Answer)
    cloud: CloudAnswer = field(default_factory=lambda: CloudAnswer(failed="identity"))
    node: NodeFacts = field(default_factory=NodeFacts)

    @property
    def pods(self) -> tuple[AnyLink, ...]:
        """The host's ends of the pods' veths."""
        return tuple(link for link in self.links if link.name.startswith(POD_LINK_PREFIX))

    @property
    def secondary(self) -> tuple[Eni, ...]:
        return tuple(eni for eni in self.enis if not eni.primary)

    @property
    def primary(self) -> str:
        """The name of the primary ENI's link; if unknown, a placeholder for the reader to replace."""
        return next((eni.link.name for eni in self.enis if eni.primary), "PRIMARY")


def gather(settings: Settings, root: Path = Path("/")) -> Facts:
    """Blocks for up to some seconds. Raises nothing: what could not be read says so among the facts."""
    metadata = imds.ask(settings.imds.endpoint)
    node = node_facts.gather(settings, root)
    nft = shutil.which("nft") or ""
    base = Facts(
        root,
        settings,
        is_root=os.geteuid() == 0,
        processes=_processes(root),
        sysctls=_sysctls(),
        legacy_tables=_legacy_tables(),
        sockets=_sockets(),
        nft=nft,
        metadata=metadata,
        node=node,
        cloud=cloud_facts.ask(settings, node.daemon, answers=metadata.status == 200),
    )
    try:
        links, routes = tuple(others.links()), tuple(others.routes())
        rules, tables, chains = tuple(others.rules()), tuple(others.tables()), tuple(others.chains())
        clashes = tuple(asyncio.run(find_clashes(settings.host)))
    except HostError as error:
        return replace(base, unreadable=str(error))
    return replace(
        base,
        links=links,
        routes=routes,
        rules=rules,
        tables=tables,
        chains=chains,
        clashes=clashes,
        enis=_enis(links, routes, metadata.macs),
        mac_origins={link.name: _read(SYSFS / link.name / "addr_assign_type") for link in links},
        missing=_missing(nft),
        forwards_pods=_forwards_pods(nft, chains),
    )


def _processes(root: Path) -> frozenset[str]:
    """The names of all processes, as the kernel cuts them (15 characters)."""
    return frozenset(_read(path) for path in (root / "proc").glob("[0-9]*/comm"))


def _sockets() -> frozenset[str]:
    """/proc/net/unix has them also for who does not see the host's processes: the path is the eighth word."""
    lines = (line.split(maxsplit=7) for line in _read(Path("/proc/net/unix")).splitlines()[1:])
    return frozenset(words[7] for words in lines if len(words) == 8)


def _legacy_tables() -> frozenset[str]:
    return frozenset(
        f"{_read(Path('/proc/net/ip_tables_names'))} {_read(Path('/proc/net/ip6_tables_names'))}".split()
    )


def _sysctls() -> dict[str, str]:
    names = [SYSCTL / "ipv4/ip_forward", *SYSCTL.glob("ipv4/conf/*/rp_filter")]
    names += SYSCTL.glob("ipv4/conf/*/forwarding")
    names += SYSCTL.glob("ipv6/conf/*/disable_ipv6")
    return {str(path.relative_to(SYSCTL)): _read(path) for path in names}


def _enis(links: tuple[AnyLink, ...], routes: tuple[AnyRoute, ...], macs: frozenset[str]) -> tuple[Eni, ...]:
    """The links that the metadata service names; if it does not answer, the network cards."""
    main = next((route for route in routes if (route.table, route.destination) == (254, "default")), None)
    found = [link for link in links if link.mac in macs] if macs else [link for link in links if _is_card(link)]
    return tuple(Eni(link, main is not None and link.index == main.index, _driver(link.name)) for link in found)


def _is_card(link: AnyLink) -> bool:
    return (SYSFS / link.name / "device").exists()


def _driver(name: str) -> str:
    try:
        return (SYSFS / name / "device/driver").readlink().name
    except OSError:
        return ""


def _forwards_pods(nft: str, chains: tuple[AnyChain, ...]) -> frozenset[tuple[str, str]]:
    found = set()
    for family, table in {(chain.family, chain.table) for chain in chains if drops_forwarded(chain)}:
        try:
            listing = subprocess.run(
                [nft, "-s", "list", "table", family, table], capture_output=True, timeout=10
            ).stdout
        except (OSError, subprocess.TimeoutExpired):
            continue
        lines = [line for line in listing.decode(errors="replace").splitlines() if line.endswith(("accept", '"'))]
        if all(any(f'{way} "{POD_LINK_PREFIX}*"' in line for line in lines) for way in ("iifname", "oifname")):
            found.add((family, table))
    return frozenset(found)


def drops_forwarded(chain: AnyChain) -> bool:
    """NF_INET_FORWARD is 2."""
    return chain.hook == 2 and not chain.accepts and chain.family in ("ip", "ip6", "inet")


def _missing(nft: str) -> dict[str, str]:
    if not nft:
        return {}
    missing = {}
    for what, rule in _NEEDED.items():
        hook = (
            "type nat hook postrouting priority 100" if "snat" in rule else "type filter hook prerouting priority 0"
        )
        script = f"table inet ipamd-doctor {{ chain c {{ {hook}; {rule}\n}}\n}}\n"
        try:
            done = subprocess.run([nft, "-c", "-f", "-"], input=script, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired) as error:
            return {what: str(error)}
        if done.returncode:
            missing[what] = (done.stderr.strip().splitlines() or ["no reason given"])[0]
    return missing


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
