"""What the daemon answers while it starts: from its settings, its records, and how far the start is.

An ADD waits here, and goes on in the pool once that is there. A DEL is refused at once, since it comes too early: the
plugin takes its interface down and leaves the DEL in the spool, which is applied before anything is granted. So ADD
and DEL of an attachment take effect in the order in which they came.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

import ipamd
from ipamd.api import cni, cni_answer
from ipamd.api.errors import abort_refused
from ipamd.api.explanation import fits, who
from ipamd.api.ipam import abort_invalid, new_request_id, patience, refuse, understand
from ipamd.api.stamp import timestamp
from ipamd.api.standing import StandingService, attachment_info, told, waiting_info
from ipamd.api.v1 import administration_pb2_grpc, ipam_pb2, ipam_pb2_grpc
from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.ledger import Ledger
from ipamd.pool.explain import Explanation
from ipamd.pool.model import Attachment, AttachmentKey, Owner, Reason, Refusal
from ipamd.pool.words import span
from ipamd.process.reload import LiveSettings
from ipamd.process.start import Phase, Start
from ipamd.shell.turn import Refused
from ipamd.telemetry.conditions import Conditions
from ipamd.telemetry.history import History

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

_STOPPING = Refusal(Reason.DRAINING, "the daemon is stopping", 1.0)
_RELEASED = Refusal(Reason.RELEASED, "the attachment was released while it waited for the daemon's start")

_ADVICE = {
    Phase.METADATA: "Check that the host reaches the metadata service (imds.endpoint), with no proxy or firewall in "
    "between.",
    Phase.EC2: "Check the way from this node to EC2's endpoint, the role's credentials, and EC2's own health.",
    Phase.HOST: "ipamctl doctor looks for what is in the way.",
    Phase.ADDRESS: "ipamctl explain pool says why EC2 gives none.",
}


@dataclass(frozen=True, slots=True)
class Waiter:
    """An ADD. `since` and `deadline` are in seconds since the epoch."""

    key: AttachmentKey
    owner: Owner
    since: float
    deadline: float
    pool: asyncio.Future[ipam_pb2_grpc.IpamServicer]


class StartingIpam(ipam_pb2_grpc.IpamServicer):
    """`refusals` is counted up; `allocate_wait`: seconds for an ADD that names no deadline; `served`: whether pods
    had addresses here before a restart, in the same boot."""

    def __init__(
        self,
        start: Start,
        refusals: Counter[Reason],
        allocate_wait: Callable[[], float],
        served: Callable[[], bool],
    ) -> None:
        self._start = start
        self._refusals = refusals
        self._allocate_wait = allocate_wait
        self._served = served
        self._pool: ipam_pb2_grpc.IpamServicer | None = None
        self.waiting: dict[str, Waiter] = {}

    def hand_over(self, pool: ipam_pb2_grpc.IpamServicer) -> None:
        """Let the calls that wait go on there, in the order of their coming."""
        self._pool = pool
        for waiter in self.waiting.values():
            if not waiter.pool.done():
                waiter.pool.set_result(pool)

    def close(self) -> None:
        """The daemon stops before it has started: callers that wait learn that its successor will answer."""
        for waiter in self.waiting.values():
            _refuse(waiter, _STOPPING)

    async def Allocate(self, request: ipam_pb2.AllocateRequest, context: Context) -> ipam_pb2.AllocateReply:
        started = time.monotonic()
        request_id = new_request_id()
        call = await understand(request, context, request_id, "ADD")
        # The caller's own patience: what the pool lets one wait at most begins in the pool.
        wait = request.deadline_ms / 1000 if request.deadline_ms else self._allocate_wait()
        try:
            pool = await self._until_started(request_id, call, wait)
        except Refused as refused:
            self._refusals[refused.refusal.reason] += 1
            await refuse(context, call, refused.refusal, request_id, started)
        request.deadline_ms = max(int((wait - (time.monotonic() - started)) * 1000), 1)
        reply: ipam_pb2.AllocateReply = await pool.Allocate(request, context)
        return reply

    async def _until_started(self, request_id: str, call: cni.Call, wait: float) -> ipam_pb2_grpc.IpamServicer:
        """Raises `Refused`."""
        if self._pool is not None:
            return self._pool
        future: asyncio.Future[ipam_pb2_grpc.IpamServicer] = asyncio.get_running_loop().create_future()
        now = time.time()
        self.waiting[request_id] = Waiter(call.key, call.owner, now, now + wait, future)
        try:
            async with asyncio.timeout(wait):
                return await future
        except TimeoutError:
            raise Refused(self._start.refusal()) from None
        finally:
            del self.waiting[request_id]

    async def Enforce(self, request: ipam_pb2.EnforceRequest, context: Context) -> ipam_pb2.EnforceReply:
        """Of an ADD that had its address of the daemon before this one."""
        started = time.monotonic()
        request_id = new_request_id()
        call = await understand(request, context, request_id, "ADD")
        try:
            pool = await self._until_started(request_id, call, patience(context))
        except Refused as refused:
            await refuse(context, call, refused.refusal, request_id, started)
        reply: ipam_pb2.EnforceReply = await pool.Enforce(request, context)
        return reply

    async def Release(self, request: ipam_pb2.ReleaseRequest, context: Context) -> ipam_pb2.ReleaseReply:
        if self._pool is None:
            request_id = new_request_id()
            call = await understand(request, context, request_id, "DEL")
            for waiter in self.waiting.values():
                if waiter.key == call.key:
                    _refuse(waiter, _RELEASED)
            await self._too_early(context, request_id, call.version)
        reply: ipam_pb2.ReleaseReply = await self._pool.Release(request, context)
        return reply

    async def Check(self, request: ipam_pb2.CheckRequest, context: Context) -> ipam_pb2.CheckReply:
        request_id = new_request_id()
        call = await understand(request, context, request_id, "CHECK")
        await self._too_early(context, request_id, call.version)

    async def Collect(self, request: ipam_pb2.CollectRequest, context: Context) -> ipam_pb2.CollectReply:
        version = None
        request_id = new_request_id()
        if request.WhichOneof("caller") == "cni":
            try:
                version = cni.understand_network(request.cni).version
            except cni.InvalidCall as error:
                await abort_invalid(context, error, request_id, for_cni=True)
        await self._too_early(context, request_id, version)

    async def Ready(self, request: ipam_pb2.ReadyRequest, context: Context) -> ipam_pb2.ReadyReply:
        version = None
        request_id = new_request_id()
        if request.HasField("cni"):
            try:
                version = cni.understand_network(request.cni).version
            except cni.InvalidCall as error:
                await abort_invalid(context, error, request_id, for_cni=True)
        if not self._served():
            await self._too_early(context, request_id, version, cni_answer.PLUGIN_NOT_AVAILABLE)
        return ipam_pb2.ReadyReply(request_id=request_id)

    async def _too_early(
        self, context: Context, request_id: str, version: str | None, code: int = cni_answer.TRY_AGAIN_LATER
    ) -> NoReturn:
        refusal = self._start.refusal()
        text = None
        if version is not None:
            details = f"reason={refusal.reason} request_id={request_id}"
            text = cni_answer.error_object(version, code, refusal.message, details)
        await abort_refused(context, refusal, request_id, text)


class StartingIntrospection(StandingService):
    """`ledger` is read anew for each question: DELs are still applied to it."""

    def __init__(
        self,
        live: LiveSettings,
        history: History,
        conditions: Conditions,
        start: Start,
        ledger: Ledger,
        ipam: StartingIpam,
        began: float,
    ) -> None:
        super().__init__(live, history, conditions, start)
        self._ledger = ledger
        self._ipam = ipam
        self._began = began

    async def GetNode(self, request: pb.GetNodeRequest, context: Context) -> pb.Node:
        assigned = len(self._attachments())
        targets = self._live.loaded.settings.pool
        refusal = self._start.refusal()
        return pb.Node(
            version=ipamd.__version__,
            started=timestamp(self._began),
            counts=pb.Counts(assigned=assigned, waiting=len(self._ipam.waiting), total=assigned),
            targets=pb.Targets(
                **{name: getattr(targets, name) for name in pb.Targets.DESCRIPTOR.fields_by_name},
            ),
            ready=False,
            not_ready_reason=f"{refusal.reason}: {refusal.message}",
            troubles=self._troubles(),
            conditions=self._lasting(),
            start=self._under_way(),
        )

    async def ListAttachments(self, request: pb.ListAttachmentsRequest, context: Context) -> pb.ListAttachmentsReply:
        return pb.ListAttachmentsReply(attachments=map(attachment_info, self._attachments()))

    async def ListWaiting(self, request: pb.ListWaitingRequest, context: Context) -> pb.ListWaitingReply:
        return pb.ListWaitingReply(
            waiting=[
                waiting_info(w.key, w.owner, w.since, w.deadline, request, "start")
                for request, w in self._ipam.waiting.items()
            ]
        )

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.Explanation:
        if request.WhichOneof("subject") != "pod":
            return told(self._explain_pool())
        now = time.time()
        found = [
            self._explain_waiter(w, now) for w in self._ipam.waiting.values() if fits(request.pod, w.key, w.owner)
        ]
        found += [
            self._explain_attachment(a, now)
            for a in self._attachments()
            if request.pod and fits(request.pod, a.key, a.owner)
        ]
        if not found:
            unknown = f"{request.pod}: not on this node: no such pod waits, and none is on record"
            message = f"{unknown}; the daemon is starting: {self._start.words()}"
            await context.abort(grpc.StatusCode.NOT_FOUND, message)
        return told(*found)

    async def ListEnis(self, request: pb.ListEnisRequest, context: Context) -> pb.ListEnisReply:
        await _not_known_yet(self._start, context)

    async def ListAddresses(self, request: pb.ListAddressesRequest, context: Context) -> pb.ListAddressesReply:
        await _not_known_yet(self._start, context)

    async def Audit(self, request: pb.AuditRequest, context: Context) -> pb.AuditReply:
        await _not_known_yet(self._start, context)

    def _attachments(self) -> tuple[Attachment, ...]:
        return tuple(self._ledger.contents().attachments)

    def _explain_pool(self) -> Explanation:
        explanation = Explanation("starting", f"The daemon is starting: {self._start.words()}.")
        if waiting := len(self._ipam.waiting):
            many = "1 pod waits" if waiting == 1 else f"{waiting} pods wait"
            explanation.because.append(f"{many} for it to be ready.")
        self._add_outlook(explanation)
        explanation.numbers = {"waiting": waiting, "tries": self._start.tries}
        return explanation

    def _explain_waiter(self, waiter: Waiter, now: float) -> Explanation:
        headline = f"{who(waiter.key, waiter.owner)} has waited {span(now - waiter.since)} for an address."
        explanation = Explanation("waiting", headline)
        explanation.because.append(f"The daemon is starting: {self._start.words()}.")
        self._add_outlook(explanation)
        left = span(max(waiter.deadline - now, 0.0))
        explanation.next.append(
            f"If the daemon is not ready in {left}, the pod is refused, and the runtime tries again."
        )
        return explanation

    def _explain_attachment(self, attachment: Attachment, now: float) -> Explanation:
        pod, age = who(attachment.key, attachment.owner), span(now - attachment.since)
        headline = f"{pod} has {attachment.address}, for {age}, as the records say."
        explanation = Explanation("attached", headline)
        explanation.because.append(f"Whether EC2 says the same is not known yet: {self._start.words()}.")
        return explanation

    def _add_outlook(self, explanation: Explanation) -> None:
        explanation.next.append("The daemon goes on asking until it is answered; pods that run keep their network.")
        if self._start.tries and self._start.phase is not None:
            explanation.advice.append(_ADVICE[self._start.phase])


class StartingAdministration(administration_pb2_grpc.AdministrationServicer):
    def __init__(self, start: Start) -> None:
        self._start = start

    async def ReleaseAttachment(self, request: Any, context: Context) -> Any:
        await _not_known_yet(self._start, context)

    async def CollectVanished(self, request: Any, context: Context) -> Any:
        await _not_known_yet(self._start, context)

    async def Drain(self, request: Any, context: Context) -> Any:
        await _not_known_yet(self._start, context)

    async def Undrain(self, request: Any, context: Context) -> Any:
        await _not_known_yet(self._start, context)


async def _not_known_yet(start: Start, context: Context) -> NoReturn:
    await abort_refused(context, start.refusal(), new_request_id(), None)


def _refuse(waiter: Waiter, refusal: Refusal) -> None:
    if not waiter.pool.done():
        waiter.pool.set_exception(Refused(refusal))
