"""Whether this daemon can do its work on this node: the one question behind STATUS, `Ipam/Ready`, /readyz, the health
service and systemd's READY.

A runtime that hears "no" reports the whole node as not ready, and five minutes later Kubernetes evicts every pod on
it. So "no" is for a node that is of no use to any pod: it has had no address for one since its boot, or its kernel
carries no pod's packets. A full pool, a full subnet, EC2 out of reach, a drained node and a full disk concern new
pods alone: `outlook.would_refuse` has the reason that their ADD gets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ipamd.pool.outlook import would_refuse
from ipamd.pool.state import State


@dataclass(frozen=True, slots=True)
class NotServing:
    """`reason` is a name of `Reason` in proto/ipamd/v1/ipam.proto."""

    reason: Literal["NOT_READY", "NETWORK_BROKEN"]
    message: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


def not_serving(state: State, served: bool, broken: str, now: float) -> NotServing | None:
    """Why this daemon can't do its work here; None when it can.

    `served`: it could before, or a daemon before it could in this boot; a pod that is here is as good a witness.
    `broken`: what the kernel refuses and every pod needs, in the words of the refusal; empty when there is nothing.
    """
    if not state.started:
        return NotServing("NOT_READY", "the daemon has not learnt its ENIs yet")
    if broken:
        return NotServing("NETWORK_BROKEN", f"this node's network can't be put in order: {broken}")
    if served or state.inventory.attachments or state.can_serve():
        return None
    refusal = would_refuse(state, now)
    why = "the first ones are on their way" if refusal is None else f"{refusal.reason}: {refusal.message}"
    return NotServing("NOT_READY", f"this node has had no address for a pod since its boot: {why}")
