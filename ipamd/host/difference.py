"""The steps from what the kernel holds to what it should hold.

Their order sends no packet on a way that is not there: new ways are built from their end (links, routes, rules,
marks) and old ones taken down from their start.

Pure. What is there already is no step, so a second look finds nothing to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, TypeVar

from ipamd.host.desired import FORWARDING, Address, Desired, FoundRoute, LinkWish, Route, Rule, Sysctl
from ipamd.host.links import Link
from ipamd.host.netlink import RTN_UNICAST
from ipamd.host.nftables import Table

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
    """Our objects in the kernel, every address and sysctl that the wish names, and all routes in our tables;
    `protocol` is that of ours."""

    sysctls: Mapping[str, str]
    addresses: frozenset[Address]
    routes: frozenset[FoundRoute]
    rules: frozenset[Rule]
    protocol: int
    table: bool  # whether the nftables table is the wanted one

    def is_ours(self, found: FoundRoute) -> bool:
        return (found.protocol, found.kind) == (self.protocol, RTN_UNICAST)


@dataclass(frozen=True, slots=True)
class LinkChange:
    """`value` is a number of bytes for the MTU, a group's number, and 1 for up."""

    link: Link
    key: Literal["mtu", "group", "up"]
    value: int

    def __str__(self) -> str:
        return f"link {self.link.name} {self.key}" + (f" {self.value}" if self.key != "up" else "")


@dataclass(frozen=True, slots=True)
class _Step(Generic[T]):
    """One change of one object."""

    verb: ClassVar[str]
    subject: T

    @property
    def what(self) -> str:
        """The object as the ip, nft and sysctl commands would name it."""
        return str(self.subject)

    def __str__(self) -> str:
        return f"{self.verb} {self.what}"


class SetSysctl(_Step[Sysctl]):
    verb = "set"


class SetLink(_Step[LinkChange]):
    verb = "set"


class AddAddress(_Step[Address]):
    verb = "added"


class AddRoute(_Step[Route]):
    """It replaces what may stand in its place."""

    verb = "added"


class AddRule(_Step[Rule]):
    verb = "added"


class LoadTable(_Step[Table]):
    verb = "set"


class DeleteRule(_Step[Rule]):
    verb = "removed"


class DeleteRoute(_Step[FoundRoute]):
    verb = "removed"


Step = SetSysctl | SetLink | AddAddress | AddRoute | AddRule | LoadTable | DeleteRule | DeleteRoute


def difference(wish: Desired, found: Found) -> Iterator[Step]:
    """The steps, in the order in which the kernel must get them."""
    turned_on = found.sysctls.get(FORWARDING) != "1"
    for sysctl in wish.sysctls:
        if sysctl.forwards and turned_on:
            continue  # the kernel sets it with that of the node, which comes first
        if found.sysctls.get(sysctl.name) != sysctl.value:
            yield SetSysctl(sysctl)
    for link in wish.links:
        yield from _set_link(link)
    for address in sorted(wish.addresses - found.addresses):
        yield AddAddress(address)
    right = {each.route for each in found.routes if found.is_ours(each)} & wish.routes
    # On-link routes first: the default route's gateway must be reachable.
    for route in sorted(wish.routes - right, key=lambda route: (route.gateway, route)):
        yield AddRoute(route)
    stray = sorted(each for each in found.routes if not (found.is_ours(each) and each.route in right))
    wanted = {route.place for route in wish.routes}
    in_place = Counter(each.route.place for each in stray) + Counter(route.place for route in right)
    for each in stray:
        # A foreign route beside ours, perhaps before it. A single one in the place of ours has just been replaced.
        if each.route.place in wanted and in_place[each.route.place] > 1:
            yield DeleteRoute(each)
    for rule in sorted(wish.rules - found.rules):
        yield AddRule(rule)
    if not found.table:
        yield LoadTable(wish.table)
    for rule in sorted(found.rules - wish.rules):
        yield DeleteRule(rule)
    for each in stray:
        # Foreign routes elsewhere in our tables stay; the pool finds out about routes of gone pods.
        leftover = each.protocol == found.protocol and each.route.table != wish.pods_table
        if leftover and each.route.place not in wanted:
            yield DeleteRoute(each)


def _set_link(wish: LinkWish) -> Iterator[SetLink]:
    if wish.mtu and wish.mtu != wish.link.mtu:
        yield SetLink(LinkChange(wish.link, "mtu", wish.mtu))
    if wish.group is not None and wish.group != wish.link.group:
        yield SetLink(LinkChange(wish.link, "group", wish.group))
    if not wish.link.up:
        yield SetLink(LinkChange(wish.link, "up", 1))


def restores(step: Step, before: Desired) -> bool:
    """Whether the step undoes a change by another program: the kernel was right when `before` was applied."""
    match step:
        case SetSysctl(sysctl):
            return sysctl in before.sysctls
        case SetLink(change):
            return any(wish.link.index == change.link.index for wish in before.links)
        case AddAddress(address):
            return address in before.addresses
        case AddRoute(route):
            return route in before.routes
        case AddRule(rule):
            return rule in before.rules
        case LoadTable(table):
            return table == before.table
        case DeleteRule(rule):
            return rule not in before.rules
        case DeleteRoute(found):
            return found.route not in before.routes
