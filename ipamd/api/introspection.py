"""The `Introspection` service: the pool's state as messages. Reads only."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

import ipamd
from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.api.v1 import introspection_pb2_grpc
from ipamd.cloud.budget import BucketView, RateBudget
from ipamd.cloud.port import Identity, Priority
from ipamd.host import Health
from ipamd.pool.inventory import Eni
from ipamd.pool.outlook import unready_reason
from ipamd.reload import LiveSettings, is_live
from ipamd.runner import PoolRunner
from ipamd.veth import host_link

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class IntrospectionService(introspection_pb2_grpc.IntrospectionServicer):
    def __init__(self, runner: PoolRunner, identity: Identity, live: LiveSettings, budget: RateBudget) -> None:
        self._runner = runner
        self._pool = runner.pool
        self._identity = identity
        self._live = live
        self._budget = budget
        self._started = runner.clock()

    async def GetNode(self, request: pb.GetNodeRequest, context: Context) -> pb.Node:
        pool, now = self._pool, self._runner.clock()
        counts, targets, limits = pool.counts(), pool.targets, pool.limits
        unready = unready_reason(pool, now)
        return pb.Node(
            instance_id=self._identity.instance_id,
            instance_type=self._identity.instance_type,
            availability_zone=self._identity.availability_zone,
            version=ipamd.__version__,
            started=_timestamp(self._started),
            counts=pb.Counts(
                free=counts.free,
                assigned=counts.assigned,
                cooling=counts.cooling,
                releasing=counts.releasing,
                pending=counts.pending,
                waiting=counts.waiting,
                total=counts.total,
            ),
            targets=pb.Targets(
                warm_ips=targets.warm_ips,
                minimum_ips=targets.minimum_ips,
                max_pods=pool.max_pods,
                cooldown=targets.cooldown,
                allocate_wait=targets.allocate_wait,
                warm_enis=targets.warm_enis,
                max_enis=pool.max_enis,
                slack=targets.slack,
                release_delay=targets.release_delay,
            ),
            max_enis=limits.max_enis,
            addresses_per_eni=limits.secondary_per_eni,
            ready=unready is None,
            not_ready_reason="" if unready is None else f"{unready.reason}: {unready.message}",
            backoffs=[
                pb.Backoff(
                    scope=backoff.scope,
                    reason=backoff.policy.reason,
                    message=f"{backoff.failure.action}: {backoff.failure.code}: {backoff.failure.message}",
                    until=_timestamp(backoff.until),
                )
                for backoff in pool.backoffs.all_active(now)
            ],
            budget=[_bucket(bucket) for bucket in self._budget.view()],
            host=_host(self._runner.reconciler.health()),
        )

    async def GetSettings(self, request: pb.GetSettingsRequest, context: Context) -> pb.GetSettingsReply:
        return pb.GetSettingsReply(
            settings=[
                pb.Setting(key=key, value=json.dumps(value), origin=origin, live=is_live(key))
                for key, value, origin in self._live.loaded.effective()
            ]
        )

    async def ListEnis(self, request: pb.ListEnisRequest, context: Context) -> pb.ListEnisReply:
        enis = sorted(self._pool.inventory.enis.values(), key=lambda eni: eni.device_index)
        return pb.ListEnisReply(enis=[_eni(eni) for eni in enis])

    async def ListAddresses(self, request: pb.ListAddressesRequest, context: Context) -> pb.ListAddressesReply:
        return pb.ListAddressesReply(
            addresses=[
                pb.Address(ip=a.ip, eni=a.eni.id, state=a.state, since=_timestamp(a.since))
                for a in self._pool.inventory.addresses.values()
            ]
        )

    async def ListAttachments(self, request: pb.ListAttachmentsRequest, context: Context) -> pb.ListAttachmentsReply:
        return pb.ListAttachmentsReply(
            attachments=[
                pb.AttachmentInfo(
                    network=a.key.network,
                    container_id=a.key.container_id,
                    ifname=a.key.ifname,
                    ip=a.address,
                    eni=a.eni_id,
                    pod_name=a.owner.pod_name,
                    pod_namespace=a.owner.pod_namespace,
                    pod_uid=a.owner.pod_uid,
                    netns=a.owner.netns,
                    since=_timestamp(a.since),
                    host_ifname=host_link(a.key),
                )
                for a in self._pool.inventory.attachments.values()
            ]
        )

    async def ListWaiting(self, request: pb.ListWaitingRequest, context: Context) -> pb.ListWaitingReply:
        return pb.ListWaitingReply(
            waiting=[
                pb.Waiting(
                    network=w.key.network,
                    container_id=w.key.container_id,
                    ifname=w.key.ifname,
                    pod_name=w.owner.pod_name,
                    pod_namespace=w.owner.pod_namespace,
                    since=_timestamp(w.since),
                    deadline=_timestamp(w.deadline),
                    request_id=w.request,
                )
                for w in self._pool.waiting.values()
            ]
        )


def _eni(eni: Eni) -> pb.Eni:
    return pb.Eni(
        id="" if eni.id == eni.token else eni.id,
        device_index=max(eni.device_index, 0),
        primary=eni.primary,
        state=eni.state,
        mac=eni.mac,
        subnet_id=eni.subnet_id,
        primary_ip=eni.primary_ip,
        free=len(eni.free),
        assigned=eni.assigned,
        cooling=eni.cooling,
        releasing=eni.releasing,
        pending=eni.pending,
        capacity=eni.capacity,
        link=eni.link,
        foreign=eni.foreign,
    )


def _host(health: Health) -> pb.HostNetwork:
    return pb.HostNetwork(
        repairs=health.repairs,
        last_repair=None if health.last_repair is None else _timestamp(health.last_repair),
        last_what=health.last_what,
        last_by=health.last_by,
        disputes=[
            pb.Dispute(
                what=dispute.what,
                by=dispute.by,
                since=_timestamp(dispute.since),
                last=_timestamp(dispute.last),
                repairs=dispute.repairs,
                delay=dispute.delay,
            )
            for dispute in health.disputes
        ],
        error=health.error,
    )


def _bucket(bucket: BucketView) -> pb.Bucket:
    return pb.Bucket(
        action=bucket.action,
        rate=bucket.rate,
        tokens=bucket.tokens,
        waiting=sum(bucket.waiting.values()),
        throttled=bucket.throttled,
        waits=[
            pb.Waits(
                priority=priority.name.lower(),
                waiting=bucket.waiting[priority],
                count=bucket.waits[priority].count,
                delayed=bucket.waits[priority].delayed,
                total=bucket.waits[priority].total,
                longest=bucket.waits[priority].longest,
            )
            for priority in Priority
        ],
    )


def _timestamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp
