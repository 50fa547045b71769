"""Further names (ip-link(8), altname) of pods' links, by which other software finds them. Needs Linux 5.5."""

from __future__ import annotations

import errno
import socket

from ipamd.host import netlink
from ipamd.host.desired import POD_LINK_PREFIX
from ipamd.host.errors import HostError
from ipamd.host.netlink import IFINFO, NLA_F_NESTED, NLM_F_CREATE, NLM_F_EXCL, attribute

RTM_NEWLINKPROP, RTM_DELLINKPROP = 108, 109  # linux/rtnetlink.h
IFLA_PROP_LIST, IFLA_ALT_IFNAME = 52, 53  # linux/if_link.h
_NLM_F_APPEND = 0x800


def give(link: str, name: str) -> None:
    """Make `name` a further name of that link, and take it from another link of ours: the pod came back before its
    old link was deleted. Does nothing if the link has the name already. Raises `HostError`."""
    index = _index(link)
    if not index:
        raise HostError(f"there is no link {link}")
    other = _index(name)
    if other == index:
        return
    try:
        if other:
            _take(other, name)
        _change(RTM_NEWLINKPROP, index, name, NLM_F_CREATE | NLM_F_EXCL | _NLM_F_APPEND)
    except OSError as error:
        raise HostError(f"{link} can't be named {name}: {error.strerror or error}") from error


def _take(index: int, name: str) -> None:
    """Raises OSError, `HostError`."""
    try:
        owner = socket.if_indextoname(index)
    except OSError:
        return  # it has just been deleted
    if not owner.startswith(POD_LINK_PREFIX):
        raise HostError(f"{name} is a name of another link, {owner}")
    try:
        _change(RTM_DELLINKPROP, index, name, 0)
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.ENOENT):
            raise


def _index(name: str) -> int:
    """0 when no link has the name."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def _change(kind: int, index: int, name: str, flags: int) -> None:
    """Raises OSError."""
    names = attribute(IFLA_ALT_IFNAME, name.encode() + b"\0")
    payload = IFINFO.pack(socket.AF_UNSPEC, 0, index, 0, 0) + attribute(IFLA_PROP_LIST | NLA_F_NESTED, names)
    netlink.change(socket.NETLINK_ROUTE, kind, payload, flags)
