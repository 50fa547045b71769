"""What an operator can do about an error of EC2: read from its code and, for people only, from its sentence.

The sentences of a denial: "Troubleshoot access denied error messages" in the IAM User Guide. They name the action
that is really denied, which for a creation may be ec2:CreateTags, and the kind of policy that denies it. Nothing is
decided by them: another wording costs an advice that is less exact.
"""

from __future__ import annotations

import re

DENIALS = ("UnauthorizedOperation", "AccessDenied", "AccessDeniedException")
ENCODED = "Encoded authorization failure message:"

_ACTION = re.compile(r"not authorized to perform:?\s+([a-z0-9-]+:[A-Za-z]+)")
_POLICY = re.compile(
    r"(?P<how>explicit deny in (?:an?|the) |because no )(?P<kind>identity-based polic|service control polic"
    r"|resource control polic|permissions boundar|VPC endpoint polic|session polic|resource-based polic)",
    re.I,
)

_ORGANISATION = "no policy of the role can help: ask who runs the AWS organisation"
# By kind of policy: where no statement allows, and where one denies.
_OF_POLICY = {
    "identity-based polic": (
        "allow {action} in the policy of this instance's role (ipamctl iam-policy prints it)",
        "a policy of this instance's role denies {action}: take that statement out; an Allow can't outweigh it",
    ),
    "service control polic": (
        f"no service control policy of the organisation allows {{action}}: {_ORGANISATION}",
        f"a service control policy of the organisation denies {{action}}: {_ORGANISATION}",
    ),
    "resource control polic": (
        f"no resource control policy of the organisation allows {{action}}: {_ORGANISATION}",
        f"a resource control policy of the organisation denies {{action}}: {_ORGANISATION}",
    ),
    "permissions boundar": (
        "the permissions boundary of this instance's role does not allow {action}: add it there, beside the policy",
        "the permissions boundary of this instance's role denies {action}: take that statement out",
    ),
    "vpc endpoint polic": (
        "the policy of the VPC endpoint by which this node reaches EC2 does not allow {action}: add it there",
        "the policy of the VPC endpoint by which this node reaches EC2 denies {action}: take that statement out",
    ),
    "session polic": (
        "the session policy that ipamd's credentials were issued with does not allow {action}: issue them without it",
        "the session policy that ipamd's credentials were issued with denies {action}: issue them without it",
    ),
    "resource-based polic": (
        "the policy of the resource does not allow {action}: ask its owner",
        "the policy of the resource denies {action}: ask its owner",
    ),
}

_CREDENTIALS = "check the credentials, or the instance's role, that ipamd runs with; ipamd looks for others by itself"
_CLOCK = "set this node's clock (chronyc tracking), or renew the credentials that ipamd runs with"
_SUBNETS = "check ec2.subnets in ipamd's settings: subnets of this VPC, in the zone of this instance"
_GROUPS = "check ec2.security_groups in ipamd's settings: groups of the VPC of the subnet"
_TAGS = "check ec2.tags in ipamd's settings"
_ENDPOINT = "check ec2.endpoint: what answers there does not know this call as EC2 does"
_QUOTA = "have the quota that EC2 names raised (Service Quotas)"
_ZONE = "name only subnets in the zone of this instance in ec2.subnets"

_OF_CODE = {
    "AuthFailure": _CREDENTIALS,
    "InvalidClientTokenId": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "MissingAuthenticationToken": _CREDENTIALS,
    "UnrecognizedClientException": _CREDENTIALS,
    "ExpiredToken": "renew the credentials that ipamd runs with; ipamd looks for others by itself",
    "ExpiredTokenException": "renew the credentials that ipamd runs with; ipamd looks for others by itself",
    "IncompleteSignature": "check the credentials that ipamd runs with, and what changes requests on the way to EC2",
    "SignatureDoesNotMatch": "check the credentials that ipamd runs with, and this node's clock",
    "InvalidSecurity.RequestHasExpired": _CLOCK,
    "RequestExpired": _CLOCK,
    "OptInRequired": "enable this region, or EC2, for the account",
    "PendingVerification": "AWS is still verifying this account: wait, or ask AWS Support",
    "Blocked": "AWS has blocked this account: ask AWS Support",
    "InvalidSubnet": _SUBNETS,
    "InvalidSubnetID.Malformed": _SUBNETS,
    "InvalidSubnetID.NotFound": _SUBNETS,
    "ZonesMismatched": _ZONE,
    "InvalidGroup.NotFound": _GROUPS,
    "InvalidGroupId.Malformed": _GROUPS,
    "InvalidSecurityGroupID.Malformed": _GROUPS,
    "InvalidSecurityGroupID.NotFound": _GROUPS,
    "InvalidSecurityGroupId.Malformed": _GROUPS,
    "SecurityGroupLimitExceeded": f"name fewer groups in ec2.security_groups, or {_QUOTA}",
    "SecurityGroupsPerInstanceLimitExceeded": f"name fewer groups in ec2.security_groups, or {_QUOTA}",
    "SecurityGroupsPerInterfaceLimitExceeded": "name fewer groups in ec2.security_groups, or have the quota "
    "'Security groups per network interface' raised",
    "NetworkInterfaceLimitExceeded": "have the account's quota 'Network interfaces per Region' raised (Service "
    "Quotas, Amazon VPC), or delete interfaces that nobody uses",
    "TagPolicyViolation": "a tag policy of the organisation refuses a tag: give it the value that EC2 names in "
    "ec2.tags, or ask who runs the organisation",
    "TagLimitExceeded": "name fewer tags in ec2.tags: EC2 takes 50 for an interface, ipamd's own among them",
    "InvalidTagKey.Malformed": _TAGS,
    "InvalidAction": _ENDPOINT,
    "InvalidQueryParameter": _ENDPOINT,
    "MissingAction": _ENDPOINT,
    "NoSuchVersion": _ENDPOINT,
    "UnknownParameter": _ENDPOINT,
    "UnsupportedOperation": _ENDPOINT,
}

# What a refusal without a telling code is about, by its sentence: the first that fits.
_ABOUT = tuple(
    (re.compile(pattern, re.I), remedy)
    for pattern, remedy in (
        (r"tag polic", _OF_CODE["TagPolicyViolation"]),
        (r"\btags?\b|\btag key|aws:", f"{_TAGS}: no key may begin with aws:, keys have 128 characters, values 256"),
        (r"ipv6[- ]?(native|only)|only ipv6", "name subnets with IPv4 in ec2.subnets: this one takes IPv6 only"),
        (r"security ?group|\bsg-", _GROUPS),
        (r"availability zone", _ZONE),
        (r"subnet", _SUBNETS),
    )
)  # fmt: skip


def remedy_of(action: str, code: str, message: str) -> str:
    """As the beginning of a sentence; empty where there is none. `action` and `code` as in the failure, `message`:
    EC2's whole sentence."""
    if code in DENIALS:
        return _of_denial(action, message)
    if (known := _OF_CODE.get(code)) is not None:
        return known
    if code.endswith("LimitExceeded") and not code.startswith(("Request", "PrivateIpAddress", "Attachment")):
        return _QUOTA
    if code.startswith(("Invalid", "Missing", "Unsupported")) and "NotFound" not in code:
        return next((remedy for pattern, remedy in _ABOUT if pattern.search(message)), "")
    return ""


def denied_action(message: str) -> str:
    """The action that EC2's sentence names, such as "ec2:CreateTags"; empty when it names none."""
    named = _ACTION.search(message)
    return named[1] if named else ""


def _of_denial(action: str, message: str) -> str:
    denied = denied_action(message) or f"ec2:{action}"
    policy = _POLICY.search(message)
    if policy is not None:
        allowed, forbidden = _OF_POLICY[policy["kind"].lower()]
        return (allowed if policy["how"].lower() == "because no " else forbidden).format(action=denied)
    if "explicit deny" in message:
        return f"some policy denies {denied} expressly: an Allow can't outweigh it. CloudTrail shows the denial"
    if denied == "ec2:CreateNetworkInterface" and ENCODED in message:
        denied += " and ec2:CreateTags"
    remedy = f"allow {denied} in the policy of this instance's role (ipamctl iam-policy prints it)"
    if ENCODED in message:
        remedy += "; aws sts decode-authorization-message reads EC2's encoded reason, which CloudTrail has"
    return remedy
