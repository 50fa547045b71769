"""The part of `Introspection` that rests on nothing that a start has to wait for: settings, events, conditions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.struct_pb2 import Struct

from ipamd.api.stamp import timestamp
from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.api.v1 import introspection_pb2_grpc
from ipamd.host.veth import host_link
from ipamd.pool.explain import Explanation
from ipamd.pool.model import Attachment, AttachmentKey, Owner
from ipamd.pool.quoting import quoted
from ipamd.pool.trouble import Trouble
from ipamd.process.reload import LiveSettings, is_live
from ipamd.process.start import Start
from ipamd.telemetry.conditions import Conditions
from ipamd.telemetry.history import LEVELS, Event, History

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

# Warnings and errors that one page shows.
TROUBLES = 5


class StandingService(introspection_pb2_grpc.IntrospectionServicer):
    def __init__(self, live: LiveSettings, history: History, conditions: Conditions, start: Start) -> None:
        self._live = live
        self._history = history
        self._conditions = conditions
        self._start = start

    async def GetSettings(self, request: pb.GetSettingsRequest, context: Context) -> pb.GetSettingsReply:
        return pb.GetSettingsReply(
            settings=[
                pb.Setting(key=key, value=json.dumps(value), origin=origin, live=is_live(key))
                for key, value, origin in self._live.loaded.effective()
            ]
        )

    async def WatchEvents(self, request: pb.WatchEventsRequest, context: Context) -> AsyncIterator[pb.Event]:
        level = request.level or "info"
        if level not in LEVELS:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"level {quoted(level)}: info, warning or error")
        seen = self._history.newest
        for event in self._history.last(request.last, level):
            yield _event(event)
        if request.follow:
            async for event in self._history.follow(seen, level):
                yield _event(event)

    # Parts of a Node message that are the same in each phase.

    def _troubles(self) -> list[pb.Event]:
        return [_event(event) for event in self._history.last(TROUBLES, "warning")]

    def _lasting(self) -> list[pb.Condition]:
        return [
            pb.Condition(name=condition.name, text=condition.text, since=timestamp(condition.since))
            for condition in self._conditions.active()
        ]

    def _under_way(self) -> pb.Start | None:
        """None once the start is over."""
        start = self._start
        if start.phase is None:
            return None
        return pb.Start(
            phase=start.phase,
            text=start.phase.words,
            since=timestamp(start.since),
            tries=start.tries,
            last_error=start.error,
        )


def _event(event: Event) -> pb.Event:
    fields = Struct()
    fields.update({key: _plain(value) for key, value in event.fields.items()})
    return pb.Event(number=event.number, at=timestamp(event.at), level=event.level, name=event.name, fields=fields)


def _plain(value: Any) -> Any:
    """As protobuf's Struct takes it."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else str(value)


def waiting_info(
    key: AttachmentKey, owner: Owner, since: float, deadline: float, request_id: str, waits_for: str
) -> pb.Waiting:
    """`since` and `deadline` in seconds since the epoch."""
    return pb.Waiting(
        network=key.network,
        container_id=key.container_id,
        ifname=key.ifname,
        pod_name=owner.pod_name,
        pod_namespace=owner.pod_namespace,
        since=timestamp(since),
        deadline=timestamp(deadline),
        request_id=request_id,
        waits_for=waits_for,
    )


def attachment_info(a: Attachment, trouble: Trouble | None = None) -> pb.AttachmentInfo:
    return pb.AttachmentInfo(
        network=a.key.network,
        container_id=a.key.container_id,
        ifname=a.key.ifname,
        ip=a.address,
        eni=a.eni_id,
        pod_name=a.owner.pod_name,
        pod_namespace=a.owner.pod_namespace,
        pod_uid=a.owner.pod_uid,
        netns=a.owner.netns,
        since=timestamp(a.since),
        host_ifname=host_link(a.key),
        trouble="" if trouble is None else trouble.cause,
    )


def told(first: Explanation, *more: Explanation) -> pb.Explanation:
    """Of several, as a pod with two interfaces has them, the others follow the first."""
    for other in more:
        first.because += [other.headline, *other.because]
        first.next += other.next
        first.advice += other.advice
    return pb.Explanation(
        state=first.state,
        headline=first.headline,
        because=first.because,
        next=list(dict.fromkeys(first.next)),
        advice=list(dict.fromkeys(first.advice)),
        numbers=first.numbers,
    )
