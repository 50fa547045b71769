"""What a code of EC2 means, in one table: the pool decides by class and never looks at EC2's own words.

Codes are those of "Error codes for the Amazon EC2 API"
(https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html).
"""

from __future__ import annotations

from ipamd.pool.model import CloudErrorKind

_KIND_OF_CODE: dict[str, CloudErrorKind] = {
    code: kind
    for kind, codes in {
        CloudErrorKind.THROTTLED: (
            "RequestLimitExceeded",
            "Throttling",
            "ThrottlingException",
            "RequestThrottled",
            "EC2ThrottledException",
            "BandwidthLimitExceeded",
            "SlowDown",
            "TooManyRequestsException",
        ),
        # Refused before anything was done, for lack of capacity to serve the API.
        CloudErrorKind.TRANSIENT: ("Unavailable", "ServiceUnavailable"),
        CloudErrorKind.SUBNET_FULL: ("InsufficientFreeAddressesInSubnet", "InsufficientCidrBlocks"),
        CloudErrorKind.ENI_ADDRESS_LIMIT: (
            "PrivateIpAddressLimitExceeded",
            "InvalidInterface.IpAddressLimitExceeded",
        ),
        CloudErrorKind.ATTACHMENT_LIMIT: ("AttachmentLimitExceeded",),
        CloudErrorKind.ACCOUNT_ENI_LIMIT: ("NetworkInterfaceLimitExceeded",),
        # These may appear yet: EC2 is eventually consistent.
        CloudErrorKind.NOT_FOUND: (
            "InvalidNetworkInterfaceID.NotFound",
            "InvalidNetworkInterface.NotFound",
            "InvalidAttachmentID.NotFound",
            "InvalidAttachment.NotFound",
            "InvalidInstanceID.NotFound",
        ),
        CloudErrorKind.INCORRECT_STATE: (
            "IncorrectState",
            "IncorrectInstanceState",
            "InvalidIPAddress.InUse",
            "InvalidNetworkInterface.InUse",
            "InvalidState",
            "DependencyViolation",
            "ConcurrentTagAccess",
        ),
        CloudErrorKind.NOT_AUTHORIZED: (
            "UnauthorizedOperation",
            "AuthFailure",
            "AccessDenied",
            "AccessDeniedException",
            "Blocked",
            "ExpiredToken",
            "ExpiredTokenException",
            "IncompleteSignature",
            "InvalidClientTokenId",
            "InvalidSecurity.RequestHasExpired",
            "InvalidToken",
            "MissingAuthenticationToken",
            "OptInRequired",
            "PendingVerification",
            "RequestExpired",
            "SignatureDoesNotMatch",
            "UnrecognizedClientException",
        ),
        CloudErrorKind.SECURITY_GROUP_INVALID: (
            "InvalidGroup.NotFound",
            "InvalidGroupId.Malformed",
            "InvalidSecurityGroupID.NotFound",
            "InvalidSecurityGroupID.Malformed",
            "InvalidSecurityGroupId.Malformed",
            "InvalidSecurityGroupId.NotFound",
            "SecurityGroupLimitExceeded",
            "SecurityGroupsPerInstanceLimitExceeded",
            "SecurityGroupsPerInterfaceLimitExceeded",
        ),
        # One of several in ec2.subnets: the others go on.
        CloudErrorKind.SUBNET_INVALID: (
            "InvalidSubnet",
            "InvalidSubnetID.Malformed",
            "InvalidSubnetID.NotFound",
            "ZonesMismatched",
        ),
    }.items()
    for code in codes
}

# A catch-all code that has one meaning in these calls as ipamd makes them.
_KIND_OF_ACTION_AND_CODE: dict[tuple[str, str], CloudErrorKind] = {
    # The device index is taken.
    ("AttachNetworkInterface", "InvalidParameterValue"): CloudErrorKind.INCORRECT_STATE,
    # A subnet that takes IPv6 only: nothing else that ipamd asks for is a combination.
    ("CreateNetworkInterface", "InvalidParameterCombination"): CloudErrorKind.SUBNET_INVALID,
    # The ENI is still attached.
    ("DeleteNetworkInterface", "InvalidParameterValue"): CloudErrorKind.INCORRECT_STATE,
    # An address that is no longer on the ENI.
    ("UnassignPrivateIpAddresses", "InvalidParameterValue"): CloudErrorKind.INCORRECT_STATE,
}


def is_mutating(action: str) -> bool:
    return not action.startswith("Describe")


def kind_of(action: str, code: str, status: int) -> CloudErrorKind:
    """The class of an error that EC2 answered with; `status` is HTTP's."""
    known = _KIND_OF_ACTION_AND_CODE.get((action, code)) or _KIND_OF_CODE.get(code)
    if known is not None:
        return known
    if status == 429:
        return CloudErrorKind.THROTTLED
    if status >= 500:
        # InternalError, a gateway's 502 or 504: it failed somewhere on the way, perhaps after the deed.
        return CloudErrorKind.UNKNOWN_OUTCOME if is_mutating(action) else CloudErrorKind.TRANSIENT
    return CloudErrorKind.INVALID
