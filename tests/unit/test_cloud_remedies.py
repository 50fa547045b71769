"""What an operator should do about an error of EC2."""

from __future__ import annotations

import pytest
from botocore.exceptions import ClientError

from ipamd.cloud.errors import cloud_error, kind_of
from ipamd.cloud.partitions import examples, partition_of
from ipamd.cloud.remedies import remedy_of
from ipamd.pool.model import CloudErrorKind as Kind
from ipamd.pool.model import CloudFailure

CREATE = "CreateNetworkInterface"
USER = (
    "You are not authorized to perform this operation. User: arn:aws:sts::123456789012:assumed-role/node/i-0123 is "
    "not authorized to perform: {action} on resource: arn:aws:ec2:eu-central-1:123456789012:network-interface/* {why}"
)
ENCODED = " Encoded authorization failure message: " + "xyz" * 500


def failure(code: str, message: str, action: str = CREATE, status: int = 400) -> CloudFailure:
    response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return cloud_error(action, ClientError(response, action)).failure


@pytest.mark.parametrize(
    ("why", "expected"),
    [
        ("because no identity-based policy allows the {action} action.", "allow {action} in the policy of this"),
        ("with an explicit deny in an identity-based policy", "a policy of this instance's role denies {action}"),
        ("with an explicit deny in a service control policy", "ask who runs the AWS organisation"),
        ("with an explicit deny in a service control policy: arn:aws:organizations::1:p/x", "ask who runs the AWS"),
        ("because no service control policy allows the {action} action", "ask who runs the AWS organisation"),
        ("with an explicit deny in a resource control policy", "resource control policy of the organisation denies"),
        ("because no permissions boundary allows the {action} action", "does not allow {action}: add it there"),
        (
            "with an explicit deny in a permissions boundary",
            "the permissions boundary of this instance's role denies",
        ),
        ("because no VPC endpoint policy allows the {action} action", "VPC endpoint by which this node reaches EC2"),
        ("with an explicit deny in a VPC endpoint policy", "VPC endpoint by which this node reaches EC2 denies"),
        ("because no session policy allows the {action} action", "the session policy that ipamd's credentials"),
        ("with an explicit deny", "some policy denies {action} expressly"),
    ],
)
@pytest.mark.parametrize("action", ["ec2:CreateNetworkInterface", "ec2:CreateTags"])
def test_a_denial_names_the_action_and_the_policy_that_denies(action: str, why: str, expected: str) -> None:
    message = USER.format(action=action, why=why.format(action=action)) + ENCODED
    found = failure("UnauthorizedOperation", message, status=403)
    assert found.kind is Kind.NOT_AUTHORIZED
    assert expected.format(action=action) in found.message
    assert action in found.message.partition("EC2 says")[0]
    assert found.advice[0].isupper() and found.advice.endswith(".") and action in found.advice
    assert "xyzxyz" not in found.message


def test_an_encoded_denial_of_a_creation_may_mean_its_tags() -> None:
    found = failure("UnauthorizedOperation", "You are not authorized to perform this operation." + ENCODED)
    assert "ec2:CreateNetworkInterface and ec2:CreateTags" in found.advice
    assert "aws sts decode-authorization-message" in found.advice


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        ("TagPolicyViolation", "The tag policy does not allow the specified value.", "ec2.tags"),
        ("InvalidParameterValue", "Tag keys starting with 'aws:' are reserved for internal use", "ec2.tags"),
        ("TagLimitExceeded", "x", "EC2 takes 50"),
        ("InvalidTagKey.Malformed", "x", "ec2.tags"),
        ("InvalidParameterCombination", "You cannot specify IPv4 addresses for an IPv6 native subnet", "IPv6 only"),
        ("InvalidSubnetID.NotFound", "x", "ec2.subnets"),
        ("InvalidParameterValue", "The subnet is in another VPC", "ec2.subnets"),
        (
            "InvalidParameter",
            "Security group sg-1 and subnet subnet-1 belong to different networks.",
            "security_groups",
        ),
        ("SecurityGroupLimitExceeded", "x", "fewer groups"),
        ("SecurityGroupsPerInterfaceLimitExceeded", "x", "Security groups per network interface"),
        ("NetworkInterfaceLimitExceeded", "x", "Network interfaces per Region"),
        ("SomethingLimitExceeded", "x", "Service Quotas"),
        ("ZonesMismatched", "x", "zone of this instance"),
        ("InvalidAction", "x", "ec2.endpoint"),
        ("OptInRequired", "x", "Enable this region"),
        ("PendingVerification", "x", "AWS Support"),
        ("SignatureDoesNotMatch", "x", "clock"),
    ],
)
def test_a_refusal_is_answered_by_its_parameter(code: str, message: str, expected: str) -> None:
    assert expected in failure(code, message).advice


@pytest.mark.parametrize("code", ["RequestLimitExceeded", "InternalError", "InvalidNetworkInterfaceID.NotFound"])
def test_what_no_operator_mends_has_no_remedy(code: str) -> None:
    assert remedy_of(CREATE, code, "The subnet is what it is.") == ""


# Client errors of the page "Error codes for the Amazon EC2 API" that calls about interfaces, addresses, instances and
# subnets may meet, by class.
PUBLISHED = {
    Kind.THROTTLED: "RequestLimitExceeded",
    Kind.TRANSIENT: "ServiceUnavailable Unavailable",
    Kind.UNKNOWN_OUTCOME: "InternalError InternalFailure InternalServerError ServerInternal InsufficientCapacity",
    Kind.SUBNET_FULL: "InsufficientFreeAddressesInSubnet InsufficientCidrBlocks",
    Kind.ENI_ADDRESS_LIMIT: "PrivateIpAddressLimitExceeded InvalidInterface.IpAddressLimitExceeded",
    Kind.ATTACHMENT_LIMIT: "AttachmentLimitExceeded",
    Kind.ACCOUNT_ENI_LIMIT: "NetworkInterfaceLimitExceeded",
    Kind.NOT_FOUND: "InvalidNetworkInterfaceID.NotFound InvalidNetworkInterface.NotFound InvalidInstanceID.NotFound "
    "InvalidAttachmentID.NotFound InvalidAttachment.NotFound",
    Kind.INCORRECT_STATE: "IncorrectState IncorrectInstanceState InvalidState InvalidNetworkInterface.InUse "
    "InvalidIPAddress.InUse DependencyViolation ConcurrentTagAccess",
    Kind.NOT_AUTHORIZED: "UnauthorizedOperation AuthFailure Blocked IncompleteSignature InvalidClientTokenId "
    "InvalidSecurity.RequestHasExpired MissingAuthenticationToken OptInRequired PendingVerification RequestExpired",
    Kind.SECURITY_GROUP_INVALID: "InvalidGroup.NotFound InvalidGroupId.Malformed InvalidSecurityGroupID.NotFound "
    "InvalidSecurityGroupId.Malformed SecurityGroupLimitExceeded SecurityGroupsPerInterfaceLimitExceeded "
    "SecurityGroupsPerInstanceLimitExceeded",
    Kind.SUBNET_INVALID: "InvalidSubnet InvalidSubnetID.NotFound ZonesMismatched",
    Kind.INVALID: "IdempotentParameterMismatch InvalidParameter InvalidParameterValue InvalidAction MissingParameter "
    "InvalidTagKey.Malformed TagLimitExceeded TagPolicyViolation OperationNotPermitted UnsupportedOperation "
    "UnknownParameter ResourceCountExceeded InvalidInstanceID.Malformed InvalidNetworkInterfaceId.Malformed",
}


@pytest.mark.parametrize(
    ("code", "kind"), [(code, kind) for kind, codes in PUBLISHED.items() for code in codes.split()]
)
def test_published_codes_have_their_class(code: str, kind: Kind) -> None:
    assert kind_of(CREATE, code, 500 if kind is Kind.UNKNOWN_OUTCOME else 400) is kind


@pytest.mark.parametrize(
    ("region", "partition"),
    [
        ("eu-central-1", "aws"),
        ("eu-future-9", "aws"),
        ("cn-northwest-1", "aws-cn"),
        ("us-gov-west-1", "aws-us-gov"),
        ("us-iso-east-1", "aws-iso"),
        ("us-isob-east-1", "aws-iso-b"),
        ("eu-isoe-west-1", "aws-iso-e"),
        ("us-isof-south-1", "aws-iso-f"),
        ("eusc-de-east-1", "aws-eusc"),
        ("here", ""),
        ("", ""),
        ("eu-central-1a", ""),
    ],
)
def test_the_partition_of_a_region(region: str, partition: str) -> None:
    assert partition_of(region) == partition


def test_each_partition_has_an_example_that_is_its_own() -> None:
    assert {partition_of(region) for region in examples().values()} == set(examples()) >= {"aws", "aws-eusc"}
