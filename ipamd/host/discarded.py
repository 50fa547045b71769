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

import structlog

from cni_shim.names import DISCARDED_GROUP
from ipamd.host import netlink
from ipamd.host.errors import HostError
from ipamd.host.links import IFF_UP, IFLA_GROUP, IFLA_IFNAME

log = structlog.get_logger("ipamd.host")

# Seconds from the first pair to the deletion, in which others join it.
GATHER = 0.03
# Seconds until a deletion that the kernel refused is tried again.
RETRY = 5.0


class Discarded:
    def __init__(self) -> None:
        self._wake = asyncio.Event()
        self._error = ""

    def seen(self) -> None:
        """There is a link in the group."""
        self._wake.set()

    async def run(self) -> None:
        """Delete until cancelled."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(GATHER)
            self._wake.clear()
            try:
                # In a thread: the kernel does the work, and the waiting, within the call that asks for it.
                await asyncio.to_thread(_delete_group, DISCARDED_GROUP)
                self._error = ""
            except HostError as error:
                if str(error) != self._error:
                    log.error("host.links_not_deleted", error=str(error), retry_in=RETRY)
                self._error = str(error)
                asyncio.get_running_loop().call_later(RETRY, self._wake.set)


def discard(name: str) -> None:
    """Cut a pair off at the host's end, as the plugin's DEL does, and leave it to be deleted with the others; that it
    is gone already is fine. Raises `HostError`."""
    payload = netlink.IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, IFF_UP)  # changes this flag, to: not set
    payload += netlink.attribute(IFLA_IFNAME, name.encode() + b"\0")
    payload += netlink.attribute(IFLA_GROUP, struct.pack("=I", DISCARDED_GROUP))
    _change(netlink.RTM_NEWLINK, payload, f"{name} can't be set down")


def _delete_group(group: int) -> None:
    """Delete every link of the group; that there is none is fine. Raises `HostError`."""
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
