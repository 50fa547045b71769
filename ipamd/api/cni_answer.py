"""Results and errors for the container runtime, in the form of the CNI version that it speaks.

CNI specification (containernetworking/cni SPEC.md 1.1.0), section 5 "Result types".
"""

from __future__ import annotations

import json
from typing import Any

from ipamd.api.cni import INVALID_CONFIG, Call
from ipamd.api.errors import shortened
from ipamd.api.v1 import ipam_pb2
from ipamd.pool.model import Attachment, Reason, Refusal

# Section "Error": codes with a meaning of their own; 100 and above are the plugin's.
UNKNOWN_CONTAINER = 3
TRY_AGAIN_LATER = 11
PLUGIN_NOT_AVAILABLE = 50
LIMITED_CONNECTIVITY = 51
OWN_ERROR = 100

_compact = json.JSONEncoder(separators=(",", ":")).encode


def result(
    call: Call, plan: ipam_pb2.AllocateReply, attachment: Attachment, gateway: str, *, default_route: bool = True
) -> bytes:
    """The text that the plugin prints after ADD (section "ADD Success"): the previous plugins' result, and what this
    one adds."""
    previous = call.previous or {}
    interfaces: list[dict[str, Any]] = [
        *(previous.get("interfaces") or ()),
        {"name": plan.host_ifname, "mac": plan.host_mac.hex(":")},
        {"name": plan.ifname, "mac": plan.mac.hex(":"), "sandbox": plan.netns},
    ]
    if call.version == "1.1.0":
        for interface in interfaces[-2:]:
            interface["mtu"] = plan.mtu
    ip: dict[str, Any] = {
        "interface": len(interfaces) - 1,
        "address": f"{attachment.address}/{plan.prefix_length}",
        "gateway": gateway,
    }
    if call.version in ("0.3.0", "0.3.1", "0.4.0"):
        ip = {"version": "4", **ip}
    document = {
        "cniVersion": call.version,
        "interfaces": interfaces,
        "ips": [*(previous.get("ips") or ()), ip],
        "routes": [
            *(previous.get("routes") or ()),
            *([{"dst": "0.0.0.0/0", "gw": gateway}] if default_route else ()),
        ],
        "dns": call.dns or previous.get("dns") or {},
    }
    return _compact(document).encode()


def claimed_addresses(previous: dict[str, Any]) -> list[str]:
    """The addresses that a result names, without their prefix lengths."""
    return [str(ip.get("address", "")).partition("/")[0] for ip in previous.get("ips") or ()]


def refusal_error(version: str, refusal: Refusal, what: str, request_id: str) -> str:
    """The CNI error object for a refusal: code 11 when trying again can help, else 7 where the network configuration
    asks for what can't be had, and 100 for all else."""
    code = INVALID_CONFIG if refusal.reason is Reason.ADDRESS_UNAVAILABLE else OWN_ERROR
    if refusal.retry_after is not None:
        code = TRY_AGAIN_LATER
    details = f"reason={refusal.reason}"
    if refusal.retry_after is not None:
        details += f" retry_after={refusal.retry_after:.1f}s"
    for name, value in refusal.numbers:
        details += f" {name}={value}"
    return error_object(version, code, f"{what}: {refusal.message}", f"{details} request_id={request_id}")


def error_object(version: str, code: int, message: str, details: str) -> str:
    """ASCII only: it travels in gRPC metadata."""
    return json.dumps({"cniVersion": version, "code": code, "msg": shortened(message), "details": details})
