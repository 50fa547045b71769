"""Checks the form of settings: a value that can't work later is refused when it is read, or normalised if its meaning
is plain.

Each function returns the value in use, or raises ValueError with what is allowed.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# sun_path of unix(7), without its final zero.
LONGEST_SOCKET_PATH = 107
LONGEST_PATH = 4095  # PATH_MAX, without its final zero

# A resource takes 50 tags, and ipamd sets up to five itself (docs.aws.amazon.com, "Tag your Amazon EC2 resources").
MOST_TAGS = 45
_LONGEST_TAG_KEY, _LONGEST_TAG_VALUE = 128, 256
# By these it knows its ENIs, and those that it finds left over (amazon-vpc-cni-k8s, pkg/awsutils).
_OF_THE_VPC_CNI = frozenset(
    (
        "node.k8s.amazonaws.com/instance_id",
        "node.k8s.amazonaws.com/createdat",
        "cluster.k8s.amazonaws.com/name",
    )
)
MOST_GROUPS = 16  # per ENI, at the highest quota

# Words of nft's language that can't name a table: those of nftables 1.0.6, found by trying, and of later versions.
_NFT_WORDS = frozenset(
    """
    accept add ah all and arp auto-merge bridge cgroup chain comment comp compound constant continue counter cpu
    create ct day dccp define delete describe destroy device devices dnat drop dst dup dynamic ecn element
    elements esp ether exists expires export exthdr fib flags flow flowtable flush frag fwd gc-interval geneve
    get goto gre gretap handle hbh hook hour ibriport ibrname icmp icmpv6 igmp iif iifgroup iifname iiftype
    import include index inet insert interval ip ip6 ipsec jhash jump last limit list log lshift map mark
    masquerade meta meter mh missing monitor netdev nftrace not notrack numgen obriport obrname offload oif
    oifgroup oifname oiftype or osf pkttype policy position priority queue quota random redefine redirect reject
    rename replace reset return rshift rt rt0 rt2 rtclassid rule ruleset sctp secmark set size skgid skuid snat
    socket srh symhash synproxy table tcp th time timeout tproxy tunnel type typeof udp udplite undefine update
    vlan vmap vxlan xfrm xt
    """.split()  # noqa: SIM905 - a list of 150 words would fill two pages
)

_KERNELS_OWN = ("/proc", "/sys", "/dev")

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
# "latest" or a date (docs.aws.amazon.com, "Get the available versions of the instance metadata"), and what follows.
_METADATA_VERSION = re.compile(r"/+(latest|1\.0|20\d\d-\d\d-\d\d)(/.*)?$")
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*\.?")


def cidr(text: str) -> str:
    try:
        network = ipaddress.IPv4Network(text, strict=False)
    except ValueError:
        raise ValueError("must be an IPv4 network such as 10.0.0.0/8") from None
    if ipaddress.IPv4Interface(text).ip != network.network_address:
        raise ValueError(f"{text} has host bits set; the network is {network}")
    return str(network)


def plain_path(value: Any) -> Any:
    """A socket as containerd and kubelet write it, unix:///run/x.sock, is the path /run/x.sock."""
    if isinstance(value, str) and value.startswith("unix:"):
        return value.removeprefix("unix:").removeprefix("//")
    return value


def absolute(path: Path) -> Path:
    text = str(path)
    if not path.is_absolute() or path == Path("/"):
        form = "without a scheme" if _SCHEME.match(text) else "that begins with /"
        raise ValueError(f"must be an absolute path {form}")
    if not text.isprintable():
        raise ValueError("must have no control characters")
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ValueError(f"must have at most {LONGEST_PATH} bytes")
    return path


def storage(path: Path) -> Path:
    """A path where files can be made: not below the kernel's own file systems."""
    absolute(path)
    place = Path(os.path.normpath(path))
    if any(place.is_relative_to(own) for own in _KERNELS_OWN) and not place.is_relative_to("/dev/shm"):
        raise ValueError(f"must not be below {', '.join(_KERNELS_OWN)}, where no files can be made")
    return path


def socket(path: Path) -> Path:
    storage(path)
    if (length := len(os.fsencode(path))) > LONGEST_SOCKET_PATH:
        raise ValueError(f"must have at most {LONGEST_SOCKET_PATH} bytes, as a Unix socket's path (it has {length})")
    return path


def listen(text: str) -> str:
    """ "address:port", or nothing. No name: to look one up can take long, and the daemon would stand still."""
    if not text:
        return text
    if "://" in text:
        raise ValueError('must be "address:port" without a scheme, or "" for nowhere')
    host, separator, port = text.rpartition(":")
    if not (separator and _is_port(port)):
        raise ValueError('must be "address:port", or "" for nowhere')
    if not host:
        raise ValueError(f'must name an address: "127.0.0.1:{port}", or "0.0.0.0:{port}" for all')
    if host == "localhost":
        return f"127.0.0.1:{port}"
    if not _is_address(host):
        raise ValueError(
            'must be "address:port" with an IP address, in brackets if it is an IPv6 one, or "" for nowhere'
        )
    return text


def endpoint(text: str) -> str:
    """A URL, or nothing."""
    return url(text) if text else text


def metadata(text: str) -> str:
    """The service's URL, also where it is given with the version of what is read there, as in
    http://169.254.169.254/latest/meta-data: that is added to it."""
    parts = urlsplit(url(text))
    path = _METADATA_VERSION.sub("", parts.path)
    return parts._replace(path=path).geturl() if path != parts.path else text


def collector(text: str) -> str:
    """The collector's URL, also where it is given with the path for traces, which is added to it."""
    return endpoint(text).rstrip("/").removesuffix("/v1/traces") if text else text


def url(text: str) -> str:
    wanted = "must be a URL such as http://10.0.0.1:8080"
    if not text.isprintable() or " " in text:
        raise ValueError(f"{wanted}, without spaces")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{wanted} ({error})") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{wanted}, beginning with http:// or https://")
    host = parts.hostname or ""
    if not _is_host(f"[{host}]" if ":" in host else host) or port == 0:
        raise ValueError(f"{wanted}, with a host")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"{wanted}, without user, query and fragment")
    return text


def identifier(text: str, prefix: str) -> str:
    if not re.fullmatch(rf"{prefix}-[0-9A-Za-z]+", text):
        raise ValueError(f"must be an id, {prefix}-...")
    return text


def subnet(text: str) -> str:
    return identifier(text, "subnet")


def security_group(text: str) -> str:
    return identifier(text, "sg")


def distinct(values: list[str]) -> list[str]:
    return list(dict.fromkeys(values))


def tags(values: dict[str, str]) -> dict[str, str]:
    for key, value in values.items():
        if not key or len(key) > _LONGEST_TAG_KEY or len(value) > _LONGEST_TAG_VALUE:
            raise ValueError(f"a tag's key has 1 to {_LONGEST_TAG_KEY} characters, its value at most "
                             f"{_LONGEST_TAG_VALUE} ({key[:40]!r} has {len(key)} and {len(value)})")  # fmt: skip
        if not (key + value).isprintable():
            raise ValueError(f"a tag has no control characters ({key[:40]!r})")
        if key.lower().startswith("aws:"):
            raise ValueError(f"keys that begin with aws: are reserved by AWS ({key[:40]})")
        if key.lower() in _OF_THE_VPC_CNI:
            raise ValueError(f"{key} makes the AWS VPC CNI take the ENI for its own, and delete it")
        if key.lower().startswith("ipamd.io/"):
            raise ValueError(f"keys that begin with ipamd.io/ are ipamd's own ({key[:40]})")
    if len(values) > MOST_TAGS:
        raise ValueError(f"must be at most {MOST_TAGS} tags: EC2 takes 50, ipamd's own among them")
    return values


def chain(value: Any) -> Any:
    """Plugin names and tables of JSON values. The node finds out which of them work."""
    if isinstance(value, list) and not all(isinstance(each, str | dict) for each in value):
        raise ValueError('must be a list of names and tables, for instance ["portmap", { type = "tuning" }]')
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ValueError("must hold nothing but texts, finite numbers, true, false, lists and tables") from None
    return value


def group(name: str) -> str:
    if not name.isprintable() or set(name) & set(" :,/"):
        raise ValueError("must be the name of a group")
    return name


def nft_table(name: str) -> str:
    if name in _NFT_WORDS:
        raise ValueError("must be no word of nft's own language")
    return name


def mtu(number: int) -> int:
    """576 is the least that every IPv4 host takes (RFC 791)."""
    if 0 < number < 576:
        raise ValueError("must be 0, or at least 576")
    return number


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) < 65536


def _is_address(text: str) -> bool:
    """An IPv6 address stands in brackets."""
    try:
        if text.startswith("[") and text.endswith("]"):
            ipaddress.IPv6Address(text[1:-1])
        else:
            ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _is_host(text: str) -> bool:
    if _is_address(text):
        return True
    return _HOST_NAME.fullmatch(text) is not None and not re.fullmatch(r"[0-9.]+", text)
