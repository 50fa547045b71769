"""The node's network devices, as the kernel tells them: one dump, then events.

An ENI shows up as a device some time after EC2 attached it; the event says so, and nothing polls. Looking a link up
by name or MAC is a dictionary access.

One socket carries both the dump and the events, so that they come in one order and no event is lost between two
sockets. Only five fields of each message are read, by hand: every pod's veth makes half a dozen events, and decoding
all sixty attributes of each costs the daemon more than a millisecond per pod.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from ipamd.host import netlink
from ipamd.host.errors import HostError, LinkTimeout

log = structlog.get_logger("ipamd.host")

# linux/rtnetlink.h, linux/if_link.h, linux/if.h
RTMGRP_LINK = 1
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_GROUP = 1, 3, 4, 27
IFF_UP = 0x1
SO_RCVBUFFORCE = 33  # asm-generic/socket.h: past net.core.rmem_max, for CAP_NET_ADMIN

# Room for the events of a few hundred pods that start while the loop is busy; each takes about 2 kB of it.
RECEIVE_BUFFER = 4 << 20
# Datagrams read in one go, so that a storm of events does not keep requests waiting.
DATAGRAMS_PER_TURN = 64
# Seconds until a dump that the kernel refused is asked for again.
DUMP_RETRY = 1.0


@dataclass(frozen=True, slots=True)
class Link:
    """`mac` in lower case, empty for a device without one; `mtu` in bytes; `group` 0 is everybody's default."""

    index: int
    name: str
    mac: str
    mtu: int
    up: bool
    group: int = 0


class Links:
    """Call `open` in the network namespace to watch, and `close` at the end. `on_change(before, after)` is called for
    each change of a link; `before` is None for a new link, `after` for a deleted one. `on_loss` is called when events
    were lost and the links were read again: changes in between are unknown."""

    def __init__(
        self,
        on_change: Callable[[Link | None, Link | None], None] | None = None,
        on_loss: Callable[[], None] | None = None,
    ) -> None:
        self._on_change = on_change
        self._on_loss = on_loss
        self._by_index: dict[int, Link] = {}
        self._by_mac: dict[str, set[int]] = {}
        self._by_name: dict[str, int] = {}
        self._waiting: dict[asyncio.Future[Link], str] = {}
        self._socket: socket.socket | None = None
        self._first_dump: asyncio.Future[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._port = 0  # the kernel's name for our socket, in its answers
        self._dump = 0  # sequence number of the dump under way or last made
        self._dumping = False
        self._dump_again = False
        self._seen: set[int] = set()
        self._reading = False

    async def open(self) -> None:
        """Returns once every link is known. Raises `HostError`."""
        loop = asyncio.get_running_loop()
        self._first_dump = loop.create_future()
        try:
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
            self._socket.bind((0, RTMGRP_LINK))
            self._port = self._socket.getsockname()[0]
        except OSError as error:
            self.close()
            raise HostError(f"the kernel does not tell about links: {error.strerror}: run as root") from error
        loop.add_reader(self._socket, self._read)
        self._request_dump()
        try:
            await self._first_dump
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Callers that still wait for a link get a `LinkTimeout`."""
        if self._retry is not None:
            self._retry.cancel()
        if self._socket is not None:
            if self._socket.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
        for future, mac in list(self._waiting.items()):
            if not future.done():
                future.set_exception(LinkTimeout(f"stopped while waiting for the network device with MAC {mac}"))

    def by_mac(self, mac: str) -> Link | None:
        """Of several links with one MAC, the oldest: a VLAN, a bridge or a bond on an ENI has the ENI's MAC."""
        indexes = self._by_mac.get(mac.lower())
        return self._by_index[min(indexes)] if indexes else None

    def by_name(self, name: str) -> Link | None:
        index = self._by_name.get(name)
        return None if index is None else self._by_index[index]

    def by_index(self, index: int) -> Link | None:
        return self._by_index.get(index)

    def by_prefix(self, prefix: str) -> tuple[Link, ...]:
        """The links whose names start so."""
        return tuple(link for link in self._by_index.values() if link.name.startswith(prefix))

    def name_of(self, index: int) -> str:
        """Empty if there is no such link. The kernel is asked for one whose event is not read yet."""
        link = self._by_index.get(index)
        if link is not None:
            return link.name
        try:
            return socket.if_indextoname(index)
        except OSError:
            return ""

    async def wait_for(self, mac: str, timeout: float) -> Link:
        """The link with this MAC, now or when it appears. Raises `LinkTimeout`."""
        link = self.by_mac(mac)
        if link is not None:
            return link
        future: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        self._waiting[future] = mac.lower()
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            message = f"no network device with MAC {mac} appeared within {timeout:g} s of the attachment"
            raise LinkTimeout(message) from None
        finally:
            del self._waiting[future]

    # The dump

    def _request_dump(self) -> None:
        assert self._socket is not None
        self._dump += 1
        self._dumping, self._dump_again, self._seen = True, False, set()
        try:
            self._socket.send(
                netlink.request(netlink.RTM_GETLINK, netlink.NLM_F_DUMP, self._dump, netlink.LINKS_REQUEST)
            )
        except OSError as error:
            self._dump_failed(error.errno or errno.EIO)

    def _end_dump(self) -> None:
        if self._dump_again:
            self._request_dump()
            return
        self._dumping = False
        for index in self._by_index.keys() - self._seen:
            self._lose(index)
        if self._first_dump is not None and not self._first_dump.done():
            self._first_dump.set_result(None)
        elif self._on_loss is not None:
            self._on_loss()

    def _dump_failed(self, code: int) -> None:
        self._dumping = False
        if self._first_dump is not None and not self._first_dump.done():
            self._first_dump.set_exception(HostError(f"the kernel does not list its links: {os.strerror(code)}"))
            return
        log.error("host.link_dump_failed", error=os.strerror(code), retry_in=DUMP_RETRY)
        self._retry = asyncio.get_running_loop().call_later(DUMP_RETRY, self._request_dump)

    # The messages

    def catch_up(self) -> None:
        """Read the pending notifications of the kernel now."""
        if self._socket is not None and self._socket.fileno() >= 0 and not self._reading:
            self._read()

    def _read(self) -> None:
        self._reading = True
        try:
            self._read_some()
        finally:
            self._reading = False

    def _read_some(self) -> None:
        assert self._socket is not None
        for _ in range(DATAGRAMS_PER_TURN):
            try:
                data, (port, _groups) = self._socket.recvfrom(1 << 16)
            except BlockingIOError:
                return
            except OSError as error:
                # ENOBUFS: the kernel dropped events because we were slow, so what we know may be wrong.
                log.warning("host.link_events_lost", error=error.strerror)
                if self._dumping:
                    self._dump_again = True
                else:
                    self._request_dump()
                return
            if port == 0:  # the kernel's own
                self._understand(data)

    def _understand(self, data: bytes) -> None:
        for kind, flags, sequence, port, start, end in netlink.messages(data):
            ours = self._dumping and (sequence, port) == (self._dump, self._port)
            if ours and flags & netlink.NLM_F_DUMP_INTR:
                self._dump_again = True
            if kind in (netlink.RTM_NEWLINK, netlink.RTM_DELLINK):
                family, _type, index, state, _change = netlink.IFINFO.unpack_from(data, start)
                if family != socket.AF_UNSPEC:
                    continue  # a bridge about its port: "deleted" means that the port left the bridge
                if kind == netlink.RTM_NEWLINK:
                    self._learn(_link(data, start + netlink.IFINFO.size, end, index, state))
                else:
                    self._lose(index)
            elif kind == netlink.NLMSG_DONE and ours:
                self._end_dump()
            elif kind == netlink.NLMSG_ERROR and ours:
                self._dump_failed(netlink.error_code(data, start))

    def _learn(self, link: Link) -> None:
        before = self._forget(link.index)
        self._seen.add(link.index)
        self._by_index[link.index] = link
        self._by_name[link.name] = link.index
        if link.mac:
            self._by_mac.setdefault(link.mac, set()).add(link.index)
        for future, mac in list(self._waiting.items()):
            if mac == link.mac and not future.done():
                future.set_result(link)
        if self._on_change is None or before == link:
            return
        if before is not None and before.mac != link.mac:
            self._on_change(before, None)  # listeners that know links by their MAC have lost this one
            before = None
        self._on_change(before, link)

    def _lose(self, index: int) -> None:
        before = self._forget(index)
        if self._on_change is not None and before is not None:
            self._on_change(before, None)

    def _forget(self, index: int) -> Link | None:
        link = self._by_index.pop(index, None)
        if link is None:
            return None
        if self._by_name.get(link.name) == index:
            del self._by_name[link.name]
        if link.mac:
            indexes = self._by_mac[link.mac]
            indexes.discard(index)
            if not indexes:
                del self._by_mac[link.mac]
        return link


def _link(data: bytes, start: int, end: int, index: int, state: int) -> Link:
    name, mac, mtu, group = "", "", 0, 0
    for kind, value in netlink.attributes(data, start, end):
        if kind == IFLA_IFNAME:
            name = netlink.text(value)
        elif kind == IFLA_ADDRESS:
            mac = value.hex(":")
        elif kind == IFLA_MTU:
            mtu = netlink.u32(value)
        elif kind == IFLA_GROUP:
            group = netlink.u32(value)
    return Link(index, name, mac, mtu, bool(state & IFF_UP), group)


def link_names() -> frozenset[str]:
    """Of every link in the current network namespace, read now. Raises `HostError`."""
    try:
        return frozenset(name for _index, name in socket.if_nameindex())
    except OSError as error:
        raise HostError(f"the kernel does not list its links: {error.strerror}") from error
