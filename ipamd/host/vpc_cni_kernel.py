"""The host as the AWS VPC CNI left it: read, and cleared of what `vpc_cni` found."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from socket import AF_INET, NETLINK_ROUTE

from ipamd.host import legacy_iptables, netlink, others, rtnetlink
from ipamd.host.errors import HostError
from ipamd.host.vpc_cni import (
    AGENT,
    CHAIN,
    NFT_TABLE,
    SOCKET,
    Leftovers,
    Link,
    Route,
    Rule,
    Script,
    Snapshot,
    network_of,
    vpc_networks,
)
from ipamd.neighbours.peer import listener

BINARIES = ("iptables-legacy", "iptables-nft")
# The folder alone is not its: AWS's network policy agent and ipamd share it, too.
FILES = ("run/aws-node/ipam.json", "opt/cni/bin/aws-cni")
_SELECTING = {netlink.FRA_SRC, netlink.FRA_DST, netlink.FRA_FWMARK, netlink.FRA_FWMASK}
_HARMLESS = {netlink.FRA_PRIORITY, netlink.FRA_TABLE, netlink.FRA_PROTOCOL, netlink.FRA_SUPPRESS_PREFIXLEN}
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_LINK_NETNSID, _IFLA_INFO_KIND = 3, 18, 37, 1  # linux/if_link.h
_PATIENCE = 20.0  # seconds for a command


def look(root: Path = Path("/"), own: Path | None = None) -> Snapshot:
    """Of the network namespace of the caller. `own`: the socket of this host's ipamd. Raises `HostError`."""
    try:
        rules, routes, links = _rules(), _routes(), _links()
    except OSError as error:
        raise HostError(f"rules, routes and links can't be read: {error.strerror}") from error
    names = {link.index: link.name for link in links}
    bridges = {link.index for link in links if link.kind == "bridge"}
    saved = {binary: text for binary in BINARIES if (text := _save(binary))}
    subnets = {
        network_of(address.address, length)
        for address, length in rtnetlink.addresses(AF_INET).items()
        if address.index not in bridges
    }
    networks = {network for network in subnets if network is not None} | vpc_networks(saved.values())
    return Snapshot(
        rules=tuple(rules),
        routes=tuple(Route(table, to, via, names.get(index, ""), raw) for table, to, via, index, raw in routes),
        links=tuple(links),
        networks=tuple(sorted(networks)),
        saved=saved,
        nft_chains=_nft_chains(),
        files=tuple(f"/{name}" for name in FILES if (root / name).exists()),
        agent=_agent(root, own),
    )


def unreachable() -> list[str]:
    """Its chains that are here and can't be removed, for want of the binary that made them."""
    found = set()
    if not _has("iptables-nft"):
        found = {(chain.table, chain.name) for chain in others.chains() if chain.family == "ip"}
    if not _has("iptables-legacy"):
        found |= {(part.table, part.chain) for part in legacy_iptables.parts()[0] if part.family == "ip"}
    return [f"chain {name} in table {table}" for table, name in sorted(found) if CHAIN.fullmatch(name)]


def _has(binary: str) -> bool:
    return all(shutil.which(f"{binary}-{verb}") for verb in ("save", "restore"))


def remove(found: Leftovers) -> None:
    """All of it; what is gone meanwhile is as it should be. Raises `HostError`."""
    for rule in found.rules:
        _delete(rule)
    for route in found.routes:
        _undo(str(route), netlink.RTM_DELROUTE, route.raw)
    for link in found.links:
        message = netlink.IFINFO.pack(socket.AF_UNSPEC, 0, link.index, 0, 0)
        _undo(f"ip link {link.name}", netlink.RTM_DELLINK, message)
    if found.nft_table:
        _run(["nft", "delete", "table", "ip", NFT_TABLE])
    for script in found.scripts:
        _restore(script)


def _delete(rule: Rule) -> None:
    """The kernel deletes the first rule that the message matches, where what it does not name matches anything. So
    somebody else's that it would take is put behind it first, as a copy, before the original goes."""
    try:
        before = _rules()
        if rule not in before:
            return
        for other in before[: before.index(rule)]:
            if rule.would_take(other):
                netlink.change(NETLINK_ROUTE, netlink.RTM_NEWRULE, _copy(other), netlink.NLM_F_CREATE)
                netlink.change(NETLINK_ROUTE, netlink.RTM_DELRULE, rule.raw)
    except OSError as error:
        raise HostError(f"removing {rule}: {error.strerror}") from error
    _undo(str(rule), netlink.RTM_DELRULE, rule.raw)


def _copy(rule: Rule) -> bytes:
    """As a request: of the flags, the others only report."""
    *head, flags = netlink.FIB_RULE.unpack_from(rule.raw)
    return netlink.FIB_RULE.pack(*head, flags & netlink.FIB_RULE_INVERT) + rule.raw[netlink.FIB_RULE.size :]


def _undo(what: str, kind: int, message: bytes) -> None:
    try:
        netlink.change(NETLINK_ROUTE, kind, message)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESRCH, errno.ENODEV):
            raise HostError(f"removing {what}: {error.strerror}") from error


def _rules() -> list[Rule]:
    payload = netlink.FIB_RULE.pack(AF_INET, *(0,) * 8)
    messages = netlink.dump(NETLINK_ROUTE, netlink.RTM_GETRULE, payload, netlink.RTM_NEWRULE)
    return [_rule(data[start:end]) for data, start, end in messages]


def _rule(raw: bytes) -> Rule:
    _, dst_len, src_len, tos, table, _, _, action, flags = netlink.FIB_RULE.unpack_from(raw)
    fields = dict(netlink.attributes(raw, netlink.FIB_RULE.size))
    strange = fields.keys() - _SELECTING - _HARMLESS
    limits = fields.get(netlink.FRA_SUPPRESS_PREFIXLEN, b"\xff\xff\xff\xff") != b"\xff\xff\xff\xff"
    inverted = flags & netlink.FIB_RULE_INVERT
    plain = action == netlink.FR_ACT_TO_TBL and not (strange or limits or inverted or tos)
    return Rule(
        priority=netlink.u32(fields.get(netlink.FRA_PRIORITY, b"")),
        table=netlink.u32(fields.get(netlink.FRA_TABLE, b"")) or table,
        source=_prefix(fields.get(netlink.FRA_SRC), src_len),
        destination=_prefix(fields.get(netlink.FRA_DST), dst_len),
        mark=netlink.u32(fields.get(netlink.FRA_FWMARK, b"")),
        mask=netlink.u32(fields.get(netlink.FRA_FWMASK, b"")),
        plain=plain,
        raw=raw,
    )


def _prefix(packed: bytes | None, length: int) -> str:
    return "" if packed is None else f"{socket.inet_ntop(AF_INET, packed)}/{length}"


def _routes() -> list[tuple[int, str, str, int, bytes]]:
    """(table, destination, gateway, link, message) of unicast routes with one way."""
    payload = netlink.RTMSG.pack(AF_INET, *(0,) * 8)
    found = []
    for data, start, end in netlink.dump(NETLINK_ROUTE, netlink.RTM_GETROUTE, payload, netlink.RTM_NEWROUTE):
        raw = data[start:end]
        _, length, _, _, table, _, _, kind, _ = netlink.RTMSG.unpack_from(raw)
        fields = dict(netlink.attributes(raw, netlink.RTMSG.size))
        if kind != netlink.RTN_UNICAST:
            continue
        table = netlink.u32(fields.get(netlink.RTA_TABLE, b"")) or table
        to = _prefix(fields.get(netlink.RTA_DST), length).removesuffix("/32")
        via = _prefix(fields.get(netlink.RTA_GATEWAY), 32).removesuffix("/32")
        found.append((table, to, via, netlink.u32(fields.get(netlink.RTA_OIF, b"")), raw))
    return found


def _links() -> list[Link]:
    messages = netlink.dump(NETLINK_ROUTE, netlink.RTM_GETLINK, netlink.LINKS_REQUEST, netlink.RTM_NEWLINK)
    found = []
    for data, start, end in messages:
        _, _, index, _, _ = netlink.IFINFO.unpack_from(data, start)
        fields = dict(netlink.attributes(data, start + netlink.IFINFO.size, end))
        info = dict(netlink.attributes(fields.get(_IFLA_LINKINFO, b"")))
        kind = netlink.text(info.get(_IFLA_INFO_KIND, b""))
        name = netlink.text(fields.get(_IFLA_IFNAME, b""))
        found.append(Link(name, index, kind, _IFLA_LINK_NETNSID in fields))
    return found


def _agent(root: Path, own: Path | None = None) -> str:
    for comm in (root / "proc").glob("[0-9]*/comm"):
        with suppress(OSError):
            if comm.read_text().strip() == AGENT:
                return f"process {comm.parent.name} ({AGENT})"
    listens = listener(root / SOCKET)
    if listens is None or (own is not None and listens and listens == listener(own)):
        return ""  # nobody, or ipamd itself, for AWS's network policy agent
    return f"somebody listens at /{SOCKET}"


def _nft_chains() -> frozenset[str] | None:
    """Of table ip aws-cni; None: there is no such table."""
    if not any((table.family, table.name) == ("ip", NFT_TABLE) for table in others.tables()):
        return None
    return frozenset(chain.name for chain in others.chains() if (chain.family, chain.table) == ("ip", NFT_TABLE))


def _save(binary: str) -> str:
    """Empty where the binary, or what it would list, is not here."""
    if not _has(binary):
        return ""
    if binary == "iptables-legacy" and not _legacy_in_use():
        return ""
    return _run([f"{binary}-save"])


def _legacy_in_use() -> bool:
    """To ask for a table that is not in use makes the kernel create it."""
    try:
        return bool(Path("/proc/thread-self/net/ip_tables_names").read_text().split())
    except OSError:
        return False


def _restore(script: Script) -> None:
    _run([f"{script.binary}-restore", "-w", "5", "--noflush"], script.text)


def _run(command: list[str], stdin: str = "") -> str:
    """Raises `HostError`."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=_PATIENCE, env=environment
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise HostError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
