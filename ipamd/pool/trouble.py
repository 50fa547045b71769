"""Pods that have an address on record and do not get their packets, as long as that lasts.

An event tells that an address was taken away, and is soon forgotten; the pod stays cut off until somebody deletes it.
What is shown here is read from the pool's state, so a restart does not end it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ipamd.pool.eni import Eni
from ipamd.pool.in_use import InUse
from ipamd.pool.model import Attachment, EniState

_NOT_ATTACHED = (EniState.ATTACHING, EniState.DETACHING, EniState.DELETING)


@dataclass(frozen=True, slots=True)
class Trouble:
    """`lost`: no ENI of the node has the address any more. `detached`: its ENI is not attached, which the daemon
    tries to put right. `contested`: something else on this host leads to the address. `cause` is a clause without a
    full stop. `since`: seconds since the epoch, as far as this daemon knows."""

    kind: Literal["lost", "detached", "contested"]
    attachment: Attachment
    cause: str
    since: float

    @property
    def cut_off(self) -> bool:
        return self.kind != "contested"


def troubles(pool: InUse) -> Iterator[Trouble]:
    for attachment in pool.inventory.attachments.values():
        if (trouble := trouble_of(pool, attachment)) is not None:
            yield trouble


def trouble_of(pool: InUse, attachment: Attachment) -> Trouble | None:
    ip, inventory = attachment.address, pool.inventory
    address = inventory.addresses.get(ip)
    if address is None:
        lost = inventory.lost.get(ip)
        if lost is None:
            return Trouble("lost", attachment, f"EC2 shows {ip} on no ENI of this node", attachment.since)
        return Trouble("lost", attachment, lost.cause, lost.at)
    eni = address.eni
    if _is_off(eni):
        return Trouble("detached", attachment, f"{eni.id}, which has {ip}, is {eni.state}", eni.since)
    if (use := pool.contested.get(ip)) is not None:
        return Trouble("contested", attachment, f"{ip} is led elsewhere as well: {use.text}", attachment.since)
    return None


def _is_off(eni: Eni) -> bool:
    """After a restart each ENI is being configured for a moment; that disturbs no pod."""
    return eni.state in _NOT_ATTACHED or (eni.state is EniState.CONFIGURING and eni.unfulfilled)
