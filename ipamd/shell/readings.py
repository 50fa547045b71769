"""What EC2 and the kernel show of this node, read for the pool's audits and searches and for an operator's.

EC2 is asked first and the kernel last: an address that a pod has by now must not look unused.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

import structlog

from ipamd.cloud.port import Cloud, CloudError
from ipamd.cloud.vpc import Vpc
from ipamd.host import HostError, HostNetwork, Reconciler
from ipamd.host.veth import host_link
from ipamd.pool import events as on
from ipamd.pool.model import Attachment, AttachmentKey, ObservedEni

log = structlog.get_logger("ipamd.pool")


class Readings:
    def __init__(self, network: HostNetwork, vpc: Vpc, reconciler: Reconciler) -> None:
        self._network = network
        self._vpc = vpc
        self._reconciler = reconciler
        self._cluster_unread = False  # what gone nodes have left could not be read the last time

    async def audit(self, op: int, cloud: Cloud, subnets: tuple[str, ...]) -> on.Audited:
        """With what gone nodes have left, and the room in `subnets`. Raises `CloudError` or `HostError`."""
        abandoned = await self._abandoned(cloud)
        return replace(await self.read_all(cloud, abandoned, subnets), op=op)

    async def read_all(
        self, cloud: Cloud, abandoned: Iterable[ObservedEni] = (), subnets: tuple[str, ...] = ()
    ) -> on.Audited:
        """Raises `CloudError` or `HostError`."""
        await self.look_at_vpc()
        enis = await cloud.describe_enis()
        available = await self._available(cloud, subnets) if subnets else ()
        _, routed = self._network.uses.read()
        deaf = await self._network.not_forwarding()
        return on.Audited(0, tuple(enis), tuple(abandoned), tuple(routed.items()), available, deaf)

    async def look_at_vpc(self) -> None:
        """Whether the VPC has got a CIDR, or lost one, since the last look."""
        if await self._vpc.look():
            with suppress(HostError):  # told already, and tried again
                await self._reconciler.apply()

    async def _available(self, cloud: Cloud, subnets: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
        """What is left in the subnets, for `status` and metrics: growth itself asks only when it has to know."""
        try:
            return tuple((await cloud.available_addresses(subnets)).items())
        except CloudError as error:
            log.debug("audit.subnets_unread", code=error.failure.code, error=error.failure.message)
            return ()

    async def _abandoned(self, cloud: Cloud) -> list[ObservedEni]:
        """What gone nodes of the cluster have left. It takes a permission more than this node's own ENIs do, so the
        audit goes on without it."""
        try:
            found = await cloud.describe_abandoned()
        except CloudError as error:
            failure = error.failure
            if not self._cluster_unread:
                log.warning("audit.cluster_unread", action=failure.action, code=failure.code, error=failure.message)
            self._cluster_unread = True
            return []
        self._cluster_unread = False
        return found

    async def gone(self, attachments: tuple[Attachment, ...]) -> frozenset[AttachmentKey]:
        """Those that have left no trace: neither a host link nor a network namespace. Raises `HostError`."""
        links = await self._network.host_links()
        linkless = [attachment for attachment in attachments if host_link(attachment.key) not in links]
        return await asyncio.to_thread(_without_netns, linkless)


def _without_netns(attachments: Iterable[Attachment]) -> frozenset[AttachmentKey]:
    """Those whose network namespace is not there. It looks into the file system, which may take its time."""
    return frozenset(a.key for a in attachments if not a.owner.netns or _is_gone(a.owner.netns))


def _is_gone(path: str) -> bool:
    """Only what is known to be gone: a path that may not be looked at is there. What it leads to is not asked, as
    the kernel tells that of /proc/<pid>/ns/net only to those who may trace the process (ptrace(2))."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
