"""For whom the pool's operations are, which decides about their turn in the rate budget."""

from __future__ import annotations

from ipamd.cloud.port import Priority
from ipamd.pool import effects as do

# What no pod waits for: giving back, and looking whether all is as it is believed to be.
_UNHURRIED = (do.UnassignAddresses, do.DetachEni, do.DeleteEni, do.Audit)


def priority_of(effect: do.Operation, pods_wait: bool) -> Priority:
    """`pods_wait`: whether a pod waits for an address at this moment."""
    if isinstance(effect, _UNHURRIED):
        return Priority.RELEASE
    return Priority.POD if pods_wait else Priority.WARM
