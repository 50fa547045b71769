"""The `Introspection` service: the pool's state, its events and its explanations, as messages. Reads only."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import grpc

import ipamd
from ipamd.api.explanation import Explainer
from ipamd.api.stamp import timestamp
from ipamd.api.standing import StandingService, attachment_info, told, waiting_info
from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.cloud.budget import BucketView, RateBudget
from ipamd.cloud.permissions import Permissions
from ipamd.cloud.port import CloudError, Identity, Priority
from ipamd.host import Health, HostError, HostNetwork
from ipamd.ledger import LedgerError
from ipamd.pool.model import Counts
from ipamd.pool.quoting import cut
from ipamd.pool.view import EniView, SubnetView, Summary
from ipamd.process.reload import LiveSettings
from ipamd.process.start import Start
from ipamd.shell.assembly import Shell
from ipamd.shell.serving import Serving
from ipamd.telemetry.conditions import Conditions
from ipamd.telemetry.history import History

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


_NO_SUCH_POD = (
    "no such pod waits or has an address here. It may be on another node (kubectl get pod -o wide says which, "
    "kubectl ipamd explain asks that one), or its runtime did not call the plugin (crictl pods, journalctl -u "
    "containerd)"
)
_NO_SUCH_ADDRESS = (
    "no ENI of it has this address. Another node (kubectl ipamd whois) or another service of the VPC may have it "
    "(aws ec2 describe-network-interfaces --filters Name=addresses.private-ip-address,Values={})"
)

# Seconds for which further callers get the answer of the last audit: each audit costs EC2 calls.
AUDIT_LASTS = 5.0


class IntrospectionService(StandingService):
    def __init__(
        self,
        shell: Shell,
        network: HostNetwork,
        identity: Identity,
        live: LiveSettings,
        budget: RateBudget,
        history: History,
        permissions: Permissions,
        conditions: Conditions,
        start: Start,
        serving: Serving,
    ) -> None:
        super().__init__(live, history, conditions, start)
        self._serving = serving
        self._runner = runner = shell.runner
        self._reconciler = shell.reconciler
        self._inspection = shell.inspection
        self._permissions = permissions
        self._explainer = Explainer(runner, shell.reconciler, network, budget, history)
        self._auditing = asyncio.Lock()
        self._audited: pb.AuditReply | None = None
        self._audited_at = 0.0
        self._view = runner.view
        self._identity = identity
        self._budget = budget
        self._started = runner.clock()

    async def GetNode(self, request: pb.GetNodeRequest, context: Context) -> pb.Node:
        now = self._runner.clock()
        pool = self._view.summary(now)
        obstacle, refusal = self._serving.obstacle(), self._runner.would_refuse()
        return pb.Node(
            instance_id=self._identity.instance_id,
            instance_type=self._identity.instance_type,
            availability_zone=self._identity.availability_zone,
            version=ipamd.__version__,
            started=timestamp(self._started),
            counts=_counts(pool.counts),
            targets=_targets(pool),
            slots=_slots(pool),
            max_enis=pool.limits.max_enis,
            addresses_per_eni=pool.limits.secondary_per_eni,
            ready=obstacle is None,
            not_ready_reason="" if obstacle is None else str(obstacle),
            would_refuse="" if refusal is None else f"{refusal.reason}: {refusal.message}",
            backoffs=[
                pb.Backoff(
                    scope=backoff.scope,
                    reason=backoff.policy.reason,
                    message=f"{backoff.failure.action}: {backoff.failure.code}: {backoff.failure.message}",
                    until=timestamp(backoff.until),
                )
                for backoff in pool.backoffs
            ],
            budget=[_bucket(bucket) for bucket in self._budget.view()],
            host=_host(self._reconciler.health()),
            troubles=self._troubles(),
            subnets=[_subnet(subnet) for subnet in self._view.subnets()],
            drained=None if pool.drained is None else timestamp(pool.drained),
            denied=[
                pb.DeniedAction(action=denied.action, consequence=denied.use.without)
                for denied in self._permissions.denied
            ],
            conditions=self._lasting(),
            start=self._under_way(),
            attachment_troubles=[
                pb.AttachmentTrouble(
                    kind=trouble.kind,
                    attachment=attachment_info(trouble.attachment, trouble),
                    cause=trouble.cause,
                    since=timestamp(trouble.since),
                )
                for trouble in self._view.troubles()
            ],
            withheld=len(pool.withheld),
            withheld_for=next((f"{ip}: {use.text}" for ip, use in pool.withheld), ""),
        )

    async def ListEnis(self, request: pb.ListEnisRequest, context: Context) -> pb.ListEnisReply:
        return pb.ListEnisReply(enis=[_eni(eni) for eni in self._view.enis()])

    async def ListAddresses(self, request: pb.ListAddressesRequest, context: Context) -> pb.ListAddressesReply:
        """Also those that pods have on record and EC2 has taken away."""
        found = [
            pb.Address(
                ip=a.ip,
                eni=a.eni_id,
                state=a.state,
                since=timestamp(a.since),
                cause="" if a.withheld is None else a.withheld.text,
            )
            for a in self._view.addresses()
        ]
        lost = [trouble for trouble in self._view.troubles() if trouble.kind == "lost"]
        found += [
            pb.Address(
                ip=t.attachment.address,
                eni=t.attachment.eni_id,
                state="lost",
                since=timestamp(t.since),
                cause=t.cause,
            )
            for t in lost
        ]
        return pb.ListAddressesReply(addresses=found)

    async def ListAttachments(self, request: pb.ListAttachmentsRequest, context: Context) -> pb.ListAttachmentsReply:
        return pb.ListAttachmentsReply(
            attachments=[attachment_info(a, self._view.trouble_of(a)) for a in self._view.attachments()]
        )

    async def ListWaiting(self, request: pb.ListWaitingRequest, context: Context) -> pb.ListWaitingReply:
        return pb.ListWaitingReply(
            waiting=[
                waiting_info(w.key, w.owner, w.since, w.deadline, w.request, w.waits_for)
                for w in self._view.waiting(self._runner.clock())
            ]
        )

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.Explanation:
        match request.WhichOneof("subject"):
            case "address":
                found = await self._explainer.address(request.address)
                unknown = _NO_SUCH_ADDRESS.format(request.address)
            case "pod" if request.pod:
                found = await self._explainer.pods(request.pod)
                unknown = _NO_SUCH_POD
            case "pod":
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "which pod? Its name, or its container's id")
            case _:
                return told(self._explainer.pool())
        if not found:
            where = f"not on this node ({self._identity.instance_id}, {self._identity.primary_ip})"
            subject = cut(request.address or request.pod, 300)
            seen = f"none of the last {len(self._history)} events names it"
            await context.abort(grpc.StatusCode.NOT_FOUND, f"{subject}: {where}: {unknown}; {seen}")
        return told(*found)

    async def Audit(self, request: pb.AuditRequest, context: Context) -> pb.AuditReply:
        async with self._auditing:
            now = self._runner.clock()
            if self._audited is not None and now - self._audited_at < AUDIT_LASTS:
                return self._audited
            try:
                compared = await self._inspection.compare()
            except (CloudError, HostError, LedgerError) as error:
                await context.abort(grpc.StatusCode.UNAVAILABLE, cut(f"not all could be read: {error}"))
            self._audited_at = self._runner.clock()
            self._audited = pb.AuditReply(
                at=timestamp(self._audited_at),
                mismatches=[pb.Mismatch(**asdict(mismatch)) for mismatch in compared.mismatches],
                enis=compared.enis,
                addresses=compared.addresses,
                attachments=compared.attachments,
                routes=compared.routes,
            )
            return self._audited


def _counts(counts: Counts) -> pb.Counts:
    return pb.Counts(
        free=counts.free,
        assigned=counts.assigned,
        cooling=counts.cooling,
        releasing=counts.releasing,
        pending=counts.pending,
        waiting=counts.waiting,
        total=counts.total,
    )


def _targets(pool: Summary) -> pb.Targets:
    targets = pool.targets
    return pb.Targets(
        warm_ips=targets.warm_ips,
        minimum_ips=targets.minimum_ips,
        max_pods=pool.max_pods,
        cooldown=targets.cooldown,
        allocate_wait=targets.allocate_wait,
        warm_enis=targets.warm_enis,
        max_enis=pool.max_enis,
        slack=targets.slack,
        release_delay=targets.release_delay,
    )


def _slots(pool: Summary) -> pb.Slots:
    return pb.Slots(
        enis=pool.attached,
        foreign=pool.foreign_enis,
        eni_limit=pool.targets.max_enis,
        pod_limit=pool.targets.max_pods,
    )


def _subnet(subnet: SubnetView) -> pb.Subnet:
    read = subnet.available is not None
    return pb.Subnet(id=subnet.id, available=subnet.available or 0, seen=timestamp(subnet.read_at) if read else None)


def _eni(eni: EniView) -> pb.Eni:
    return pb.Eni(
        id=eni.id,
        device_index=max(eni.place.device_index, 0),
        primary=eni.place.primary,
        state=eni.state,
        mac=eni.place.mac,
        subnet_id=eni.place.subnet_id,
        primary_ip=eni.place.primary_ip,
        free=eni.free,
        assigned=eni.assigned,
        cooling=eni.cooling,
        releasing=eni.releasing,
        pending=eni.pending,
        capacity=eni.capacity,
        link=eni.place.link,
        foreign=eni.foreign,
        network_card=eni.card,
        prefixes=eni.prefixes,
        room=eni.room,
    )


def _host(health: Health) -> pb.HostNetwork:
    return pb.HostNetwork(
        repairs=health.repairs,
        last_repair=None if health.last_repair is None else timestamp(health.last_repair),
        last_what=health.last_what,
        last_by=health.last_by,
        disputes=[
            pb.Dispute(
                what=dispute.what,
                by=dispute.by,
                since=timestamp(dispute.since),
                last=timestamp(dispute.last),
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
