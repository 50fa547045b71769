"""What a failed call of EC2 means. An error with a code has its class from the table in `kinds`.

Failures without a code, such as a broken connection, are classed by one question: can the call have taken effect?
Only a "no" makes it TRANSIENT, since a mutation that is repeated by mistake costs addresses.
"""

from __future__ import annotations

import re

import aiohttp
from botocore.exceptions import (  # type: ignore[import-untyped]
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    ProxyConnectionError,
    SSLError,
)
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]

from ipamd.cloud.kinds import is_mutating, kind_of
from ipamd.cloud.port import CloudError
from ipamd.cloud.remedies import ENCODED, remedy_of
from ipamd.cloud.replies import UnreadableReply
from ipamd.cloud.wire import NotEc2, TooLong
from ipamd.pool.model import CloudErrorKind, CloudFailure
from ipamd.pool.quoting import cut

_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")

_REMEDY_CONNECTION = "check this node's way to EC2: route, NAT or VPC endpoint, DNS, security group, and ec2.endpoint"
_REMEDY_TIME = "check this node's way to EC2, or raise ec2.timeout"
_REMEDY_REPLY = "check ec2.endpoint; if it is EC2's own, please report this. ipamd asks again"
_REMEDY_ANOTHER = "check ec2.endpoint, and what answers in EC2's place (proxy, load balancer, captive portal)"
_REMEDY_SETTINGS = "check the settings under [ec2] and the AWS configuration of this machine"


# Where a proxy may be at fault.
_OF_THE_WAY = (_REMEDY_CONNECTION, _REMEDY_TIME, _REMEDY_ANOTHER)


def cloud_error(action: str, error: Exception, proxy: str = "") -> CloudError:
    """The error of an EC2 call that raised this, whatever it is. `proxy`: in words, how the call goes by one."""
    if isinstance(error, ClientError):
        return CloudError(_answered(action, error))
    kind, remedy = _unanswered(action, error)
    if proxy and remedy in _OF_THE_WAY:
        remedy = f"{proxy}; {remedy}"
    message = f"{_words(error)}; {remedy}"
    return CloudError(CloudFailure(kind, action, type(error).__name__, message, advice=as_advice(remedy)))


def as_advice(remedy: str) -> str:
    """A remedy as a sentence of its own."""
    return f"{remedy[:1].upper()}{remedy[1:]}." if remedy else ""


def _answered(action: str, error: ClientError) -> CloudFailure:
    described = error.response.get("Error", {})
    code, message = str(described.get("Code", "")), described.get("Message") or "no message"
    if _CODE.fullmatch(code) is None:
        code, message = "Unknown", f"{cut(code, 80) or 'an error without a code'}: {message}"
    metadata = error.response.get("ResponseMetadata", {})
    status = metadata.get("HTTPStatusCode", 400)
    whole = str(message)
    # A kilobyte for `aws sts decode-authorization-message`; CloudTrail has it, too.
    words = cut(whole.partition(ENCODED)[0].rstrip(), 600)
    remedy = remedy_of(action, code, whole)
    return CloudFailure(
        kind_of(action, code, status),
        action,
        code,
        f"{remedy}; EC2 says: {words}" if remedy else words,
        str(metadata.get("RequestId", "")),
        as_advice(remedy),
    )


def _unanswered(action: str, error: Exception) -> tuple[CloudErrorKind, str]:
    unknown = CloudErrorKind.UNKNOWN_OUTCOME if is_mutating(action) else CloudErrorKind.TRANSIENT
    match error:
        case ConnectTimeoutError() | ProxyConnectionError() | SSLError():
            return CloudErrorKind.TRANSIENT, _REMEDY_CONNECTION
        case EndpointConnectionError():
            # aiobotocore also raises it for a reset in the middle of a call; aiohttp's own error tells them apart.
            connecting = isinstance(error.kwargs.get("error"), aiohttp.ClientConnectorError)
            return (CloudErrorKind.TRANSIENT if connecting else unknown), _REMEDY_CONNECTION
        case ResponseParserError():
            return unknown, _REMEDY_REPLY
        case HTTPClientError() | aiohttp.ClientError():
            return unknown, _REMEDY_CONNECTION
        case TimeoutError():
            return unknown, _REMEDY_TIME
        case UnreadableReply():
            return unknown, _REMEDY_REPLY
        case TooLong():
            return unknown, _REMEDY_ANOTHER
        case NotEc2():
            return _kind_of_another(action, error.status, unknown), _REMEDY_ANOTHER
        case BotoCoreError():
            return CloudErrorKind.INVALID, _REMEDY_SETTINGS
        case _:
            # The parser's, as a rule; what was wrong with the call itself was found before it was sent.
            return unknown, _REMEDY_REPLY


def _kind_of_another(action: str, status: int, unknown: CloudErrorKind) -> CloudErrorKind:
    """Of an answer that is not EC2's: who refuses (3xx, 4xx) has passed nothing on."""
    if 300 <= status < 500 and status != 429:
        return CloudErrorKind.TRANSIENT
    return unknown if status < 300 else kind_of(action, str(status), status)


def _words(error: Exception) -> str:
    if type(error) is TimeoutError:
        return "no answer in time"
    # A parser's error ends with the whole of what it could not parse.
    words = " ".join(cut(str(error), 400).split())
    if isinstance(error, (TypeError, LookupError, AttributeError)):  # botocore's parser at what it does not expect
        return f"the answer has not the form of EC2's ({type(error).__name__}: {words})"
    return words or type(error).__name__
