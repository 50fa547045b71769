"""Follows changes to rules, routes, addresses, settings of links and nftables as the kernel reports them.

This module judges nothing: its listener knows the desired state. Messages are read by hand because each pod of a
burst causes several of them.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from ipamd.host import netlink
from ipamd.host.desired import Address, FoundRoute
from ipamd.host.errors import HostError
from ipamd.host.links import DATAGRAMS_PER_TURN, RECEIVE_BUFFER, SO_RCVBUFFORCE
from ipamd.host.netlink import (
    NETLINK_NETFILTER,
    NFGENMSG,
    RTM_DELADDR,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_NEWADDR,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    SOL_NETLINK,
)
from ipamd.host.rtnetlink import (
    RTM_NEWNETCONF,
    FoundRule,
    Neighbour,
    Netconf,
    RuleFor,
    read_address,
    read_neighbour,
    read_netconf,
    read_route,
    read_rule,
    read_rule_for,
)

log = structlog.get_logger("ipamd.host")

# linux/netlink.h, linux/rtnetlink.h (enum rtnetlink_groups), linux/netfilter/nfnetlink.h
NETLINK_ADD_MEMBERSHIP = 1
IPV4_GROUPS = (3, 5, 7, 8, 24)  # neighbours, addresses, routes, rules, settings of links
IPV6_GROUPS = (9, 11, 19, 25)
NFNLGRP_NFTABLES = 7

# linux/netfilter/nf_tables.h. Every message but NEWGEN names its table in attribute 1.
NFNL_SUBSYS_NFTABLES = 10
NFT_MSG_NEWGEN = 15
NFTA_TABLE_NAME = 1
NFTA_GEN_ID, NFTA_GEN_PROC_PID, NFTA_GEN_PROC_NAME = 1, 2, 3
NFPROTO_INET = 1

_REMOVALS = (RTM_DELADDR, RTM_DELNEIGH, RTM_DELROUTE, RTM_DELRULE)

# Datagrams read at most before a decision, so that a storm of changes does not stop all decisions.
CATCH_UP = 1024


@dataclass(frozen=True, slots=True)
class Transaction:
    """Of nftables, by that process; `process` is its pid in the first PID namespace. `tables`: the `inet` tables that
    it changed, or something in them. `generation` is its number."""

    tables: frozenset[str]
    generation: int
    process: int
    process_name: str


@dataclass(frozen=True, slots=True)
class Seen:
    """A change. `gone` tells a removal; `port` is the netlink port of who asked for it, 0 for the kernel itself."""

    what: FoundRule | RuleFor | FoundRoute | Address | Neighbour | Netconf | Transaction
    gone: bool = False
    port: int = 0


class Watch:
    """Call `open` in the network namespace to watch, and `close` at the end.

    `on_change` is called for every change, `on_loss` when events were lost because this process was slow.
    """

    def __init__(self, on_change: Callable[[Seen], None], on_loss: Callable[[], None]) -> None:
        self._on_change = on_change
        self._on_loss = on_loss
        self._sockets: list[socket.socket] = []
        self._follows_ipv6 = False
        self._reading = False
        self._touched: set[str] = set()  # tables in the nftables transaction that is being reported

    def open(self) -> None:
        """Raises `HostError`."""
        try:
            self._open(socket.NETLINK_ROUTE, IPV4_GROUPS, self._understand_route)
            self._open(NETLINK_NETFILTER, (NFNLGRP_NFTABLES,), self._understand_nftables)
        except OSError as error:
            self.close()
            raise HostError(f"the kernel does not tell of changes: {error.strerror}: run as root") from error

    def follow_ipv6(self) -> None:
        """From now on of IPv6, too. Raises `HostError`."""
        if self._follows_ipv6:
            return
        try:
            for group in IPV6_GROUPS:
                self._sockets[0].setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        except OSError as error:
            raise HostError(f"the kernel does not tell of changes to IPv6: {error.strerror}") from error
        self._follows_ipv6 = True

    def catch_up(self) -> None:
        """Hear now what the kernel has told already of rules, routes, addresses and neighbours."""
        if self._sockets and not self._reading:
            self._read(self._sockets[0], self._understand_route, CATCH_UP)

    def close(self) -> None:
        for each in self._sockets:
            asyncio.get_running_loop().remove_reader(each)
            each.close()
        self._sockets.clear()

    def _open(self, protocol: int, groups: tuple[int, ...], understand: Callable[[bytes], None]) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        opened = socket.socket(socket.AF_NETLINK, kind, protocol)
        try:
            opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
            opened.bind((0, 0))
            for group in groups:
                opened.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        except OSError:
            opened.close()
            raise
        self._sockets.append(opened)
        asyncio.get_running_loop().add_reader(opened, self._read, opened, understand)

    def _read(
        self, source: socket.socket, understand: Callable[[bytes], None], most: int = DATAGRAMS_PER_TURN
    ) -> None:
        self._reading = True
        try:
            self._read_some(source, understand, most)
        finally:
            self._reading = False

    def _read_some(self, source: socket.socket, understand: Callable[[bytes], None], most: int) -> None:
        for _ in range(most):
            try:
                data, (port, _groups) = source.recvfrom(1 << 16)
            except BlockingIOError:
                return
            except OSError as error:  # ENOBUFS
                log.warning("host.events_lost", error=error.strerror)
                self._touched.clear()
                self._on_loss()
                return
            if port == 0:  # the kernel's own
                understand(data)

    def _understand_route(self, data: bytes) -> None:
        for kind, _flags, _sequence, port, start, end in netlink.messages(data):
            what: FoundRule | FoundRoute | Address | Neighbour | Netconf | None = None
            if kind in (RTM_NEWROUTE, RTM_DELROUTE):
                what = read_route(data, start, end)
            elif kind in (RTM_NEWRULE, RTM_DELRULE):
                what = read_rule(data, start, end)
                for each in read_rule_for(data, start, end):
                    self._on_change(Seen(each, kind == RTM_DELRULE, port))
            elif kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
                what = read_neighbour(data, start, end)
            elif kind in (RTM_NEWADDR, RTM_DELADDR):
                found = read_address(data, start, end)
                what = found[0] if found else None
            elif kind == RTM_NEWNETCONF:
                what = read_netconf(data, start, end)
            if what is not None:
                self._on_change(Seen(what, kind in _REMOVALS, port))

    def _understand_nftables(self, data: bytes) -> None:
        """The messages of one transaction, and in the end who made it."""
        for kind, _flags, _sequence, _port, start, end in netlink.messages(data):
            if kind >> 8 != NFNL_SUBSYS_NFTABLES:
                continue
            fields = netlink.attributes(data, start + NFGENMSG.size, end)
            if kind & 0xFF != NFT_MSG_NEWGEN:
                if data[start] == NFPROTO_INET:
                    name = next((value for number, value in fields if number == NFTA_TABLE_NAME), b"")
                    self._touched.add(netlink.text(name))
                continue
            values = dict(fields)
            generation, process = (
                int.from_bytes(values.get(number, b""), "big") for number in (NFTA_GEN_ID, NFTA_GEN_PROC_PID)
            )
            process_name = netlink.text(values.get(NFTA_GEN_PROC_NAME, b""))
            tables, self._touched = frozenset(self._touched), set()
            self._on_change(Seen(Transaction(tables, generation, process, process_name)))
