"""What a container runtime says, understood.

The plugin hands over CNI_* variables and standard input as they came; nothing of it is trusted. The facts are those
of the CNI specification (containernetworking/cni SPEC.md 1.1.0, sections 1 and 2) and of CONVENTIONS.md beside it,
which says what runtimeConfig, args and CNI_ARGS may hold. What it is told is spelled by `cni_answer`.
"""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from ipamd.api.v1 import ipam_pb2
from ipamd.pool.model import AttachmentKey, Owner

Verb = Literal["ADD", "CHECK", "DEL"]

SUPPORTED_VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
DEFAULT_NETWORK = "ipamd"

# SPEC.md, section "Error": codes with a meaning of their own.
INCOMPATIBLE_VERSION = 1
INVALID_ENVIRONMENT = 4
DECODING_FAILURE = 6
INVALID_CONFIG = 7

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*\Z")
_MAC = re.compile(r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}\Z")
MAX_CONFIG = 1 << 20

# A network configuration up to this size is remembered once it was understood: a runtime sends the same bytes with
# each call, unless it adds something about the pod.
_REMEMBERED_SIZE = 4096
_REMEMBERED = 64


class InvalidCall(Exception):
    """The call can't be understood; asking again can't help. `reason` is one of proto Reason's INVALID names."""

    def __init__(self, reason: str, code: int, message: str, version: str = "1.0.0") -> None:
        super().__init__(message)
        self.reason = reason
        self.code = code
        self.version = version


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the plugin or of another caller. `version` is the CNI version to answer in; None: no CNI caller.
    `mac` (6 bytes) and `address` are what the container's interface is to have, empty for whatever; `previous` is the
    result of the plugins before this one, or for CHECK that of the ADD; None for none. `dns` and `previous` are not
    to be changed.
    """

    key: AttachmentKey
    owner: Owner
    version: str | None
    dns: dict[str, Any]
    mac: bytes = b""
    address: str = ""
    previous: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Network:
    """What matters to an attachment in the network configuration; what of it only an ADD needs is not yet checked."""

    name: str
    version: str
    config: dict[str, Any]


def understand(cni: ipam_pb2.CniCall | None, attachment: ipam_pb2.Attachment | None, verb: Verb) -> Call:
    """Raises `InvalidCall`."""
    if cni is not None:
        return _from_runtime(cni, verb)
    if attachment is None:
        raise InvalidCall("INVALID_REQUEST", INVALID_ENVIRONMENT, "the request names no attachment")
    _check_identity(attachment.container_id, attachment.ifname, "container_id", "ifname", "1.0.0")
    network = attachment.network or DEFAULT_NETWORK
    if not _NAME.match(network):
        raise InvalidCall("INVALID_REQUEST", INVALID_ENVIRONMENT, f"network {network!r} is not a valid name")
    if verb == "ADD" and not attachment.netns.startswith("/"):
        raise InvalidCall("INVALID_REQUEST", INVALID_ENVIRONMENT, f"netns {attachment.netns!r} is not a path")
    owner = Owner(attachment.netns, attachment.pod_name, attachment.pod_namespace, attachment.pod_uid)
    return Call(AttachmentKey(network, attachment.container_id, attachment.ifname), owner, None, {})


def understand_network(cni: ipam_pb2.CniCall) -> Call:
    """For STATUS, which names a network but no container. Raises `InvalidCall`."""
    network = _understood(cni.config)
    return Call(AttachmentKey(network.name, "", ""), Owner(), network.version, {})


def understand_collection(cni: ipam_pb2.CniCall) -> tuple[str, frozenset[tuple[str, str]]]:
    """The network of a GC, and what it is to keep: (container id, ifname). Raises `InvalidCall`, also when nothing is
    said about that: it would mean to release everything."""
    network = _understood(cni.config)
    key = "cni.dev/valid-attachments"
    try:
        listed = network.config[key] or []  # Go writes null for an empty list
        return network.name, frozenset((item["containerID"], item["ifname"]) for item in listed)
    except (TypeError, KeyError):
        problem = "is not a list of {containerID, ifname}" if key in network.config else "is missing"
        raise InvalidCall("INVALID_CONFIG", INVALID_CONFIG, f"{key} {problem}", network.version) from None


def _from_runtime(cni: ipam_pb2.CniCall, verb: Verb) -> Call:
    network = (_remembered if len(cni.config) <= _REMEMBERED_SIZE else _understood)(cni.config)
    version = network.version
    _check_identity(cni.container_id, cni.ifname, "CNI_CONTAINERID", "CNI_IFNAME", version)
    if verb != "DEL" and not cni.netns.startswith("/"):
        problem = f"{cni.netns!r} is not a path" if cni.netns else "is missing"
        raise InvalidCall("INVALID_REQUEST", INVALID_ENVIRONMENT, f"CNI_NETNS {problem}", version)
    args = _args(cni.args, version)
    owner = Owner(
        cni.netns,
        args.get("K8S_POD_NAME", ""),
        args.get("K8S_POD_NAMESPACE", ""),
        args.get("K8S_POD_UID", ""),
    )
    key = AttachmentKey(network.name, cni.container_id, cni.ifname)
    if verb == "DEL":  # what only an ADD or a CHECK needs must not keep it
        return Call(key, owner, version, {})
    wishes = Wishes(network, args)
    return Call(key, owner, version, wishes.dns(), wishes.mac(), wishes.address(), wishes.previous())


def _understood(raw: bytes) -> Network:
    config = _decode(raw)
    version = _version(config)
    return Network(_network(config, version), version, config)


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
    # The rules of the kernel (dev_valid_name; to it % asks for a number) and of SPEC.md: no colon either.
    bad = ifname in ("", ".", "..") or len(ifname.encode()) > 15 or re.search(r"[\s/:%\x00]", ifname)
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


class Wishes:
    """What a runtime may ask for beyond an address. Runtimes spell the keys of runtimeConfig differently: containerd
    as its fields ("Servers"), podman in lower case. Each method raises `InvalidCall`."""

    def __init__(self, network: Network, args: dict[str, str]) -> None:
        self._network = network
        self._args = args
        self._runtime = _object(_member(network.config, "runtimeConfig"))
        self._labels = _object(_member(_object(_member(network.config, "args")), "cni"))

    def address(self) -> str:
        wanted = self._args.get("IP") or _member(self._runtime, "ips") or _member(self._labels, "ips")
        if not wanted:
            return ""
        try:
            (text,) = wanted if isinstance(wanted, list) else [wanted]
            return str(ipaddress.IPv4Interface(str(text)).ip)
        except ValueError:
            message = f"address {wanted!r} was asked for; an interface has one IPv4 address"
            raise self._invalid(message) from None

    def mac(self) -> bytes:
        wanted = self._args.get("MAC") or _member(self._runtime, "mac") or _member(self._labels, "mac")
        if not wanted:
            return b""
        if not isinstance(wanted, str) or not _MAC.match(wanted):
            raise self._invalid(f"MAC address {wanted!r} can't be read: it has to look like 02:00:0a:4d:00:05")
        mac = bytes.fromhex(re.sub("[:-]", "", wanted))
        if mac[0] & 1 or not any(mac):
            raise self._invalid(f"MAC address {wanted} is not that of a single interface")
        return mac

    def dns(self) -> dict[str, Any]:
        """As a result has it: the runtime's own wish before what stands in the configuration."""
        asked = _object(_member(self._runtime, "dns"))
        names = {"nameservers": "servers", "search": "searches", "options": "options"}
        found = {ours: value for ours, theirs in names.items() if isinstance(value := _member(asked, theirs), list)}
        return found or _object(self._network.config.get("dns"))

    def previous(self) -> dict[str, Any] | None:
        found = self._network.config.get("prevResult")
        if found is None:
            return None
        if not isinstance(found, dict):
            raise self._invalid(f"prevResult is no object but {type(found).__name__}")
        for name in ("interfaces", "ips", "routes"):
            listed = found.get(name)
            if listed is None:  # Go writes null for an empty list
                continue
            if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
                raise self._invalid(f"{name} of prevResult is not a list of objects")
        return found

    def _invalid(self, message: str) -> InvalidCall:
        return InvalidCall("INVALID_CONFIG", INVALID_CONFIG, message, self._network.version)


def _member(mapping: dict[str, Any], name: str) -> Any:
    """The value of that key, whatever its case."""
    return next((value for key, value in mapping.items() if key.lower() == name.lower()), None)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
