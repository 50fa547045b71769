"""What a container runtime says, understood.

The plugin hands over CNI_* variables and standard input as they came; nothing of it is trusted. The facts are those
of the CNI specification (containernetworking/cni SPEC.md 1.1.0, sections 1 and 2) and of CONVENTIONS.md beside it,
which says what runtimeConfig, args and CNI_ARGS may hold. `cni_answer` writes the answers.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from ipamd.api import decodable
from ipamd.api.v1 import ipam_pb2
from ipamd.pool.model import AttachmentKey, Owner
from ipamd.pool.quoting import cut, quoted, shown

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
LONGEST_NAME = 256  # of a container or a network
MAX_CONFIG = 1 << 20
MAX_ARGS = 64 << 10
LONGEST_PATH = 4095  # PATH_MAX less the final zero, linux/limits.h

# Of what is only shown: names in Kubernetes have 253 characters at most, and a UID 36.
LONGEST_LABEL = 253

# A network configuration up to this size is remembered once it was understood: a runtime sends the same bytes with
# each call, unless it adds something about the pod.
_REMEMBERED_SIZE = 4096
_REMEMBERED = 64


class InvalidCall(Exception):
    """The call can't be understood; asking again can't help. `reason` is one of proto Reason's INVALID names."""

    def __init__(self, reason: str, code: int, message: str, version: str = "1.0.0") -> None:
        super().__init__(cut(message))
        self.reason = reason
        self.code = code
        self.version = version


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the plugin or of another caller. `version` is the CNI version to answer in; None: no CNI caller.
    `mac` (6 bytes) and `address` are what the container's interface is to have, empty for whatever; `previous` is the
    result of the plugins before this one, or for CHECK that of the ADD; None for none. `dns` and `previous` are not
    to be changed. `blocks_releases`: the runtime makes no other call while this one lasts.
    """

    key: AttachmentKey
    owner: Owner
    version: str | None
    dns: dict[str, Any]
    mac: bytes = b""
    address: str = ""
    previous: dict[str, Any] | None = None
    blocks_releases: bool = False


@dataclass(frozen=True, slots=True)
class Network:
    """The part of the network configuration that concerns an attachment. Fields that only an ADD needs are not
    checked yet."""

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
    if not _is_name(network):
        raise InvalidCall("INVALID_REQUEST", INVALID_ENVIRONMENT, f"network {quoted(network)} is not a valid name")
    _check_netns(attachment.netns, "netns", verb == "ADD", "1.0.0")
    owner = _owner(attachment.netns, attachment.pod_name, attachment.pod_namespace, attachment.pod_uid)
    return Call(AttachmentKey(network, attachment.container_id, attachment.ifname), owner, None, {})


def understand_network(cni: ipam_pb2.CniCall) -> Call:
    """For STATUS, which names a network but no container. Raises `InvalidCall`."""
    network = _understood(cni.config)
    return Call(AttachmentKey(network.name, "", ""), Owner(), network.version, {})


def understand_collection(cni: ipam_pb2.CniCall) -> tuple[str, frozenset[tuple[str, str]]]:
    """The network of a GC, and what it must keep: (container id, ifname). Raises `InvalidCall`, also if the call
    lists nothing to keep: that would release everything."""
    network = _understood(cni.config)
    key = "cni.dev/valid-attachments"
    try:
        listed = network.config[key] or []  # Go writes null for an empty list
        pairs = frozenset((item["containerID"], item["ifname"]) for item in listed)
        if not all(isinstance(word, str) for pair in pairs for word in pair):
            raise TypeError
        return network.name, pairs
    except (TypeError, KeyError):
        problem = "is not a list of {containerID, ifname}" if key in network.config else "is missing"
        raise InvalidCall("INVALID_CONFIG", INVALID_CONFIG, f"{key} {problem}", network.version) from None


def _from_runtime(cni: ipam_pb2.CniCall, verb: Verb) -> Call:
    network = (_remembered if len(cni.config) <= _REMEMBERED_SIZE else _understood)(cni.config)
    version = network.version
    _check_identity(cni.container_id, cni.ifname, "CNI_CONTAINERID", "CNI_IFNAME", version)
    _check_netns(cni.netns, "CNI_NETNS", verb != "DEL", version)
    args = _args(cni.args, version, lenient=verb == "DEL")
    names = (args.get(f"K8S_POD_{name}", "") for name in ("NAME", "NAMESPACE", "UID"))
    owner = _owner(cni.netns, *names)
    key = AttachmentKey(network.name, cni.container_id, cni.ifname)
    if verb == "DEL":  # fields that only an ADD or a CHECK needs must not fail a DEL
        return Call(key, owner, version, {})
    wishes = Wishes(network, args)
    # The kubelet's runtimes name the pod's namespace, and serialise calls per pod. podman and nerdctl do not name it,
    # and hold one lock for all their containers during an ADD (n.lock in its CNI backend; .cni-concurrency.lock).
    alone = not owner.pod_namespace
    return Call(key, owner, version, wishes.dns(), wishes.mac(), wishes.address(), wishes.previous(), alone)


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
        config = decodable.parse(raw)
    except ValueError as error:
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
        message = f"cniVersion {quoted(version)} is not supported; use one of {', '.join(SUPPORTED_VERSIONS)}"
        raise InvalidCall("INCOMPATIBLE_VERSION", INCOMPATIBLE_VERSION, message)
    return version


def _network(config: dict[str, Any], version: str) -> str:
    name = config.get("name")
    if not isinstance(name, str) or not _is_name(name):
        message = f"name {quoted(name)} in the network configuration is missing or not a valid network name"
        raise InvalidCall("INVALID_CONFIG", INVALID_CONFIG, message, version)
    return name


def _is_name(text: str) -> bool:
    return len(text) <= LONGEST_NAME and _NAME.match(text) is not None


def _check_identity(container_id: str, ifname: str, id_field: str, ifname_field: str, version: str) -> None:
    if not _is_name(container_id):
        problem = f"{quoted(container_id)} is not a valid container id" if container_id else "is missing"
        raise InvalidCall("INVALID_REQUEST", INVALID_ENVIRONMENT, f"{id_field} {problem}", version)
    if not _is_ifname(ifname):
        problem = f"{quoted(ifname)} is not a valid interface name" if ifname else "is missing"
        raise InvalidCall("INVALID_REQUEST", INVALID_ENVIRONMENT, f"{ifname_field} {problem}", version)


def _is_ifname(text: str) -> bool:
    """The rules of the kernel (dev_valid_name, for which the byte a0 is a blank; % asks for a number; `all` and
    `default` are folders of /proc/sys/net) and of SPEC.md, which excludes the colon; and nothing that does not
    print."""
    encoded = text.encode()
    odd = re.search(r"[\s/:%]", text) is not None or b"\xa0" in encoded or not text.isprintable()
    return text not in ("", ".", "..", "all", "default") and len(encoded) <= 15 and not odd


def _check_netns(path: str, field: str, required: bool, version: str) -> None:
    """Where the path is not required it is only kept, and checked later."""
    if required and not path:
        problem = "is missing" if field.isupper() else "'' is not a path"
    elif (path or required) and not path.startswith("/"):
        problem = f"{quoted(path)} is not a path" if required else ""
    elif not path.isprintable() or len(path.encode()) > LONGEST_PATH:
        problem = f"{quoted(path)} is no path that a namespace can have" if required else ""
    else:
        problem = ""
    if problem:
        raise InvalidCall("INVALID_REQUEST", INVALID_ENVIRONMENT, f"{field} {problem}", version)


def _owner(netns: str, *labels: str) -> Owner:
    return Owner(netns, *(shown(cut(label, LONGEST_LABEL)) for label in labels))


def _args(text: str, version: str, *, lenient: bool) -> dict[str, str]:
    """`lenient`: skip what can't be parsed."""
    if len(text) > MAX_ARGS and not lenient:
        raise InvalidCall("INVALID_REQUEST", INVALID_ENVIRONMENT, f"CNI_ARGS has {len(text)} characters", version)
    args = {}
    for pair in filter(None, text[:MAX_ARGS].split(";")):
        key, separator, value = pair.partition("=")
        if separator:
            args[key] = value
        elif not lenient:
            message = f"CNI_ARGS has {quoted(pair)} where KEY=VALUE is expected"
            raise InvalidCall("INVALID_REQUEST", INVALID_ENVIRONMENT, message, version)
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
            message = f"address {quoted(wanted)} was asked for; an interface has one IPv4 address"
            raise self._invalid(message) from None

    def mac(self) -> bytes:
        wanted = self._args.get("MAC") or _member(self._runtime, "mac") or _member(self._labels, "mac")
        if not wanted:
            return b""
        if not isinstance(wanted, str) or not _MAC.match(wanted):
            raise self._invalid(f"MAC address {quoted(wanted)} can't be read: it has to look like 02:00:0a:4d:00:05")
        mac = bytes.fromhex(re.sub("[:-]", "", wanted))
        if mac[0] & 1 or not any(mac):
            raise self._invalid(f"MAC address {wanted} is not that of a single interface")
        return mac

    def dns(self) -> dict[str, Any]:
        """As a result has it: the runtime's own wish before what stands in the configuration."""
        asked = _object(_member(self._runtime, "dns"))
        names = {"nameservers": "servers", "search": "searches", "options": "options"}
        found = {ours: value for ours, theirs in names.items() if isinstance(value := _member(asked, theirs), list)}
        configured = found or _object(self._network.config.get("dns"))
        if problem := decodable.fault(configured, decodable.DNS, "dns"):
            raise self._invalid(f"{problem}, so that the runtime could not read it in a result")
        return configured

    def previous(self) -> dict[str, Any] | None:
        found = self._network.config.get("prevResult")
        if found is None:
            return None
        if problem := decodable.fault(found, decodable.RESULT, "prevResult"):
            raise self._invalid(f"{problem}, so that the runtime could not read it in a result")
        if decodable.is_too_large(found):
            raise self._invalid(f"prevResult has more than {decodable.LARGEST >> 10} KiB")
        checked: dict[str, Any] = found
        return checked

    def _invalid(self, message: str) -> InvalidCall:
        return InvalidCall("INVALID_CONFIG", INVALID_CONFIG, message, self._network.version)


def _member(mapping: dict[str, Any], name: str) -> Any:
    """The value of the key, in any case of its letters."""
    return next((value for key, value in mapping.items() if key.lower() == name.lower()), None)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
