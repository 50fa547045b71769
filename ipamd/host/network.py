"""Reads what the kernel holds, brings it to the desired state, and reports changes by other programs.

`desired` computes the state, `difference` the steps to it; `reconciler` decides when to repair.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from socket import AF_INET, AF_INET6

import structlog

from cni_shim.names import DISCARDED_GROUP
from ipamd.host import rtnetlink
from ipamd.host.conntrack import Conntrack
from ipamd.host.culprit import named_by_kernel
from ipamd.host.desired import (
    POD_LINK_PREFIX,
    Address,
    Desired,
    FoundRoute,
    NodeNetwork,
    PodNetwork,
    Rule,
    desired,
    forwarding,
)
from ipamd.host.desired import table as wanted_table
from ipamd.host.difference import (
    AddAddress,
    AddRoute,
    AddRule,
    DeleteRoute,
    DeleteRule,
    Found,
    LinkChange,
    LoadTable,
    SetLink,
    SetSysctl,
    Step,
    difference,
    restores,
)
from ipamd.host.discarded import Discarded
from ipamd.host.errors import HostError
from ipamd.host.failures import Failure, failure_of, link_of
from ipamd.host.kernel import Kernel, read_sysctl, write_sysctl
from ipamd.host.links import Link, Links, link_names
from ipamd.host.netlink import RTN_UNICAST
from ipamd.host.nftables import Nftables
from ipamd.host.rtnetlink import FoundRule, Neighbour, Netconf, RuleFor
from ipamd.host.uses import KernelUses
from ipamd.host.watch import Seen, Transaction, Watch
from ipamd.settings import MOST_ENIS, HostSettings

log = structlog.get_logger("ipamd.host")


@dataclass(frozen=True, slots=True)
class Disturbance:
    """A change by another program that contradicts the desired state. `what`: in the words of a step. `by`: the
    program if known already; else `port` is that of the netlink socket that asked for it. `eni`: the ENI whose device
    is gone. If `passed()` is true when the reconciler gets to it, the change has resolved itself."""

    what: str
    by: str = ""
    port: int = 0
    eni: str = ""
    passed: Callable[[], bool] = lambda: False


@dataclass(slots=True)
class Applied:
    """`done` are all steps taken, in order, `restored` those of them that undid what somebody else had done;
    `withheld` are those not taken because the caller said so, `failed` those that the kernel refused."""

    done: list[Step] = field(default_factory=list)
    restored: list[Step] = field(default_factory=list)
    withheld: list[Step] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)


class HostNetwork:
    """The kernel of the network namespace that `open` is called in."""

    def __init__(self, settings: HostSettings) -> None:
        self._settings = settings
        self._links = Links(self._link_changed, self._events_lost)
        self._watch = Watch(self._changed, self._events_lost)
        self._kernel = Kernel(settings.route_protocol)
        self._nftables = Nftables()
        self._conntrack = Conntrack()
        self.discarded = Discarded()
        self.uses = KernelUses(settings, self._in_service)
        self._wish: Desired | None = None  # what was applied last
        self._refused: frozenset[str] = frozenset()  # the part that the kernel refused
        self._expected: frozenset[str] = frozenset()  # MACs of the ENIs that belong here, with or without a device
        self._on_disturbance: Callable[[Disturbance], None] = lambda disturbance: None
        self._pod_at: Callable[[str], PodNetwork | None] = lambda address: None
        self._transactions: list[Transaction] = []  # while a table was loaded
        self.others_changed = asyncio.Event()  # rules, nftables, or routes in our tables, by somebody else

    def listen(
        self, on_disturbance: Callable[[Disturbance], None], pod_at: Callable[[str], PodNetwork | None]
    ) -> None:
        """`on_disturbance` is called for each change that contradicts what was applied last. `pod_at` finds the pod
        that holds an address now: pods come and go between two calls of `apply`."""
        self._on_disturbance, self._pod_at = on_disturbance, pod_at

    async def open(self) -> None:
        """Raises `HostError`."""
        self._nftables.require()
        await self._links.open()
        try:
            self._watch.open()
            self.uses.read()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        self.uses.close()
        self._watch.close()
        self._links.close()

    async def wait_for_link(self, mac: str, timeout: float) -> Link:
        """Raises `LinkTimeout` after `timeout` seconds."""
        return await self._links.wait_for(mac, timeout)

    def mtu(self, mac: str) -> int:
        """The MTU of the ENI's link. Raises `HostError` when it is gone."""
        link = self._links.by_mac(mac)
        if link is None:
            raise HostError(f"the network device with MAC {mac} is gone")
        return link.mtu

    def host_veths(self) -> tuple[Link, ...]:
        """The host's ends of the pods' veths."""
        return self._links.by_prefix(POD_LINK_PREFIX)

    async def pod_routes(self) -> dict[str, str]:
        """Address -> name of the veth that the host route of a pod leads to. Raises `HostError`."""
        settings = self._settings
        found = rtnetlink.routes(AF_INET, settings.route_protocol, settings.table)
        return {each.route.destination: name for each in found if (name := self._links.name_of(each.route.index))}

    async def not_forwarding(self) -> frozenset[str]:
        """The names of the links whose packets the host does not forward. Raises `HostError`."""
        off = [index for index, on in rtnetlink.forwarding().items() if not on]
        return frozenset(name for index in off if (name := self._links.name_of(index)))

    def catch_up(self) -> None:
        """Read the pending notifications of the kernel: `uses` is up to date when this returns."""
        self._links.catch_up()
        self._watch.catch_up()

    async def host_links(self) -> frozenset[str]:
        """The names of all links, read from the kernel itself: a missing one may be given up for good. Raises
        `HostError`."""
        return link_names()

    async def forget_flows(self, addresses: Collection[str]) -> int:
        """Remove every tracked connection that has one of the addresses at either end, before or after NAT. Returns
        how many there were. Raises `HostError`; what was removed until then stays removed."""
        return await self._conntrack.forget(addresses)

    # Bringing about

    async def apply(self, node: NodeNetwork, withheld: Callable[[Step], bool] = lambda step: False) -> Applied:
        """Make the kernel serve these ENIs and pods. Objects of ours that belong to none of them are removed, except
        routes of pods.

        A secondary ENI whose device is not on the node is passed over, and so is a pod without a veth. A step that
        the kernel refuses keeps none of the others, and the next call tries it again. Raises `HostError` without the
        primary's device, and when the kernel can't be read.
        """
        # nft takes milliseconds, in which udev may rename a link: what is written by name comes after it.
        table = wanted_table(self._settings, node, self._links)
        holds = await self._nftables.holds(table)
        self._links.catch_up()
        wish = desired(self._settings, node, self._links)
        if wish.ipv6:
            self._watch.follow_ipv6()
        for eni in node.enis:
            if eni not in wish.enis:
                log.debug("host.eni_without_device", eni=eni.eni_id, mac=eni.mac)
        found = self._found(wish, holds and table == wish.table)
        before, self._wish = self._wish, wish  # from here on our own changes agree with it
        self._expected = frozenset(eni.mac for eni in node.enis)
        applied, refused = Applied(), set()
        for step in difference(wish, found):
            if withheld(step):
                applied.withheld.append(step)
                continue
            if not isinstance(step, SetSysctl):  # their events make sense only after all of them are written
                await asyncio.sleep(0)  # there may be hundreds of steps, and other tasks wait
            if self._is_out_of_service(step):
                continue
            try:
                await self._take(step)
            except HostError as error:
                if self._is_out_of_service(step):
                    continue
                refused.add(step.what)
                if (failure := self._failure(step, wish, error)) is not None:
                    applied.failed.append(failure)
                continue
            applied.done.append(step)
            if before is not None and step.what not in self._refused and restores(step, before):
                applied.restored.append(step)
        self._refused = frozenset(refused)
        return applied

    def _found(self, wish: Desired, table: bool) -> Found:
        """What the kernel holds now. Raises `HostError`."""
        protocol = self._settings.route_protocol
        rules: frozenset[Rule] = frozenset()
        routes: frozenset[FoundRoute] = frozenset()
        addresses: set[Address] = set()
        for family in (AF_INET, AF_INET6) if wish.ipv6 else (AF_INET,):
            rules |= rtnetlink.rules(family, protocol)
            routes |= rtnetlink.routes(family, protocol)
            # In the tables of ENIs also what others put there. In that of the pods theirs would take reading twice.
            for number in {route.table for route in wish.routes} - {wish.pods_table}:
                routes |= rtnetlink.routes(family, table=number)
            addresses |= {
                address
                for address, length in rtnetlink.addresses(family).items()
                if length == (32 if family == AF_INET else 128)
            }
        forwards = rtnetlink.forwarding()
        sysctls = {
            # Of hundreds of links in one answer.
            sysctl.name: str(int(forwards.get(sysctl.forwards, False)))
            if sysctl.forwards
            else read_sysctl(self._settings.sysctl_dir, sysctl.name)
            for sysctl in wish.sysctls
        }
        return Found(sysctls, frozenset(addresses), routes, rules, protocol, table)

    def _is_out_of_service(self, step: Step) -> bool:
        """The step is for a pair that a DEL has discarded since the wish was made. Served again, it would stay."""
        self._links.catch_up()
        link = self._links.by_index(link_of(step))
        return link is not None and link.group == DISCARDED_GROUP

    def _failure(self, step: Step, wish: Desired, error: HostError) -> Failure | None:
        table_there = partial(self._nftables.is_there, wish.table.name)
        return failure_of(step, error, wish, self._links, self._settings.table, table_there)

    async def _take(self, step: Step) -> None:
        match step:
            case SetSysctl(sysctl):
                write_sysctl(self._settings.sysctl_dir, sysctl.name, sysctl.value)
            case SetLink(change):
                self._kernel.set_link(change)
            case AddAddress(address):
                self._kernel.add_address(address)
            case AddRoute(route):
                self._kernel.add_route(route)
            case AddRule(rule):
                self._kernel.add_rule(rule)
            case LoadTable(table):
                try:
                    await self._nftables.load(table)
                finally:
                    self._judge_transactions()
            case DeleteRule(rule):
                self._kernel.delete_rule(rule)
            case DeleteRoute(found):
                self._kernel.delete_route(found)

    # Noticing

    def _events_lost(self) -> None:
        self.uses.lost()
        self._on_disturbance(Disturbance("events of the kernel", "more events than could be read"))

    def _changed(self, seen: Seen) -> None:
        if isinstance(seen.what, FoundRoute | RuleFor | Neighbour | Address):
            self.uses.seen(seen.what, seen.gone)
        wish = self._wish
        if wish is None:
            return
        match seen.what:
            case FoundRule(rule, protocol):
                if not self._is_ours(protocol):
                    self.others_changed.set()
                if (rule in wish.rules) if seen.gone else (self._is_ours(protocol) and rule not in wish.rules):
                    self._on_disturbance(Disturbance(str(rule), port=seen.port))
            case FoundRoute(route, protocol):
                if not self._is_ours(protocol) and 0 <= route.table - self._settings.table <= MOST_ENIS:
                    self.others_changed.set()
                if self._contradicts(wish, seen.what, seen.gone):
                    self._on_disturbance(Disturbance(str(route), port=seen.port))
            case Address() as address:
                ours = next((each for each in wish.addresses if each == address), None)
                if seen.gone and ours is not None:
                    self._on_disturbance(Disturbance(str(ours), port=seen.port))
            case Netconf() as netconf:
                self._netconf_changed(wish, netconf)
            case Transaction() as transaction:
                self._transactions.append(transaction)
                self._judge_transactions()

    def _judge_transactions(self) -> None:
        if self._nftables.loading:
            return
        transactions, self._transactions = self._transactions, []
        for each in transactions:
            if self._nftables.made(each.generation):
                continue
            self.others_changed.set()
            if self._wish is not None and self._wish.table.name in each.tables:
                by = named_by_kernel(each.process, each.process_name)
                self._on_disturbance(Disturbance(str(self._wish.table), by))

    def _is_ours(self, protocol: int) -> bool:
        return protocol == self._settings.route_protocol

    def _contradicts(self, wish: Desired, found: FoundRoute, gone: bool) -> bool:
        route = found.route
        right = self._is_ours(found.protocol) and found.kind == RTN_UNICAST
        if route.table == wish.pods_table:
            pod = self._pod_at(route.destination)
            veth = self._links.by_name(pod.link) if pod is not None else None
            if veth is None or veth.group == DISCARDED_GROUP:
                return False
            return (right and veth.index == route.index) == gone
        if gone:
            return right and route in wish.routes
        if right and route in wish.routes:
            return False
        return self._is_ours(found.protocol) or any(route.place == wanted.place for wanted in wish.routes)

    def _netconf_changed(self, wish: Desired, netconf: Netconf) -> None:
        link = self._links.by_index(netconf.index)
        if link is not None and self._is_pods(link):
            if netconf.family == AF_INET and netconf.forwarding is False:
                self._on_disturbance(Disturbance(str(forwarding(link)), "a write to /proc/sys"))
        elif netconf.index < 0 or any(netconf.index == each.link.index for each in wish.links):
            self._check_sysctls(wish)

    def _check_sysctls(self, wish: Desired) -> None:
        """What the kernel tells of is only that some setting of an ENI's link, or of all links, was changed. Each
        pod's link has an event of its own."""
        pods = {each.link.index for each in wish.links if each.group is not None}
        for sysctl in wish.sysctls:
            if sysctl.forwards in pods:
                continue
            try:
                changed = read_sysctl(self._settings.sysctl_dir, sysctl.name) != sysctl.value
            except HostError:
                continue  # its device is going, which has an event of its own
            if changed:
                self._on_disturbance(Disturbance(str(sysctl), "a write to /proc/sys"))

    def _in_service(self, index: int) -> str:
        """The name of the link; empty for none, and for a pair that a DEL has discarded: the kernel has removed its
        routes, which it does not tell, and the news of their coming may be read after that of the DEL."""
        link = self._links.by_index(index)
        return "" if link is not None and link.group == DISCARDED_GROUP else self._links.name_of(index)

    def _is_pods(self, link: Link) -> bool:
        """The host's end of a pod's veth, and in service."""
        return link.name.startswith(POD_LINK_PREFIX) and link.group != DISCARDED_GROUP

    def _link_changed(self, before: Link | None, now: Link | None) -> None:
        if before is not None and (now is None or now.group == DISCARDED_GROUP or (before.up and not now.up)):
            self.uses.link_went(before.index)
        if now is not None and now.group == DISCARDED_GROUP:
            self.discarded.seen()
            return
        if before is not None and now is not None and before.group == DISCARDED_GROUP:
            self.discarded.add(now.index)  # what was done to it crossed with the DEL
            return
        wish = self._wish
        link = now or before
        if wish is None or link is None:
            return
        if link.mac in self._expected:
            self._eni_link_changed(wish, before, now, link)
        elif before is not None and now is not None and link.name.startswith(POD_LINK_PREFIX):
            # One that was never up is still being made, and one that is deleted goes down just before.
            if before.up and not now.up:
                passed = partial(self._is_up_or_gone, link.index)
                self._on_disturbance(Disturbance(str(LinkChange(link, "up", 1)), "somebody", passed=passed))
            if before.group == now.group:
                return
            known = (each.group for each in wish.links if each.link.index == link.index and each.group is not None)
            wanted = next(known, before.group)
            if now.group != wanted:
                self._on_disturbance(Disturbance(str(LinkChange(link, "group", wanted)), "somebody"))

    def _is_up_or_gone(self, index: int) -> bool:
        link = self._links.by_index(index)
        return link is None or link.up

    def _eni_link_changed(self, wish: Desired, before: Link | None, now: Link | None, link: Link) -> None:
        served = next((eni for eni in wish.enis if eni.mac == link.mac), None)
        if now is None:
            if served is not None and self._links.by_mac(link.mac) is None:
                gone = Disturbance(f"device of {served.eni_id}", "the kernel", eni=served.eni_id)
                self._on_disturbance(gone)
        elif served is None or before is None:
            self._on_disturbance(Disturbance(f"device with MAC {link.mac}", "the kernel"))
        elif before.up and not now.up:
            self._on_disturbance(Disturbance(str(LinkChange(link, "up", 1)), "somebody"))
        elif before.mtu != now.mtu and self._settings.mtu not in (0, now.mtu):
            self._on_disturbance(Disturbance(str(LinkChange(link, "mtu", self._settings.mtu)), "somebody"))
