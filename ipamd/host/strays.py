"""Collects the host's ends of pods' veth pairs that belong to no attachment.

They should not exist: each pair has its record before it is made, and DEL takes it out of service before the record
goes. One remains all the same when an ADD goes on after its DEL and is killed before it has undone itself. It serves
nobody, and it would go with its container's namespace only.

A link counts as ours by its name and its link group together, and as left behind when there is neither a record of it
nor a route of ours to it, in looks that are further apart than an ADD can take.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress

import structlog

from ipamd.host.errors import HostError
from ipamd.host.links import Link
from ipamd.host.network import HostNetwork
from ipamd.settings import MOST_ENIS, HostSettings

log = structlog.get_logger("ipamd.host")

# Seconds between two looks, and for how long a link has to be nobody's: longer than the plugin gives an ADD (35 s).
LOOK, LASTS = 30.0, 60.0

_NAME = re.compile("ipm[0-9a-f]{12}")  # `cni_shim.names`


class Strays:
    """`attached` tells the host's ends of all attachments on record."""

    def __init__(
        self,
        network: HostNetwork,
        settings: HostSettings,
        attached: Callable[[], Collection[str]],
        clock: Callable[[], float],
    ) -> None:
        self._network = network
        self._groups = range(settings.table, settings.table + MOST_ENIS + 1)
        self._attached = attached
        self._clock = clock
        self._since: dict[int, float] = {}  # by the link's index: names come again

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK)
            with suppress(HostError):  # the reconciler tells of a kernel that can't be read
                await self.look()

    async def look(self) -> None:
        """Raises `HostError` when the kernel can't be read."""
        routed = set((await self._network.pod_routes()).values())
        for link in self.left_behind(self._network.host_veths(), routed):
            log.warning("link.collected", link=link.name, lasted=round(self._clock() - self._since[link.index], 1))
            self._network.discarded.add(link.index)

    def left_behind(self, links: Iterable[Link], routed: Collection[str]) -> list[Link]:
        """Those of the links that have been nobody's for long enough. `routed` are the names of those that a route of
        ours leads to."""
        now, attached = self._clock(), self._attached()
        strays = [
            link
            for link in links
            if _NAME.fullmatch(link.name)
            and link.group in self._groups
            and link.name not in attached
            and link.name not in routed
        ]
        self._since = {link.index: self._since.get(link.index, now) for link in strays}
        return [link for link in strays if now - self._since[link.index] >= LASTS]
