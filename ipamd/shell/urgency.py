"""Which pods the pool's operations serve, which decides about their turn in the rate budget."""

from __future__ import annotations

from ipamd.cloud.port import Priority
from ipamd.pool import effects as do

_GIVING_BACK = (do.UnassignAddresses, do.DetachEni, do.DeleteEni)


def priority_of(effect: do.Operation, pods_wait: bool) -> Priority:
    """`pods_wait`: whether a pod waits for an address at this moment."""
    if isinstance(effect, _GIVING_BACK):
        return Priority.RELEASE
    if pods_wait:
        return Priority.POD
    return Priority.RELEASE if isinstance(effect, do.Audit) else Priority.WARM
