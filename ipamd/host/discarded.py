"""Deletes the veth pairs that the plugin took out of service.

To delete a link is to wait for a grace period of the kernel, 16-30 ms, and a pod's removal waits for its DEL. So the
plugin only cuts the pair off and moves it into a link group of its own (`cni_shim.names`), which takes 0.03 ms, and
the group is deleted here: all that came within a moment in one go, 20 pairs in 12 ms. What a daemon left behind that
was killed in between is deleted by its successor; what nobody deletes goes with the container's network namespace.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Collection

import structlog

from cni_shim.names import DISCARDED_GROUP
from ipamd.host import netlink
from ipamd.host.errors import HostError
from ipamd.host.links import IFF_UP, IFLA_GROUP, IFLA_IFNAME

log = structlog.get_logger("ipamd.host")

# Seconds from the first pair to the deletion, so that others join it.
GATHER = 0.03
# Seconds until a deletion that the kernel refused is tried again.
RETRY = 5.0


class Discarded:
    def __init__(self) -> None:
        self._wake = asyncio.Event()
        self._error = ""
        self._strays: set[int] = set()  # indexes of links that belong to the group but are not in it

    def seen(self) -> None:
        """There is a link in the group."""
        self._wake.set()

    def add(self, index: int) -> None:
        """Cut this pair off, and delete it with the others."""
        self._strays.add(index)
        self._wake.set()

    async def run(self) -> None:
        """Delete until cancelled."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(GATHER)
            self._wake.clear()
            strays, self._strays = self._strays, set()
            try:
                # In a thread: the kernel does the work, and the waiting, within the call that asks for it.
                await asyncio.to_thread(_delete, strays)
                self._error = ""
            except HostError as error:
                self._strays |= strays
                if str(error) != self._error:
                    log.error("host.links_not_deleted", error=str(error), retry_in=RETRY)
                self._error = str(error)
                asyncio.get_running_loop().call_later(RETRY, self._wake.set)


def discard(name: str) -> None:
    """Cut a pair off at the host's end, as the plugin's DEL does, and leave it to be deleted with the others; that it
    is gone already is fine. Raises `HostError`."""
    _discard(0, netlink.attribute(IFLA_IFNAME, name.encode() + b"\0"), name)


def _discard(index: int, name: bytes, shown: str) -> None:
    payload = netlink.IFINFO.pack(socket.AF_UNSPEC, 0, index, 0, IFF_UP) + name  # changes this flag, to: not set
    payload += netlink.attribute(IFLA_GROUP, struct.pack("=I", DISCARDED_GROUP))
    _change(netlink.RTM_NEWLINK, payload, f"{shown} can't be set down")


def _delete(strays: Collection[int]) -> None:
    """Delete these links and every one of the group; that there is none is fine. Raises `HostError`."""
    for index in strays:
        _discard(index, b"", f"link {index}")
    _delete_group(DISCARDED_GROUP)


def _delete_group(group: int) -> None:
    payload = netlink.IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    payload += netlink.attribute(IFLA_GROUP, struct.pack("=I", group))
    _change(netlink.RTM_DELLINK, payload, "pairs of gone pods can't be deleted")


def _change(kind: int, payload: bytes, failure: str) -> None:
    """That the link is gone is fine. Raises `HostError`, which begins with `failure`."""
    try:
        netlink.change(socket.NETLINK_ROUTE, kind, payload)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise HostError(f"{failure}: {error.strerror or error}") from error
