"""Addresses that other software on this node uses, as far as the host's kernel shows it.

An address that a foreign route, rule, static neighbour or link leads to must not be given to a pod. It may belong to
a pod of another CNI plugin, to a bridge or to an administrator. All uses are read once and then followed event by
event, so that a look-up costs nothing. Removals are not followed: one object may stand behind another, and the
kernel does not report IPv4 routes that go with their link. Whenever something that counts may have gone, all is
read again a moment later.

Not to be seen here: addresses in other network namespaces that no route of the host leads to (macvlan, ipvlan), and
between two readings proxied neighbours, which the kernel does not announce.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import IPv4Network
from socket import AF_INET
from typing import Literal, Protocol, assert_never

import structlog

from ipamd.host import rtnetlink
from ipamd.host.desired import Address, FoundRoute
from ipamd.host.errors import HostError
from ipamd.host.netlink import RTN_BLACKHOLE, RTN_LOCAL, RTN_PROHIBIT, RTN_UNICAST, RTN_UNREACHABLE
from ipamd.host.rtnetlink import Neighbour, RuleFor
from ipamd.pool.model import Use, Uses
from ipamd.settings import HostSettings

log = structlog.get_logger("ipamd.host")

Claim = FoundRoute | RuleFor | Neighbour | Address

# Seconds until all is read again after something may have gone, and after a reading that failed.
READ_AGAIN, READ_RETRY = 0.5, 5.0

_LOCAL_TABLE, _BY_THE_KERNEL = 255, 2  # RT_TABLE_LOCAL, RTPROT_KERNEL, linux/rtnetlink.h
_LEADS_SOMEWHERE = (RTN_UNICAST, RTN_LOCAL, RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT)


class Listener(Protocol):
    def use_seen(self, network: IPv4Network, use: Use) -> None: ...

    def pod_route_seen(self, ip: str, link: str) -> None:
        """A route of ours to a pod came, or went: then `link` is empty."""

    def uses_read(self, uses: Uses, routed: dict[str, str]) -> None: ...


class KernelUses:
    """`name_of` knows the name of a link by its index; empty: there is no such link, or it leads nowhere any more."""

    def __init__(self, settings: HostSettings, name_of: Callable[[int], str]) -> None:
        self._protocol, self._pods_table = settings.route_protocol, settings.table
        self._name_of = name_of
        self._hosts: dict[str, Use] = {}
        self._networks: dict[IPv4Network, Use] = {}
        self._indexes: set[int] = set()  # of links that others' claims lead to
        self._pods: dict[str, int] = {}  # address -> link, of our own routes to pods
        self._listener: Listener | None = None
        self._timer: asyncio.TimerHandle | None = None

    def listen(self, listener: Listener) -> None:
        self._listener = listener

    def now(self) -> tuple[Uses, dict[str, str]]:
        """What is known, and the link's name of each route of ours to a pod."""
        routed = {ip: name for ip, index in self._pods.items() if (name := self._name_of(index))}
        return Uses(dict(self._hosts), dict(self._networks)), routed

    def read(self) -> tuple[Uses, dict[str, str]]:
        """All of it, afresh. Raises `HostError`."""
        claims: list[Claim] = [*rtnetlink.routes(AF_INET), *rtnetlink.addresses(AF_INET)]
        claims += [*rtnetlink.rules_for_addresses(), *rtnetlink.neighbours()]
        self._cancel()
        for known in (self._hosts, self._networks, self._indexes, self._pods):
            known.clear()
        for claim in claims:
            self._take(claim)
        found = self.now()
        if self._listener is not None:
            self._listener.uses_read(*found)
        return found

    def seen(self, claim: Claim, gone: bool) -> None:
        """The kernel has reported a change."""
        listener = self._listener
        if isinstance(claim, FoundRoute) and self._is_pods(claim):
            ip, index = claim.route.destination, claim.route.index
            if not gone:
                self._pods[ip] = index
            elif self._pods.pop(ip, None) is None:
                return
            if listener is not None:
                listener.pod_route_seen(ip, "" if gone else self._name_of(index))
        elif gone:
            network = _network(claim)
            if network is not None and (str(network.network_address) in self._hosts or network in self._networks):
                self.read_soon()
        elif (taken := self._take(claim)) is not None and listener is not None:
            listener.use_seen(*taken)

    def link_went(self, index: int) -> None:
        """A link is down, gone, or a pod's that is being deleted: the kernel has removed its routes."""
        for ip in [ip for ip, at in self._pods.items() if at == index]:
            del self._pods[ip]
            if self._listener is not None:
                self._listener.pod_route_seen(ip, "")
        if index in self._indexes:
            self.read_soon()

    def read_soon(self, after: float = READ_AGAIN) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(after, self._read_again)

    def lost(self) -> None:
        """Changes have been missed: nothing that is known counts until it is read again."""
        self._read_again()

    def close(self) -> None:
        self._cancel()

    def _read_again(self) -> None:
        self._cancel()
        try:
            self.read()
        except HostError as error:
            log.error("host.uses_unread", error=str(error), retry_in=READ_RETRY)
            self.read_soon(READ_RETRY)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _take(self, claim: Claim) -> tuple[IPv4Network, Use] | None:
        """Know of it from now on; None for what leads to no address in particular."""
        if isinstance(claim, FoundRoute) and self._is_pods(claim):
            self._pods[claim.route.destination] = claim.route.index
            return None
        network = _network(claim)
        if network is None:
            return None
        index = 0 if isinstance(claim, RuleFor) else _index(claim)
        link = self._name_of(index) if index else ""
        use = Use(_kind(claim), _words(claim) + (f" dev {link}" if link else ""), link)
        if index:
            self._indexes.add(index)
        if network.prefixlen == 32:
            self._hosts[str(network.network_address)] = use
        else:
            self._networks[network] = use
        return network, use

    def _is_pods(self, found: FoundRoute) -> bool:
        ours = (found.protocol, found.kind, found.route.table) == (self._protocol, RTN_UNICAST, self._pods_table)
        return ours and found.route.family == AF_INET


def _network(claim: Claim) -> IPv4Network | None:
    """What it leads to. A route to a range by way of a gateway says nothing of this node: it may be anywhere."""
    if not isinstance(claim, FoundRoute):
        # The kernel keeps a rule's network as it was written, with bits of a host in it.
        return IPv4Network(claim.address, strict=False) if ":" not in claim.address else None
    route = claim.route
    of_an_address = (route.table, claim.protocol) == (_LOCAL_TABLE, _BY_THE_KERNEL)  # which is a claim itself
    if route.family != AF_INET or not route.destination or claim.kind not in _LEADS_SOMEWHERE or of_an_address:
        return None
    network = IPv4Network(route.destination)
    return None if route.gateway and network.prefixlen < 32 else network


def _index(claim: FoundRoute | Neighbour | Address) -> int:
    return claim.route.index if isinstance(claim, FoundRoute) else claim.index


def _kind(claim: Claim) -> Literal["address", "route", "rule", "neighbour"]:
    match claim:
        case FoundRoute():
            return "route"
        case RuleFor():
            return "rule"
        case Neighbour():
            return "neighbour"
        case Address():
            return "address"
        case _:
            assert_never(claim)


def _words(claim: Claim) -> str:
    match claim:
        case FoundRoute() | RuleFor():
            return str(claim)
        case Neighbour() | Address():
            return f"{_kind(claim)} {claim.address}"
        case _:
            assert_never(claim)
