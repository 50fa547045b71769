"""The `Administration` service: changes that an operator makes by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from ipamd.api.stamp import timestamp
from ipamd.api.v1 import administration_pb2 as pb
from ipamd.api.v1 import administration_pb2_grpc
from ipamd.host import HostError
from ipamd.host.discarded import discard
from ipamd.host.veth import host_link
from ipamd.pool.model import Attachment, AttachmentKey
from ipamd.pool.quoting import cut
from ipamd.shell.inspection import Inspection
from ipamd.shell.turn import PoolRunner, Refused

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

log = structlog.get_logger("ipamd.api")

_numbers = count(1)


class AdministrationService(administration_pb2_grpc.AdministrationServicer):
    def __init__(self, runner: PoolRunner, inspection: Inspection) -> None:
        self._runner = runner
        self._inspection = inspection

    async def ReleaseAttachment(
        self, request: pb.ReleaseAttachmentRequest, context: Context
    ) -> pb.ReleasedAttachment:
        key = AttachmentKey(request.network, request.container_id, request.ifname)
        if self._runner.view.attachment(key) is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"{cut(str(key), 300)} holds no address: see ipamctl pods")
        async with _told(context):
            # As in a DEL: the container must not use the address any more when another pod gets it.
            await asyncio.to_thread(discard, host_link(key))
            released = await self._release(key)
        if released is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"{key} was released by its runtime meanwhile")
        return _released(released)

    async def CollectVanished(self, request: pb.CollectVanishedRequest, context: Context) -> pb.CollectVanishedReply:
        async with _told(context):
            gone = await self._inspection.vanished()
            if not request.only_look:
                gone = [released for attachment in gone if (released := await self._release(attachment.key))]
        return pb.CollectVanishedReply(released=[_released(attachment) for attachment in gone])

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainReply:
        async with _told(context):
            await self._runner.drain()
        view = self._runner.view
        since = None if view.drained is None else timestamp(view.drained)
        return pb.DrainReply(since=since, attachments=len(view.attachments()))

    async def Undrain(self, request: pb.UndrainRequest, context: Context) -> pb.UndrainReply:
        async with _told(context):
            await self._runner.undrain()
        return pb.UndrainReply()

    async def _release(self, key: AttachmentKey) -> Attachment | None:
        released = await self._runner.release(f"operator-{next(_numbers)}", key, None)
        if released is not None:
            log.info("attachment.released", key=str(key), ip=released.address, by="operator")
        return released


@asynccontextmanager
async def _told(context: Context) -> AsyncIterator[None]:
    """What the kernel or the runner refuses is the caller's to know."""
    try:
        yield
    except (HostError, Refused) as error:
        await context.abort(grpc.StatusCode.UNAVAILABLE, cut(str(error)))


def _released(attachment: Attachment) -> pb.ReleasedAttachment:
    key, owner = attachment.key, attachment.owner
    return pb.ReleasedAttachment(
        network=key.network,
        container_id=key.container_id,
        ifname=key.ifname,
        ip=attachment.address,
        pod_name=owner.pod_name,
        pod_namespace=owner.pod_namespace,
    )
