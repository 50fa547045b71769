"""The node's network devices, as the kernel tells them: one dump, then events.

An ENI shows up as a device some time after EC2 attached it; the event says so, and nothing polls. Looking a link up
by name or MAC is a dictionary access: asking the kernel each time costs milliseconds at a few hundred veths, and on
pyroute2's long-lived sockets a queued message each.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from dataclasses import dataclass
from typing import Any

import structlog
from pyroute2 import AsyncIPRoute
from pyroute2.netlink.rtnl import RTMGRP_LINK
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from ipamd.host.errors import HostError, LinkTimeout

log = structlog.get_logger("ipamd.host")

IFF_UP = 0x1  # linux/if.h


@dataclass(frozen=True, slots=True)
class Link:
    index: int
    name: str
    mac: str
    mtu: int
    up: bool


class Links:
    """Open it in the network namespace that is to be watched; close it in the end."""

    def __init__(self) -> None:
        self._by_index: dict[int, Link] = {}
        self._by_mac: dict[str, int] = {}
        self._marshal = MarshalRtnl()
        self._events: socket.socket | None = None
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Subscribe first and dump then, so that nothing falls between. Raises `HostError`."""
        try:
            events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
            self._events = events
            events.bind((0, RTMGRP_LINK))
        except OSError as error:
            raise HostError(f"link events are not to be had: {error}") from error
        await self._dump()
        asyncio.get_running_loop().add_reader(events, self._read)

    async def close(self) -> None:
        if self._events is not None:
            asyncio.get_running_loop().remove_reader(self._events)
            self._events.close()
        for task in list(self._tasks):
            await asyncio.gather(task, return_exceptions=True)

    def by_mac(self, mac: str) -> Link | None:
        index = self._by_mac.get(mac)
        return None if index is None else self._by_index.get(index)

    def name_of(self, index: int) -> str:
        """Empty when there is no such link."""
        link = self._by_index.get(index)
        return "" if link is None else link.name

    async def wait_for(self, mac: str, timeout: float) -> Link:
        """The link with this MAC, now or when it appears. Raises `LinkTimeout`."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: self.by_mac(mac) is not None), timeout)
            except TimeoutError:
                message = f"no network device with MAC {mac} appeared within {timeout:.0f} s of the attachment"
                raise LinkTimeout(message) from None
        link = self.by_mac(mac)
        if link is None:
            raise LinkTimeout(f"the network device with MAC {mac} vanished as soon as it had appeared")
        return link

    async def _dump(self) -> None:
        """A fresh socket each time: its queue goes with it."""
        async with AsyncIPRoute(groups=0) as route:
            found = [message async for message in await route.link("dump")]
        self._by_index.clear()
        self._by_mac.clear()
        for message in found:
            self._learn(message)
        await self._announce()

    def _read(self) -> None:
        assert self._events is not None
        while True:
            try:
                data = self._events.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                # The kernel dropped events because we were slow: what we know is no longer true.
                if error.errno == errno.ENOBUFS:
                    log.warning("host.link_events_lost")
                self._spawn(self._dump())
                break
            for message in self._marshal.parse(data):
                self._learn(message)
        self._spawn(self._announce())

    def _learn(self, message: Any) -> None:
        index, mac = message["index"], message.get("address") or ""
        before = self._by_index.pop(index, None)
        if before is not None and self._by_mac.get(before.mac) == index:
            del self._by_mac[before.mac]
        if message["header"]["type"] == 17:  # RTM_DELLINK
            return
        up = bool(message["flags"] & IFF_UP)
        self._by_index[index] = Link(index, message.get("ifname") or "", mac, message.get("mtu") or 0, up)
        if mac:
            self._by_mac[mac] = index

    async def _announce(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
