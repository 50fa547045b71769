"""What stands on this host where ipamd wants to write: found at start, by name, before anything is written.

Other software may hold a routing table, a rule priority, a bit of the mark, a link group or an nftables table that
is one of ours by the settings. Written over it, ours would break theirs or theirs ours, much later and far from the
cause. So the daemon refuses, says what it found and which setting moves ours out of the way. What pods can live with
is reported and ends nothing (`Weight`).

A mere neighbour is no clash. The AWS VPC CNI with its mark 0x80 and its priorities 512, 1024, 1536 and 32765,
kube-proxy, Docker, Calico and Cilium live beside the defaults.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

import structlog

from ipamd.host import legacy_iptables, mark_users, others, owners
from ipamd.host.desired import POD_LINK_PREFIX
from ipamd.host.mark_users import MarkUse
from ipamd.host.others import AnyChain, AnyLink, AnyRoute, AnyRule, AnyTable
from ipamd.settings import MOST_ENIS, HostSettings

log = structlog.get_logger("ipamd.host")

_KERNEL = 2  # RTPROT_KERNEL
# Chains that our table has had in every version: older ones carry no comment.
_OWN_CHAINS = {"prerouting", "from_pod"}


class Weight(Enum):
    """What a clash means for the start. SHARED: pods work beside it. SERVED: a node that is empty does better without
    us, but pods that are there already have to live with it anyway. REFUSED: to go on would cut pods off, or write
    over what is somebody else's."""

    SHARED = "shared"
    SERVED = "served"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Clash:
    """`what` says what is in the way and why; `owner` names the software that it probably belongs to, empty if
    unknown; `setting` is the key that moves ours, or settles it; `remedy` says what to do."""

    what: str
    owner: str
    setting: str
    remedy: str
    weight: Weight = Weight.SERVED

    def __str__(self) -> str:
        owner = f" (probably {self.owner})" if self.owner else ""
        return f"{self.what}{owner}: {self.remedy}"


@dataclass(frozen=True, slots=True)
class Found:
    """The kernel's objects, ours and foreign ones, to search for clashes."""

    rules: tuple[AnyRule, ...] = ()
    routes: tuple[AnyRoute, ...] = ()
    links: tuple[AnyLink, ...] = ()
    tables: tuple[AnyTable, ...] = ()
    chains: tuple[AnyChain, ...] = ()
    marks: tuple[MarkUse, ...] = ()
    callers: Mapping[tuple[str, str, str], set[str]] = field(default_factory=dict)


async def find_clashes(settings: HostSettings) -> list[Clash]:
    """Everything in the current network namespace that is in the way of these settings; empty: nothing.

    Takes milliseconds, and up to some seconds on a host with a hundred thousand nftables rules, during which the
    event loop goes on. Raises `HostError` when the kernel does not tell.
    """
    found, complete = await asyncio.to_thread(_look, settings)
    if not complete:
        log.warning("host.clashes_not_all_looked_at", seconds=mark_users.BUDGET)
    return compare(settings, found)


def _look(settings: HostSettings) -> tuple[Found, bool]:
    tables = tuple(others.tables())
    chains = tuple(others.chains())
    own = any(_is_own(table, settings, chains) for table in tables)
    marks, complete = mark_users.mark_uses(("inet", settings.nft_table) if own else ("", ""))
    parts, legacy_chains = legacy_iptables.parts()
    marks += mark_users.legacy_mark_uses(parts)
    rules, routes, links = others.rules(), others.routes(), others.links()
    hooked = {(chain.family, chain.table, chain.name) for chain in chains if chain.hook is not None}
    callers = mark_users.callers(
        {(use.family, use.table) for use in marks if use.clears and (use.family, use.table, use.chain) not in hooked}
    )
    every = (*chains, *legacy_chains)
    return Found(tuple(rules), tuple(routes), tuple(links), tables, every, tuple(marks), callers), complete


def compare(settings: HostSettings, found: Found) -> list[Clash]:
    """The clashes among the objects found. Pure."""
    names = {link.index: link.name for link in found.links}
    return [
        *_misplaced_pods(settings, found, names),
        *_routes(settings, found, names),
        *_rules(settings, found),
        *_links(settings, found),
        *_tables(settings, found),
        *_marks(settings, found),
    ]


def _own_tables(settings: HostSettings) -> range:
    return range(settings.table, settings.table + MOST_ENIS + 1)


def _is_pod(name: str) -> bool:
    return name.startswith(POD_LINK_PREFIX)


def _misplaced_pods(settings: HostSettings, found: Found, names: Mapping[int, str]) -> Iterator[Clash]:
    """Pods that were started under other settings: their routes would count as foreign or as another pod's."""
    places = Counter(
        (route.table, route.protocol)
        for route in found.routes
        if _is_pod(names.get(route.index, "")) and _is_pod_route(route)
    )
    for (table, protocol), count in sorted(places.items()):
        if (table, protocol) == (settings.table, settings.route_protocol):
            continue
        wrong = []
        if table != settings.table:
            wrong.append(("host.table", table))
        if protocol != settings.route_protocol:
            wrong.append(("host.route_protocol", protocol))
        restore = " and ".join(f"{key} = {value}" for key, value in wrong)
        yield Clash(
            f"{count} route{'s' * (count > 1)} of running pods stand in table {table} with protocol {protocol}",
            "ipamd under other settings",
            wrong[0][0],
            f"restore {restore}, or drain the node and remove its pods before changing it",
            Weight.REFUSED,
        )


def _is_pod_route(route: AnyRoute) -> bool:
    """To a single address, and not one that the kernel or its autoconfiguration made."""
    return route.protocol != _KERNEL and route.destination.endswith(("/32", "/128"))


def _routes(settings: HostSettings, found: Found, names: Mapping[int, str]) -> Iterator[Clash]:
    tables = _own_tables(settings)
    taken: dict[int, list[AnyRoute]] = {}
    for route in found.routes:
        if route.table not in tables or route.protocol == settings.route_protocol:
            continue
        if _is_pod(names.get(route.index, "")) and _is_pod_route(route):
            continue  # reported with the pods
        taken.setdefault(route.table, []).append(route)
    for table, routes in sorted(taken.items()):
        first = routes[0]
        link = names.get(first.index, "")
        more = f" and {len(routes) - 1} more" if len(routes) > 1 else ""
        yield Clash(
            f"{first}{f' dev {link}' if link else ''}{more} in a table that ipamd needs",
            owners.of_route(table, first.protocol, link),
            "host.table",
            f"set host.table so that none of the tables host.table to host.table + {MOST_ENIS} is in use "
            f"(now {settings.table} to {tables[-1]})",
        )


def _rules(settings: HostSettings, found: Found) -> Iterator[Clash]:
    for rule in found.rules:
        if rule.protocol == settings.route_protocol or rule.vrf:  # the rule of VRFs concerns only links in a VRF
            continue
        owner = owners.of_rule(rule.priority, rule.table, rule.protocol)
        key = _priority_setting(settings, rule.priority)
        if rule.table in _own_tables(settings):
            remedy = (
                f"set host.table to another number, or remove the rule if nothing needs it (now {settings.table})"
            )
            yield Clash(f"{rule} looks up a table that ipamd needs", owner, "host.table", remedy)
        elif key:
            # The kernel keeps both. A program that removes a rule by priority alone may hit ours, which is put back.
            remedy = f"set {key} so that no rule of others has the same priority"
            yield Clash(f"{rule} has a priority of ours", owner, key, remedy, Weight.SHARED)
        elif hurt := _decided(settings, rule):
            yield Clash(
                f"{rule} decides by bits {hurt:#x} of the packet mark",
                owner,
                _mark_setting(settings, hurt),
                _other_bits(settings, found),
            )


def _decided(settings: HostSettings, rule: AnyRule) -> int:
    """Bits of ours by which somebody else's rule takes packets that are ours. One that comes after ours meets none of
    them, and one for everything but a certain mark (wg-quick's) takes them whether they are marked or not."""
    if rule.inverted or rule.priority > settings.rule_eni + MOST_ENIS:
        return 0
    return rule.mask & (settings.mark_mask | settings.main_mark)


def _priority_setting(settings: HostSettings, priority: int) -> str:
    """The setting by which we have a rule of that priority; empty for none."""
    for key in ("rule_pods", "rule_main", "rule_from"):
        if priority == getattr(settings, key):
            return f"host.{key}"
    return "host.rule_eni" if 1 <= priority - settings.rule_eni <= MOST_ENIS else ""


def _links(settings: HostSettings, found: Found) -> Iterator[Clash]:
    for link in found.links:
        if link.group in _own_tables(settings) and not _is_pod(link.name):
            yield Clash(
                f"link {link.name} is in group {link.group}",
                owners.of_link(link.name),
                "host.table",
                "set host.table to another number: the groups of pods' links are the same as their tables "
                f"(now {settings.table} to {settings.table + MOST_ENIS}); or: ip link set {link.name} group default",
            )


def _tables(settings: HostSettings, found: Found) -> Iterator[Clash]:
    for table in found.tables:
        if (table.family, table.name) == ("inet", settings.nft_table) and not _is_own(table, settings, found.chains):
            chains = [chain.name for chain in found.chains if (chain.family, chain.table) == ("inet", table.name)]
            yield Clash(
                f"nft table inet {table.name} is there and not ours",
                next(filter(None, (owners.of_chain(table.name, chain) for chain in ("", *chains))), ""),
                "host.nft_table",
                "set host.nft_table to a name that is free",
                Weight.REFUSED,
            )


def _is_own(table: AnyTable, settings: HostSettings, chains: tuple[AnyChain, ...]) -> bool:
    if (table.family, table.name) != ("inet", settings.nft_table):
        return False
    names = {chain.name for chain in chains if (chain.family, chain.table) == ("inet", table.name)}
    # An empty table may be overwritten: a flush with `delete chain` leaves ours like this.
    return "ipamd" in table.comment or names >= _OWN_CHAINS or not names


def _marks(settings: HostSettings, found: Found) -> Iterator[Clash]:
    bits = settings.mark_mask | settings.main_mark
    chains = {(chain.family, chain.table, chain.name): chain for chain in found.chains}
    for use in found.marks:
        hurt = 0
        for chain in _reached_from(found, chains, (use.family, use.table, use.chain)):
            hurt |= mark_users.harmful(use, bits, chain)
        if not hurt:
            continue
        verb = " and ".join(
            word for word, mask in (("set", use.raises | use.clears), ("test", use.tests)) if mask & hurt
        )
        yield Clash(
            f"table {use.family} {use.table}, chain {use.chain}: rules {verb} bits {hurt:#x} of the {use.mark}",
            owners.of_chain(use.table, use.chain),
            _mark_setting(settings, hurt),
            _other_bits(settings, found),
        )


def _reached_from(
    found: Found, chains: Mapping[tuple[str, str, str], AnyChain], start: tuple[str, str, str]
) -> set[AnyChain | None]:
    """The chains at hooks from which packets come to this one; None where that is unknown."""
    family, table, _ = start
    ends: set[AnyChain | None] = set()
    seen, ahead = set(), [start]
    while ahead:
        place = ahead.pop()
        chain = chains.get(place)
        if place in seen:
            continue
        seen.add(place)
        if chain is not None and chain.hook is not None:
            ends.add(chain)
        elif "" in (by := found.callers.get(place, {""})):
            ends.add(None)
        else:
            ahead += [(family, table, name) for name in by]
    return ends


def _mark_setting(settings: HostSettings, bits: int) -> str:
    return "host.mark_mask" if bits & settings.mark_mask else "host.main_mark"


def _other_bits(settings: HostSettings, found: Found) -> str:
    """Names bits that nobody else uses, if there are any: as many as we have, next to each other."""
    ours = f"host.mark_mask and host.main_mark (now {settings.mark_mask:#x} and {settings.main_mark:#x})"
    theirs = 0
    for rule in found.rules:
        theirs |= rule.mask if rule.protocol != settings.route_protocol else 0
    for use in found.marks:
        theirs |= use.raises | use.clears | use.tests
    width = (settings.mark_mask | settings.main_mark).bit_count()
    run = (1 << width) - 1
    for shift in range(33 - width):
        if not (run << shift) & theirs:
            return f"set {ours} to other bits: {(run >> 1) << shift:#x} and {1 << shift + width - 1:#x} are free"
    return f"no {width} bits are free of it, so {ours} can't move: give the other rule a mask with its own bits alone"
