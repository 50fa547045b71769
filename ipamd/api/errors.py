"""How a refusal leaves the daemon: gRPC status, `google.rpc.ErrorInfo`, and the CNI error object for plugins."""

from __future__ import annotations

from typing import NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from ipamd.pool.model import Reason, Refusal
from ipamd.pool.quoting import cut, in_ascii

DOMAIN = "ipamd"

# Trailing metadata with the finished CNI error object. Left out when the plugin should try again by itself until
# its deadline: the daemon is only going away for a moment.
CNI_ERROR = "ipamd-cni-error"

# A reason -> the status of the call that it refuses.
CODES = {
    Reason.SUBNET_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.ENI_LIMIT: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.ADDRESS_LIMIT: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.POD_LIMIT: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.ALL_COOLING: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.THROTTLED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.NOT_AUTHORIZED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.SECURITY_GROUP_INVALID: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.REQUEST_REFUSED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.DRAINING: grpc.StatusCode.UNAVAILABLE,
    Reason.DRAINED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.CLOUD_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.LEDGER_UNWRITABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.NOT_READY: grpc.StatusCode.UNAVAILABLE,
    Reason.RELEASED: grpc.StatusCode.ABORTED,
    Reason.ADDRESS_UNAVAILABLE: grpc.StatusCode.FAILED_PRECONDITION,
}


# A message travels up to three times in one block of metadata, which gRPC limits to 8 KiB.
LONGEST_MESSAGE = 1000


def shortened(message: str) -> str:
    """In ASCII: gRPC writes three characters for each byte of another, and JSON six."""
    return cut(in_ascii(cut(message, LONGEST_MESSAGE)), LONGEST_MESSAGE)


async def abort_refused(
    context: grpc.aio.ServicerContext[object, object], refusal: Refusal, request_id: str, cni_error: str | None
) -> NoReturn:
    if refusal.reason is Reason.DRAINING:
        cni_error = None
    code = CODES[refusal.reason]
    await abort(context, code, refusal.reason, refusal.message, metadata(refusal), request_id, cni_error)


def metadata(refusal: Refusal) -> dict[str, str]:
    """Fields of ErrorInfo: the numbers, and `retry_after` in seconds if trying again can help."""
    told = {name: str(value) for name, value in refusal.numbers}
    if refusal.retry_after is not None:
        told["retry_after"] = f"{refusal.retry_after:.3f}"
    return told


async def abort(
    context: grpc.aio.ServicerContext[object, object],
    code: grpc.StatusCode,
    reason: str,
    message: str,
    metadata: dict[str, str],
    request_id: str,
    cni_error: str | None,
) -> NoReturn:
    message = shortened(message)
    info = ErrorInfo(reason=reason, domain=DOMAIN, metadata={**metadata, "request_id": request_id})
    detail = AnyMessage()
    detail.Pack(info)
    status = rpc_status.to_status(Status(code=code.value[0], message=message, details=[detail]))
    trailing = list(status.trailing_metadata)
    if cni_error is not None:
        trailing.append((CNI_ERROR, cni_error))
    await context.abort(code, message, trailing_metadata=tuple(trailing))
    raise AssertionError("abort returned")
