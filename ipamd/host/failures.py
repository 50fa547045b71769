"""Finds out what a refused step concerns: a pod, an ENI, every pod, or the node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from socket import if_indextoname

from ipamd.host.desired import Desired, FoundRoute, LinkTable
from ipamd.host.difference import (
    AddAddress,
    AddRoute,
    AddRule,
    DeleteRoute,
    DeleteRule,
    LoadTable,
    SetLink,
    SetSysctl,
    Step,
)
from ipamd.host.errors import HostError


@dataclass(frozen=True, slots=True)
class Failure:
    """A step that the kernel refused. `eni` is the id of the ENI that it concerns; with `pod` it concerns a single
    pod, with neither the whole node. `every_pod`: no pod's packets get through without it."""

    error: HostError
    eni: str = ""
    pod: bool = False
    every_pod: bool = False


def failure_of(
    step: Step, error: HostError, wish: Desired, links: LinkTable, first_table: int, table_there: Callable[[], bool]
) -> Failure | None:
    """None if the step concerned a link that is gone. `first_table`: that of the pods; an ENI's table is that plus
    its index. `table_there`: whether there is an nftables table of ours, perhaps an older one. Raises `HostError` if
    that can't be read."""
    index = link_of(step)
    if index and not _exists(index):
        return None
    if any(each.link.index == index for each in wish.links if each.group is not None):
        return Failure(error, pod=True)
    for eni in wish.enis:
        device = links.by_mac(eni.mac)
        own = device is not None and (
            device.index == index or (isinstance(step, SetSysctl) and f"/{device.name}/" in step.subject.name)
        )
        # The primary ENI has no table of its own: the pods' table has that number.
        number = None if eni.primary else first_table + eni.device_index
        if own or (isinstance(step, (AddRule, DeleteRule)) and step.subject.table == number):
            return Failure(error, eni.eni_id)
    match step:
        case SetSysctl() | AddRule():
            return Failure(error, every_pod=True)
        case LoadTable():  # an older table serves the existing pods
            return Failure(error, every_pod=not table_there())
        case _:
            return Failure(error)


def link_of(step: Step) -> int:
    """The index of the link that the step is about, 0 for none."""
    match step:
        case SetLink(change):
            return change.link.index
        case AddRoute(route) | DeleteRoute(FoundRoute(route)):
            return route.index
        case AddAddress(address):
            return address.index
        case SetSysctl(sysctl):
            return sysctl.forwards
        case _:
            return 0


def _exists(index: int) -> bool:
    """Whether the link is still there, by the kernel's own word."""
    try:
        return bool(if_indextoname(index))
    except OSError:
        return False
