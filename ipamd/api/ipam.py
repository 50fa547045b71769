"""The `Ipam` service: translate, ask the pool, translate back. Decides nothing."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import count
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import structlog

from ipamd.api import cni, cni_answer
from ipamd.api.errors import abort, abort_refused
from ipamd.api.first_tries import FirstTries
from ipamd.api.plan import GATEWAY, PACKED_GATEWAY, packed, plan
from ipamd.api.v1 import ipam_pb2, ipam_pb2_grpc
from ipamd.host import HostError, HostNetwork
from ipamd.host.veth import host_link, recovered_key
from ipamd.policy.errors import NotEnforced
from ipamd.pool.model import Attachment, AttachmentKey, Reason, Refusal
from ipamd.settings import HostSettings
from ipamd.shell.serving import Serving
from ipamd.shell.turn import PoolRunner, Refused
from ipamd.telemetry.tracing import Facts, Tracer

if TYPE_CHECKING:
    from ipamd.policy.enforcement import Enforcement

    Context = grpc.aio.ServicerContext[Any, Any]

log = structlog.get_logger("ipamd.api")

# What sets this process's requests apart from those of the one before it.
_PROCESS = secrets.token_hex(4)
_numbers = count(1)

# CNI specification 1.1.0, "STATUS": 51 says that existing pods may be cut off, too.
_STATUS_CODES = {
    "NOT_READY": cni_answer.PLUGIN_NOT_AVAILABLE,
    "NETWORK_BROKEN": cni_answer.LIMITED_CONNECTIVITY,
}


_POLICIES = {"standard": ipam_pb2.POLICY_MODE_STANDARD, "strict": ipam_pb2.POLICY_MODE_STRICT}

# Seconds for a caller of Enforce without a deadline; seconds reserved for the answer.
PATIENCE, ANSWER = 30.0, 0.5


# Called with each ADD's attachment, and awaited, before the pool is asked.
BeforeGrant = Callable[[AttachmentKey], Awaitable[None]]


class IpamService(ipam_pb2_grpc.IpamServicer):
    def __init__(
        self,
        runner: PoolRunner,
        network: HostNetwork,
        settings: HostSettings,
        serving: Serving,
        before_grant: BeforeGrant,
        refusals: Counter[Reason],
        tracer: Tracer,
        enforcement: Enforcement | None = None,
    ) -> None:
        self._runner = runner
        self._serving = serving
        self._network = network
        self._settings = settings
        self._before_grant = before_grant
        self.first_tries = FirstTries()
        self._refusals = refusals
        self._tracer = tracer
        self._enforcement = enforcement

    async def Allocate(self, request: ipam_pb2.AllocateRequest, context: Context) -> ipam_pb2.AllocateReply:
        request_id = new_request_id()
        with self._tracer.request("Allocate", request_id) as facts:
            return await self._allocate(request, context, request_id, facts)

    async def _allocate(
        self, request: ipam_pb2.AllocateRequest, context: Context, request_id: str, facts: Facts
    ) -> ipam_pb2.AllocateReply:
        started = time.monotonic()
        call = await understand(request, context, request_id, "ADD")
        facts.set_attribute("k8s.pod.name", call.owner.pod_name)
        facts.set_attribute("k8s.namespace.name", call.owner.pod_namespace)
        facts.set_attribute("container.id", call.key.container_id)
        wait = self._runner.view.targets.allocate_wait
        if request.deadline_ms:
            wait = min(wait, request.deadline_ms / 1000)
        self.first_tries.begun(call.key, call.owner, started)
        try:
            await self._before_grant(call.key)
            attachment = await self._runner.allocate(
                request_id, call.key, call.owner, wait, call.address, blocks_releases=call.blocks_releases
            )
        except Refused as refused:
            self._refusals[refused.refusal.reason] += 1
            facts.set_attribute("ipamd.reason", refused.refusal.reason)
            await refuse(context, call, refused.refusal, request_id, started)
        facts.set_attribute("ipamd.address", attachment.address)
        self.first_tries.granted(call.key, call.owner, time.monotonic())
        eni = self._runner.view.place_of(attachment.eni_id)
        if eni is None:
            message = f"{attachment.address} is on no ENI of this node any more: delete the pod"
            await self._abort_broken(context, call, message, request_id)
        try:
            mtu = self._settings.pod_mtu or self._settings.mtu or self._network.mtu(eni.mac)
        except HostError as error:
            await self._abort_broken(context, call, f"{attachment.address} can't be used: {error}", request_id)
        reply = plan(attachment, self._settings, eni.device_index, mtu, call.owner.netns)
        reply.request_id = request_id
        reply.mac = call.mac or reply.mac
        if self._enforcement is not None and self._enforcement.concerns(attachment):
            reply.policy = _POLICIES[self._enforcement.mode]
        if call.version is not None:
            reply.result = cni_answer.result(call, reply, attachment, GATEWAY)
            reply.result_beside = cni_answer.result(call, reply, attachment, GATEWAY, default_route=False)
        # What a handler returns leaves in the same step of the loop: the log's turn comes after that.
        asyncio.get_running_loop().call_soon(_log_granted, call, request_id, attachment, _ms_since(started))
        return reply

    async def Enforce(self, request: ipam_pb2.EnforceRequest, context: Context) -> ipam_pb2.EnforceReply:
        request_id = new_request_id()
        call = await understand(request, context, request_id, "ADD")
        attachment = self._runner.view.attachment(call.key)
        if attachment is None:
            await self._abort_unknown(context, call, request_id)
        if self._enforcement is not None:
            try:
                await self._enforcement.enforce(attachment, patience(context))
            except NotEnforced as error:
                if error.stopping:
                    await abort_refused(context, Refusal(Reason.DRAINING, str(error), 1.0), request_id, None)
                reason, code = "POLICY_NOT_ENFORCED", grpc.StatusCode.UNAVAILABLE
                text = _cni_error(call.version, cni_answer.TRY_AGAIN_LATER, reason, str(error), request_id)
                log.warning("attachment.not_enforced", **_fields(call, request_id), message=str(error))
                await abort(context, code, reason, str(error), {}, request_id, text)
        return ipam_pb2.EnforceReply(request_id=request_id)

    async def Release(self, request: ipam_pb2.ReleaseRequest, context: Context) -> ipam_pb2.ReleaseReply:
        request_id = new_request_id()
        call = await understand(request, context, request_id, "DEL")
        try:
            attachment = await self._runner.release(request_id, call.key, recovered_key(call.key))
        except Refused as refused:
            await abort_refused(context, refused.refusal, request_id, None)
        reply = ipam_pb2.ReleaseReply(
            released=attachment is not None,
            host_ifname=host_link(call.key),
            request_id=request_id,
        )
        if attachment is not None:
            reply.address = packed(attachment)
            asyncio.get_running_loop().call_soon(_log_released, call, request_id, attachment)
        return reply

    async def Check(self, request: ipam_pb2.CheckRequest, context: Context) -> ipam_pb2.CheckReply:
        request_id = new_request_id()
        call = await understand(request, context, request_id, "CHECK")
        view = self._runner.view
        attachment = view.attachment(call.key) or view.attachment(recovered_key(call.key))
        if attachment is None:
            await self._abort_unknown(context, call, request_id)
        name = host_link(call.key)
        try:
            routes = await self._network.pod_routes()
            deaf = await self._network.not_forwarding()
        except HostError as error:
            await self._abort_broken(context, call, str(error), request_id)
        via = routes.get(attachment.address)
        if via != name:
            found = f"leads to {via}" if via else "is missing"
            message = f"the host route to {attachment.address} {found}, {name} is expected"
            await self._abort_broken(context, call, message, request_id)
        eni = self._runner.view.place_of(attachment.eni_id)
        if off := sorted(deaf & {name, eni.link if eni is not None else ""}):
            message = (
                f"the host does not forward what comes in by {', '.join(off)} (net.ipv4.conf.{off[0]}.forwarding)"
            )
            await self._abort_broken(context, call, message, request_id)
        if call.previous is not None:
            claimed = cni_answer.claimed_addresses(call.previous)
            if attachment.address not in claimed:
                message = f"{attachment.address} is held, but prevResult has {', '.join(claimed) or 'no address'}"
                await self._abort_broken(context, call, message, request_id)
        return ipam_pb2.CheckReply(
            address=packed(attachment), host_ifname=name, request_id=request_id, gateway=PACKED_GATEWAY
        )

    async def Collect(self, request: ipam_pb2.CollectRequest, context: Context) -> ipam_pb2.CollectReply:
        request_id = new_request_id()
        if request.WhichOneof("caller") == "valid":
            network = request.valid.network or cni.DEFAULT_NETWORK
            valid = frozenset((a.container_id, a.ifname) for a in request.valid.attachments)
        else:
            try:
                network, valid = cni.understand_collection(request.cni)
            except cni.InvalidCall as error:
                await abort_invalid(context, error, request_id, for_cni=True)
        try:
            collected = await self._runner.collect(request_id, network, valid)
        except Refused as refused:
            await abort_refused(context, refused.refusal, request_id, None)
        for attachment in collected:
            log.info("attachment.collected", key=str(attachment.key), ip=attachment.address, request_id=request_id)
        return ipam_pb2.CollectReply(released=len(collected), request_id=request_id)

    async def Ready(self, request: ipam_pb2.ReadyRequest, context: Context) -> ipam_pb2.ReadyReply:
        request_id = new_request_id()
        version = None
        if request.HasField("cni"):
            try:
                version = cni.understand_network(request.cni).version
            except cni.InvalidCall as error:
                await abort_invalid(context, error, request_id, for_cni=True)
        if (obstacle := self._serving.obstacle()) is not None:
            text = _cni_error(version, _STATUS_CODES[obstacle.reason], obstacle.reason, obstacle.message, request_id)
            code = grpc.StatusCode.UNAVAILABLE
            await abort(context, code, obstacle.reason, obstacle.message, {}, request_id, text)
        return ipam_pb2.ReadyReply(free=self._runner.view.counts().free, request_id=request_id)

    async def _abort_unknown(self, context: Context, call: cni.Call, request_id: str) -> NoReturn:
        message, reason = f"{call.key} holds no address", "UNKNOWN_ATTACHMENT"
        text = _cni_error(call.version, cni_answer.UNKNOWN_CONTAINER, reason, message, request_id)
        await abort(context, grpc.StatusCode.NOT_FOUND, reason, message, {}, request_id, text)

    async def _abort_broken(self, context: Context, call: cni.Call, message: str, request_id: str) -> NoReturn:
        reason, code = "ATTACHMENT_BROKEN", grpc.StatusCode.FAILED_PRECONDITION
        text = _cni_error(call.version, cni_answer.OWN_ERROR, reason, message, request_id)
        await abort(context, code, reason, message, {}, request_id, text)


async def understand(
    request: ipam_pb2.AllocateRequest | ipam_pb2.EnforceRequest | ipam_pb2.ReleaseRequest | ipam_pb2.CheckRequest,
    context: Context,
    request_id: str,
    verb: cni.Verb,
) -> cni.Call:
    caller = request.WhichOneof("caller")
    try:
        return cni.understand(
            request.cni if caller == "cni" else None,
            request.attachment if caller == "attachment" else None,
            verb,
        )
    except cni.InvalidCall as error:
        await abort_invalid(context, error, request_id, for_cni=caller == "cni")


async def refuse(context: Context, call: cni.Call, refusal: Refusal, request_id: str, started: float) -> NoReturn:
    """End an ADD that came at `started`, by the monotonic clock."""
    log.warning(
        "attachment.refused",
        **_fields(call, request_id),
        reason=refusal.reason,
        message=refusal.message,
        waited_ms=_ms_since(started),
    )
    error = None
    if call.version is not None:
        error = cni_answer.refusal_error(call.version, refusal, f"no address for {_who(call)}", request_id)
    await abort_refused(context, refusal, request_id, error)


async def abort_invalid(context: Context, error: cni.InvalidCall, request_id: str, *, for_cni: bool) -> NoReturn:
    log.warning("call.invalid", reason=error.reason, message=str(error), request_id=request_id)
    version = error.version if for_cni else None
    text = _cni_error(version, error.code, error.reason, str(error), request_id)
    await abort(context, grpc.StatusCode.INVALID_ARGUMENT, error.reason, str(error), {}, request_id, text)


def _cni_error(version: str | None, code: int, reason: str, message: str, request_id: str) -> str | None:
    """The CNI error object; None for a caller that is no CNI plugin."""
    if version is None:
        return None
    return cni_answer.error_object(version, code, message, f"reason={reason} request_id={request_id}")


def new_request_id() -> str:
    return f"{_PROCESS}-{next(_numbers)}"


def _log_granted(call: cni.Call, request_id: str, attachment: Attachment, waited_ms: float) -> None:
    log.info(
        "attachment.granted",
        **_fields(call, request_id),
        ip=attachment.address,
        eni=attachment.eni_id,
        waited_ms=waited_ms,
    )


def _log_released(call: cni.Call, request_id: str, attachment: Attachment) -> None:
    log.info("attachment.released", **_fields(call, request_id), ip=attachment.address)


def patience(context: Context) -> float:
    """Seconds that the caller waits for an answer, minus the time that the answer takes."""
    left = context.time_remaining()
    return PATIENCE if left is None else max(left - ANSWER, 0.0)


def _ms_since(started: float) -> float:
    return round((time.monotonic() - started) * 1000, 2)


def _who(call: cni.Call) -> str:
    owner = call.owner
    if owner.pod_name:
        return f"pod {owner.pod_namespace + '/' if owner.pod_namespace else ''}{owner.pod_name}"
    return f"container {call.key.container_id[:12]}"


def _fields(call: cni.Call, request_id: str) -> dict[str, str]:
    fields = {
        "network": call.key.network,
        "container": call.key.container_id[:12],
        "ifname": call.key.ifname,
        "request_id": request_id,
    }
    if call.owner.pod_name:
        fields["pod"] = f"{call.owner.pod_namespace}/{call.owner.pod_name}"
    return fields
