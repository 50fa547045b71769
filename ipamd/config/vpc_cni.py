"""The environment names of the AWS VPC CNI, understood: who comes from there need not learn ours first.

Names, defaults and meanings: README.md of github.com/aws/amazon-vpc-cni-k8s, "CNI Configuration Variables", and its
code where that says more. docs/vpc-cni-settings.md is the table of all of them.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ipamd.pool.quoting import cut


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A variable whose value asks for something that ipamd has no setting for; `meaning` says what to do."""

    variable: str
    value: str
    meaning: str


@dataclass(slots=True)
class Translation:
    """`values`: dotted setting -> (value, the variable that it comes from). `unneeded` are variables that ask for
    nothing that ipamd would do otherwise; `chained`, those that "cni.chain" comes from, which names the first."""

    values: dict[str, tuple[Any, str]] = field(default_factory=dict)
    unsupported: tuple[Unsupported, ...] = ()
    unneeded: tuple[str, ...] = ()
    chained: tuple[str, ...] = ()
    errors: list[str] = field(default_factory=list)


class _Unreadable(Exception):
    """The variable does not take this value; the message says what it takes."""


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise _Unreadable("must be a whole number") from None


def _truth(text: str) -> bool:
    # Go's strconv.ParseBool, which the VPC CNI uses.
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise _Unreadable("must be true or false")


def _at_least_one(text: str) -> int | None:
    number = _number(text)
    return number if number >= 1 else None  # "-1" and "0" stand for no limit


def _log_level(text: str) -> str:
    levels = {"debug": "debug", "info": "info", "warn": "warning", "error": "error", "fatal": "error"}
    try:
        return levels[text.lower()]
    except KeyError:
        raise _Unreadable(f"must be one of {', '.join(levels)}") from None


def _tags(text: str) -> dict[str, Any]:
    try:
        tags = json.loads(text)
    except (ValueError, RecursionError):
        tags = None
    if not isinstance(tags, dict):
        raise _Unreadable('must be JSON, for instance {"team": "net"}')
    return tags


def _networks(text: str) -> list[str]:
    """Go's ParseCIDR, which they use, takes an address with a length for its network: 10.1.2.3/8 is 10.0.0.0/8."""
    try:
        found = [ipaddress.IPv4Network(cidr.strip(), strict=False) for cidr in text.split(",") if cidr.strip()]
    except ValueError as error:
        raise _Unreadable(f"must be IPv4 networks with commas between them ({error})") from None
    return [str(network) for network in found]


# Variables that have a setting of ours to themselves: its name, and how the value is read. None: leaves the default.
COUNTERPARTS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "MAX_ENI": ("pool.max_enis", _at_least_one),
    "IP_COOLDOWN_PERIOD": ("pool.cooldown", _number),
    "AWS_VPC_ENI_MTU": ("host.mtu", _number),
    "POD_MTU": ("host.pod_mtu", _number),
    "AWS_VPC_K8S_CNI_EXTERNALSNAT": ("host.snat", lambda text: not _truth(text)),
    "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS": (
        "host.snat_exclude",
        _networks,
    ),
    "AWS_VPC_K8S_CNI_LOGLEVEL": ("log.level", _log_level),
    "ADDITIONAL_ENI_TAGS": ("ec2.tags", _tags),
    "CLUSTER_NAME": ("ec2.cluster", str),
    "AWS_EC2_ENDPOINT": ("ec2.endpoint", str),
    "DISABLE_METRICS": ("metrics.listen", lambda text: "" if _truth(text) else None),
}

# These decide together: WARM_IP_TARGET and MINIMUM_IP_TARGET put WARM_ENI_TARGET out of force.
TARGETS = ("WARM_IP_TARGET", "MINIMUM_IP_TARGET", "WARM_ENI_TARGET")

# Each of these adds a plugin to the end of their list, after portmap, in this order (cmd/aws-vpc-cni/main.go).
CHAINED: dict[str, str | dict[str, Any]] = {
    "ENABLE_BANDWIDTH_PLUGIN": "bandwidth",
    "DISABLE_POD_V6": {
        "type": "tuning",
        "sysctl": {f"net.ipv6.conf.{name}.disable_ipv6": "1" for name in ("all", "default", "lo")},
    },
}

_ON, _OFF = ("true", "1", "t"), ("false", "0", "f")
_ANY = ("",)

# Variables without a counterpart: the values (in lower case; an empty text: all) that ask for something, and what
# that means here.
WITHOUT: dict[str, tuple[tuple[str, ...], str]] = {
    "ENABLE_PREFIX_DELEGATION": (
        _ON, "ipamd gives single addresses: a node holds fewer pods than with prefixes (ipamctl capacity TYPE)",
    ),
    "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG": (
        _ON, "there are no ENIConfigs: name the subnets in ec2.subnets and the groups in ec2.security_groups; pods "
        "also get addresses of the primary ENI",
    ),
    "ENABLE_SUBNET_DISCOVERY": (
        _ON, "subnets are not found by their tags: name further ones in ec2.subnets",
    ),
    "ENABLE_POD_ENI": (_ON, "there are no security groups for single pods: those of the node's ENIs hold for all"),
    "ENABLE_IMDS_ONLY_MODE": (_ON, "ipamd needs EC2's API (ipamctl iam-policy); to keep it small: pool.max_enis = 1"),
    "DISABLE_NETWORK_RESOURCE_PROVISIONING": (
        _ON, "ipamd assigns addresses by itself; pool.max_enis = 1 keeps it from making ENIs",
    ),
    "AWS_MANAGE_ENIS_NON_SCHEDULABLE": (
        _OFF, "ipamd knows nothing of cordoned nodes: ipamctl drain gives back what is free",
    ),
    "ENABLE_MULTI_NIC": (_ON, "ipamd uses the first network card"),
    "ANNOTATE_POD_IP": (_ON, "ipamd does not talk to Kubernetes: pods get no annotation"),
    "NETWORK_POLICY_ENFORCING_MODE": (
        ("strict", "standard"), "set policy.mode if AWS's policy agent runs beside ipamd: docs/network-policy.md",
    ),
    "ENABLE_V6_EGRESS": (_ON, "pods get IPv4 addresses only"),
    "AWS_VPC_CNI_NODE_PORT_SUPPORT": (_OFF, "replies of NodePort flows always go back by the primary ENI"),
    "AWS_EXTERNAL_SERVICE_CIDRS": (_ANY, "there is no rule for these: what leaves the VPC goes by the main table"),
    "AWS_VPC_K8S_CNI_RANDOMIZESNAT": (("hashrandom", "none"), "source ports of SNAT are always fully random"),
    "AWS_VPC_K8S_CNI_VETHPREFIX": (
        _ANY, "host interfaces of pods are `ipm` and twelve digits of the container's; Calico finds no such names",
    ),
    "AWS_VPC_K8S_CNI_CONNMARK": (_ANY, "marks are set in host.mark_mask and host.main_mark"),
    "DISABLE_LEAKED_ENI_CLEANUP": (_ON, "without ec2.cluster only this node's own leftovers are removed"),
    "MANAGE_UNTAGGED_ENI": (_OFF, "ipamd uses the primary ENI and those that carry its own tag, and no others"),
}  # fmt: skip

# Variables without a meaning here: Kubernetes' own, log files, ports that ipamd does not open.
UNNEEDED = frozenset(
    (
        "AWS_VPC_K8S_CNI_BACKING_STORE", "AWS_VPC_K8S_CNI_CONFIGURE_RPFILTER", "AWS_VPC_K8S_CNI_LOG_FILE",
        "AWS_VPC_K8S_EGRESS_V4_PLUGIN_LOG_FILE", "AWS_VPC_K8S_EGRESS_V6_PLUGIN_LOG_FILE",
        "AWS_VPC_K8S_PLUGIN_LOG_FILE", "AWS_VPC_K8S_PLUGIN_LOG_LEVEL", "CLUSTER_ENDPOINT",
        "DISABLE_INTROSPECTION", "DISABLE_TCP_EARLY_DEMUX", "ENABLE_IPv4", "ENABLE_NFTABLES",
        "ENABLE_V4_EGRESS", "ENI_CONFIG_ANNOTATION_DEF", "ENI_CONFIG_LABEL_DEF", "HOST_CNI_BIN_PATH",
        "HOST_CNI_CONFDIR_PATH", "HTTP_TIMEOUT", "INTROSPECTION_BIND_ADDRESS", "MY_NODE_NAME", "MY_POD_NAME",
        "POD_SECURITY_GROUP_ENFORCING_MODE", "VPC_CNI_VERSION", "VPC_ID", "WARM_PREFIX_TARGET",
    )
)  # fmt: skip

KNOWN = frozenset((*COUNTERPARTS, *TARGETS, *CHAINED, *WITHOUT, *UNNEEDED, "ENABLE_IPv6"))


def translate(environ: Mapping[str, str]) -> Translation:
    """Empty variables count as not set, as with the VPC CNI."""
    given = {name: text.strip() for name, text in environ.items() if name in KNOWN and text.strip()}
    found = Translation()
    for name, (setting, read) in COUNTERPARTS.items():
        if name not in given:
            continue
        try:
            value = read(given[name])
        except _Unreadable as problem:
            found.errors.append(f"environment {name} = {cut(given[name], 200)}: {problem}")
            continue
        if value is not None:
            found.values[setting] = (value, name)
    reserved = _without_reserved_tags(found)
    _translate_targets(given, found)
    _translate_chain(given, found)
    if given.get("ENABLE_IPv6", "").lower() in _ON:
        found.errors.append(
            f"environment ENABLE_IPv6 = {given['ENABLE_IPv6']}: ipamd gives IPv4 addresses, and can't serve an IPv6 "
            "cluster"
        )
    found.unsupported = (*reserved, *_unsupported(given))
    asked = {each.variable for each in found.unsupported} | {variable for _, variable in found.values.values()}
    found.unneeded = tuple(name for name in given if name not in asked and name not in found.chained)
    return found


def _without_reserved_tags(found: Translation) -> tuple[Unsupported, ...]:
    """Their code passes over keys with k8s.amazonaws.com, by which it knows its own ENIs (README,
    ADDITIONAL_ENI_TAGS), and EC2 takes none that begins with aws:."""
    tags, name = found.values.get("ec2.tags", ({}, ""))
    reserved = [key for key in tags if "k8s.amazonaws.com" in key.lower() or key.lower().startswith("aws:")]
    if not reserved:
        return ()
    left = {key: value for key, value in tags.items() if key not in reserved}
    if left:
        found.values["ec2.tags"] = (left, name)
    else:
        del found.values["ec2.tags"]
    meaning = "reserved, so left out: the VPC CNI passes over keys with k8s.amazonaws.com, EC2 takes none with aws:"
    return (Unsupported(name, ", ".join(reserved), meaning),)


def _translate_targets(given: Mapping[str, str], found: Translation) -> None:
    """As in their README: the warm ENIs count only without the other two; a minimum alone keeps nothing warm."""
    numbers: dict[str, int] = {}
    for name in TARGETS:
        if name in given:
            try:
                numbers[name] = _number(given[name])
            except _Unreadable as problem:
                found.errors.append(f"environment {name} = {cut(given[name], 200)}: {problem}")
    warm, minimum = max(numbers.get("WARM_IP_TARGET", 0), 0), max(numbers.get("MINIMUM_IP_TARGET", 0), 0)
    if minimum:
        found.values["pool.minimum_ips"] = (minimum, "MINIMUM_IP_TARGET")
    if warm or minimum:
        found.values["pool.warm_ips"] = (warm, "WARM_IP_TARGET" if warm else "MINIMUM_IP_TARGET")
    elif "WARM_ENI_TARGET" in numbers:
        enis = numbers["WARM_ENI_TARGET"]
        enis = 1 if enis < 0 else enis
        found.values["pool.warm_enis" if enis else "pool.warm_ips"] = (enis, "WARM_ENI_TARGET")


def _translate_chain(given: Mapping[str, str], found: Translation) -> None:
    on = []
    for name in CHAINED:
        try:
            if name in given and _truth(given[name]):
                on.append(name)
        except _Unreadable as problem:
            found.errors.append(f"environment {name} = {cut(given[name], 200)}: {problem}")
    if on:
        found.values["cni.chain"] = (["portmap", *(CHAINED[name] for name in on)], on[0])
        found.chained = tuple(on)


def _unsupported(given: Mapping[str, str]) -> Iterator[Unsupported]:
    for name, (values, meaning) in WITHOUT.items():
        if name in given and (given[name].lower() in values or values == _ANY):
            yield Unsupported(name, given[name], meaning)
