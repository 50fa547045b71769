"""What a container runtime says, understood; and what it is told, spelled as the CNI version it speaks wants it.

The plugin hands over CNI_* variables and standard input as they came; nothing of it is trusted. The facts are those
of the CNI specification (containernetworking/cni SPEC.md 1.1.0, sections 2 "Parameters" and 5 "Result types").
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ipamd.api.errors import shortened
from ipamd.api.v1 import ipam_pb2
from ipamd.pool.model import Attachment, AttachmentKey, Owner, Refusal

SUPPORTED_VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
DEFAULT_NETWORK = "ipamd"

# SPEC.md, section "Error": codes with a meaning of their own; 100 and above are the plugin's.
INCOMPATIBLE_VERSION = 1
UNKNOWN_CONTAINER = 3
INVALID_ENVIRONMENT = 4
DECODING_FAILURE = 6
INVALID_CONFIG = 7
TRY_AGAIN_LATER = 11
PLUGIN_NOT_AVAILABLE = 50
OWN_ERROR = 100

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*\Z")
MAX_CONFIG = 1 << 20

# A network configuration up to this size is remembered once it was understood: a runtime sends the same bytes with
# each call, unless it adds something about the pod.
_REMEMBERED_SIZE = 4096
_REMEMBERED = 64

_compact = json.JSONEncoder(separators=(",", ":")).encode


class InvalidCall(Exception):
    """The call can't be understood; asking again can't help. `reason` is one of proto Reason's INVALID names."""

    def __init__(self, reason: str, code: int, message: str, version: str = "1.0.0") -> None:
        super().__init__(message)
        self.reason = reason
        self.code = code
        self.version = version


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the plugin or of another caller. `version` is the CNI version to answer in; None: no CNI caller."""

    key: AttachmentKey
    owner: Owner
    version: str | None
    dns: dict[str, Any]
    valid: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Network:
    """What matters to an attachment in the network configuration. `dns` is not to be changed."""

    name: str
    version: str
    dns: dict[str, Any]


def understand(
    cni: ipam_pb2.CniCall | None, attachment: ipam_pb2.Attachment | None, *, needs_netns: bool = False
) -> Call:
    """Raises `InvalidCall`."""
    if cni is not None:
        return _from_runtime(cni, needs_netns)
    if attachment is None:
        raise InvalidCall("INVALID_REQUEST", INVALID_ENVIRONMENT, "the request names no attachment")
    _check_identity(attachment.container_id, attachment.ifname, "container_id", "ifname", "1.0.0")
    network = attachment.network or DEFAULT_NETWORK
    if not _NAME.match(network):
        raise InvalidCall("INVALID_REQUEST", INVALID_ENVIRONMENT, f"network {network!r} is not a valid name")
    if needs_netns and not attachment.netns.startswith("/"):
        raise InvalidCall("INVALID_REQUEST", INVALID_ENVIRONMENT, f"netns {attachment.netns!r} is not a path")
    owner = Owner(attachment.netns, attachment.pod_name, attachment.pod_namespace, attachment.pod_uid)
    return Call(AttachmentKey(network, attachment.container_id, attachment.ifname), owner, None, {})


def understand_network(cni: ipam_pb2.CniCall) -> Call:
    """For GC and STATUS, which name a network but no container. Raises `InvalidCall`."""
    config = _decode(cni.config)
    version = _version(config)
    return Call(AttachmentKey(_network(config, version), "", ""), Owner(), version, {}, _valid(config, version))


def _from_runtime(cni: ipam_pb2.CniCall, needs_netns: bool) -> Call:
    network = (_remembered if len(cni.config) <= _REMEMBERED_SIZE else _understood)(cni.config)
    version = network.version
    _check_identity(cni.container_id, cni.ifname, "CNI_CONTAINERID", "CNI_IFNAME", version)
    if needs_netns and not cni.netns.startswith("/"):
        problem = f"{cni.netns!r} is not a path" if cni.netns else "is missing"
        raise InvalidCall("INVALID_REQUEST", INVALID_ENVIRONMENT, f"CNI_NETNS {problem}", version)
    args = _args(cni.args, version)
    owner = Owner(
        cni.netns,
        args.get("K8S_POD_NAME", ""),
        args.get("K8S_POD_NAMESPACE", ""),
        args.get("K8S_POD_UID", ""),
    )
    return Call(AttachmentKey(network.name, cni.container_id, cni.ifname), owner, version, network.dns)


def _understood(raw: bytes) -> Network:
    config = _decode(raw)
    version = _version(config)
    dns = config.get("dns")
    return Network(_network(config, version), version, dns if isinstance(dns, dict) else {})


_remembered = lru_cache(_REMEMBERED)(_understood)


def _decode(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_CONFIG:
        raise InvalidCall("INVALID_CONFIG", DECODING_FAILURE, f"the network configuration has {len(raw)} bytes")
    if not raw.strip():
        raise InvalidCall("INVALID_CONFIG", DECODING_FAILURE, "no network configuration on standard input")
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError) as error:
        message = f"the network configuration is not JSON: {error}"
        raise InvalidCall("INVALID_CONFIG", DECODING_FAILURE, message) from None
    if not isinstance(config, dict):
        kind = type(config).__name__
        raise InvalidCall("INVALID_CONFIG", DECODING_FAILURE, f"the network configuration is no object but {kind}")
    return config


def _version(config: dict[str, Any]) -> str:
    version = config.get("cniVersion")
    if not isinstance(version, str):
        raise InvalidCall("INVALID_CONFIG", INVALID_CONFIG, "cniVersion is missing in the network configuration")
    if version not in SUPPORTED_VERSIONS:
        message = f"cniVersion {version!r} is not supported; use one of {', '.join(SUPPORTED_VERSIONS)}"
        raise InvalidCall("INCOMPATIBLE_VERSION", INCOMPATIBLE_VERSION, message)
    return version


def _network(config: dict[str, Any], version: str) -> str:
    name = config.get("name")
    if not isinstance(name, str) or not _NAME.match(name):
        message = f"name {name!r} in the network configuration is missing or not a valid network name"
        raise InvalidCall("INVALID_CONFIG", INVALID_CONFIG, message, version)
    return name


def _check_identity(container_id: str, ifname: str, id_field: str, ifname_field: str, version: str) -> None:
    if not _NAME.match(container_id) or len(container_id) > 256:
        problem = f"{container_id!r} is not a valid container id" if container_id else "is missing"
        raise InvalidCall("INVALID_REQUEST", INVALID_ENVIRONMENT, f"{id_field} {problem}", version)
    # The kernel's own rules (dev_valid_name) and SPEC.md's: no colon either.
    bad = ifname in ("", ".", "..") or len(ifname.encode()) > 15 or re.search(r"[\s/:\x00]", ifname)
    if bad:
        problem = f"{ifname!r} is not a valid interface name" if ifname else "is missing"
        raise InvalidCall("INVALID_REQUEST", INVALID_ENVIRONMENT, f"{ifname_field} {problem}", version)


def _args(text: str, version: str) -> dict[str, str]:
    args = {}
    for pair in filter(None, text.split(";")):
        key, separator, value = pair.partition("=")
        if not separator:
            message = f"CNI_ARGS has {pair!r} where KEY=VALUE is expected"
            raise InvalidCall("INVALID_REQUEST", INVALID_ENVIRONMENT, message, version)
        args[key] = value
    return args


def _valid(config: dict[str, Any], version: str) -> frozenset[tuple[str, str]]:
    listed = config.get("cni.dev/valid-attachments", [])
    try:
        return frozenset((item["containerID"], item["ifname"]) for item in listed)
    except (TypeError, KeyError):
        message = "cni.dev/valid-attachments is not a list of {containerID, ifname}"
        raise InvalidCall("INVALID_CONFIG", INVALID_CONFIG, message, version) from None


def result(call: Call, plan: ipam_pb2.AllocateReply, attachment: Attachment, gateway: str) -> bytes:
    """The text that the plugin prints after ADD: SPEC.md, section "ADD Success"."""
    ip: dict[str, Any] = {"interface": 1, "address": f"{attachment.address}/{plan.prefix_length}", "gateway": gateway}
    if call.version in ("0.3.0", "0.3.1", "0.4.0"):
        ip = {"version": "4", **ip}
    interfaces: list[dict[str, Any]] = [
        {"name": plan.host_ifname, "mac": _mac(plan.host_mac)},
        {"name": plan.ifname, "mac": _mac(plan.mac), "sandbox": plan.netns},
    ]
    if call.version == "1.1.0":
        for interface in interfaces:
            interface["mtu"] = plan.mtu
    document = {
        "cniVersion": call.version,
        "interfaces": interfaces,
        "ips": [ip],
        "routes": [{"dst": "0.0.0.0/0", "gw": gateway}],
        "dns": call.dns,
    }
    return _compact(document).encode()


def _mac(raw: bytes) -> str:
    return raw.hex(":")


def refusal_error(version: str, refusal: Refusal, what: str, request_id: str) -> str:
    """The CNI error object for a refusal: code 11 when trying again can help."""
    code = OWN_ERROR if refusal.retry_after is None else TRY_AGAIN_LATER
    details = f"reason={refusal.reason}"
    if refusal.retry_after is not None:
        details += f" retry_after={refusal.retry_after:.1f}s"
    for name, value in refusal.numbers:
        details += f" {name}={value}"
    return error_object(version, code, f"{what}: {refusal.message}", f"{details} request_id={request_id}")


def error_object(version: str, code: int, message: str, details: str) -> str:
    """ASCII only: it travels in gRPC metadata."""
    return json.dumps({"cniVersion": version, "code": code, "msg": shortened(message), "details": details})
