"""Which class each failure of EC2 belongs to, and that the message says what to do."""

from __future__ import annotations

import ssl

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    InvalidConfigError,
    ParamValidationError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
)
from botocore.parsers import ResponseParserError

from ipamd.cloud.errors import cloud_error, kind_of
from ipamd.pool.model import CloudErrorKind as Kind
from ipamd.pool.model import CloudFailure

URL = "https://ec2.eu-central-1.amazonaws.com/"
KEY = ConnectionKey("ec2.eu-central-1.amazonaws.com", 443, True, True, None, None, None)
CREATE, DESCRIBE = "CreateNetworkInterface", "DescribeNetworkInterfaces"


@pytest.mark.parametrize(
    ("action", "code", "status", "kind"),
    [
        (CREATE, "RequestLimitExceeded", 503, Kind.THROTTLED),
        (CREATE, "Throttling", 400, Kind.THROTTLED),
        (CREATE, "TooMuch", 429, Kind.THROTTLED),
        (CREATE, "Unavailable", 503, Kind.TRANSIENT),
        (CREATE, "ServiceUnavailable", 503, Kind.TRANSIENT),
        (CREATE, "InternalError", 500, Kind.UNKNOWN_OUTCOME),
        (DESCRIBE, "InternalError", 500, Kind.TRANSIENT),
        (CREATE, "502", 502, Kind.UNKNOWN_OUTCOME),
        (DESCRIBE, "504", 504, Kind.TRANSIENT),
        (CREATE, "InsufficientFreeAddressesInSubnet", 400, Kind.SUBNET_FULL),
        ("AssignPrivateIpAddresses", "InsufficientCidrBlocks", 400, Kind.SUBNET_FULL),
        ("AssignPrivateIpAddresses", "PrivateIpAddressLimitExceeded", 400, Kind.ENI_ADDRESS_LIMIT),
        ("AttachNetworkInterface", "AttachmentLimitExceeded", 400, Kind.ATTACHMENT_LIMIT),
        (CREATE, "NetworkInterfaceLimitExceeded", 400, Kind.ACCOUNT_ENI_LIMIT),
        ("DeleteNetworkInterface", "InvalidNetworkInterfaceID.NotFound", 400, Kind.NOT_FOUND),
        ("DetachNetworkInterface", "InvalidAttachmentID.NotFound", 400, Kind.NOT_FOUND),
        ("AttachNetworkInterface", "InvalidInstanceID.NotFound", 400, Kind.NOT_FOUND),
        (CREATE, "InvalidSubnetID.NotFound", 400, Kind.SUBNET_INVALID),
        ("AttachNetworkInterface", "IncorrectState", 400, Kind.INCORRECT_STATE),
        ("AttachNetworkInterface", "InvalidNetworkInterface.InUse", 400, Kind.INCORRECT_STATE),
        ("AttachNetworkInterface", "InvalidParameterValue", 400, Kind.INCORRECT_STATE),
        ("DeleteNetworkInterface", "InvalidParameterValue", 400, Kind.INCORRECT_STATE),
        ("UnassignPrivateIpAddresses", "InvalidParameterValue", 400, Kind.INCORRECT_STATE),
        (CREATE, "InvalidParameterValue", 400, Kind.INVALID),
        (CREATE, "UnauthorizedOperation", 403, Kind.NOT_AUTHORIZED),
        (CREATE, "AuthFailure", 401, Kind.NOT_AUTHORIZED),
        (CREATE, "RequestExpired", 400, Kind.NOT_AUTHORIZED),
        (CREATE, "InvalidGroup.NotFound", 400, Kind.SECURITY_GROUP_INVALID),
        (CREATE, "InvalidSecurityGroupID.NotFound", 400, Kind.SECURITY_GROUP_INVALID),
        (CREATE, "SecurityGroupsPerInterfaceLimitExceeded", 400, Kind.SECURITY_GROUP_INVALID),
        (CREATE, "IdempotentParameterMismatch", 400, Kind.INVALID),
        ("DetachNetworkInterface", "OperationNotPermitted", 400, Kind.INVALID),
        (CREATE, "SomethingNew", 400, Kind.INVALID),
    ],
)
def test_codes(action: str, code: str, status: int, kind: Kind) -> None:
    assert kind_of(action, code, status) is kind


def answered(code: str, message: str, status: int = 400) -> ClientError:
    metadata = {"HTTPStatusCode": status, "RequestId": "1b3c-77"}
    response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": metadata}
    return ClientError(response, CREATE)


def test_ec2s_words_are_kept() -> None:
    failure = cloud_error(CREATE, answered("InsufficientFreeAddressesInSubnet", "The subnet is full.")).failure
    assert failure.action == CREATE
    assert failure.code == "InsufficientFreeAddressesInSubnet"
    assert failure.ec2_request == "1b3c-77"
    assert failure.message == "The subnet is full."


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("UnauthorizedOperation", "allow ec2:CreateNetworkInterface in the policy"),
        ("AuthFailure", "check the credentials"),
        ("RequestExpired", "clock"),
        ("InvalidSecurityGroupID.NotFound", "ec2.security_groups"),
        ("InvalidSubnetID.NotFound", "ec2.subnets"),
    ],
)
def test_what_an_operator_can_mend_is_said_first(code: str, remedy: str) -> None:
    message = cloud_error(CREATE, answered(code, "No.")).failure.message
    assert remedy in message
    assert message.endswith("EC2 says: No.")


def test_an_error_without_a_body_has_a_class_all_the_same() -> None:
    failure = cloud_error(CREATE, ClientError({"ResponseMetadata": {"HTTPStatusCode": 502}}, CREATE)).failure
    assert failure.kind is Kind.UNKNOWN_OUTCOME
    assert failure.code and failure.message


def test_an_error_without_a_code_is_said_to_have_none() -> None:
    assert cloud_error(CREATE, answered("", "Odd.")).failure.message == "an error without a code: Odd."


@pytest.mark.parametrize("error", [TypeError("'NoneType' object is not iterable"), KeyError("Code")])
def test_what_the_parser_stumbles_over_is_named(error: Exception) -> None:
    message = cloud_error(CREATE, error).failure.message
    assert message.startswith(f"the answer has not the form of EC2's ({type(error).__name__}: ")


def reached(error: Exception) -> EndpointConnectionError:
    return EndpointConnectionError(endpoint_url=URL, error=error)


REFUSED = aiohttp.ClientConnectorError(KEY, ConnectionRefusedError(111, "refused"))
DNS = aiohttp.ClientConnectorDNSError(KEY, OSError(-2, "Name or service not known"))
RESET = aiohttp.ClientOSError(104, "Connection reset by peer")


@pytest.mark.parametrize(
    ("error", "mutating", "reading"),
    [
        (reached(REFUSED), Kind.TRANSIENT, Kind.TRANSIENT),
        (reached(DNS), Kind.TRANSIENT, Kind.TRANSIENT),
        (ConnectTimeoutError(endpoint_url=URL), Kind.TRANSIENT, Kind.TRANSIENT),
        (ProxyConnectionError(proxy_url="http://proxy:3128", error=REFUSED), Kind.TRANSIENT, Kind.TRANSIENT),
        (SSLError(endpoint_url=URL, error=ssl.SSLError("bad certificate")), Kind.TRANSIENT, Kind.TRANSIENT),
        (reached(RESET), Kind.UNKNOWN_OUTCOME, Kind.TRANSIENT),
        (ReadTimeoutError(endpoint_url=URL), Kind.UNKNOWN_OUTCOME, Kind.TRANSIENT),
        (ConnectionClosedError(endpoint_url=URL), Kind.UNKNOWN_OUTCOME, Kind.TRANSIENT),
        (HTTPClientError(error=ValueError("half a header")), Kind.UNKNOWN_OUTCOME, Kind.TRANSIENT),
        (ResponseParserError("not XML"), Kind.UNKNOWN_OUTCOME, Kind.TRANSIENT),
        (aiohttp.ServerDisconnectedError(), Kind.UNKNOWN_OUTCOME, Kind.TRANSIENT),
        (TimeoutError(), Kind.UNKNOWN_OUTCOME, Kind.TRANSIENT),
        (InvalidConfigError(error_msg="Invalid endpoint: x"), Kind.INVALID, Kind.INVALID),
        (ParamValidationError(report="x"), Kind.INVALID, Kind.INVALID),
        (BotoCoreError(), Kind.INVALID, Kind.INVALID),
    ],
)
def test_unanswered_failures_are_classed_by_possible_effect(error: Exception, mutating: Kind, reading: Kind) -> None:
    assert cloud_error(CREATE, error).failure.kind is mutating
    failure = cloud_error(DESCRIBE, error).failure
    assert failure.kind is reading
    assert failure.code == type(error).__name__
    assert "check" in failure.message


def test_what_ec2_says_is_kept_short() -> None:
    failure = CloudFailure(Kind.INVALID, "AssignPrivateIpAddresses", "C" * 5000, "m" * (3 << 20), "r" * 5000)
    assert len(failure.message) < 1100 and len(failure.code) < 200 and len(failure.ec2_request) < 200
