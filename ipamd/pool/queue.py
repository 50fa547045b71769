"""What each ADD in the queue waits for, so that a wait can be told from a fault.

The queue is served in order, so what comes by itself is for the first in it: what is on its way from EC2, then what
cools. The others wait for the end of a pod. Reads the pool's state, changes nothing.
"""

from __future__ import annotations

from enum import StrEnum

from ipamd.pool.outlook import Supply
from ipamd.pool.state import State, Waiting


class WaitsFor(StrEnum):
    """The values are those of `Waiting.waits_for` in proto/ipamd/v1/introspection.proto."""

    EC2 = "ec2"
    COOLDOWN = "cooldown"
    RELEASE = "release"


def waits(state: State, now: float) -> list[tuple[Waiting, WaitsFor]]:
    """In order. Before the pool has started all of them wait for EC2, which says what the node has."""
    if not state.started or not state.waiting:
        return [(waiting, WaitsFor.EC2) for waiting in state.waiting.values()]
    supply = Supply(state, now)
    found = []
    for before, waiting in enumerate(state.waiting.values()):
        if before < supply.at_least:
            found.append((waiting, WaitsFor.EC2))
        elif before < supply.until(waiting.deadline):
            found.append((waiting, WaitsFor.COOLDOWN))
        else:
            found.append((waiting, WaitsFor.RELEASE))
    return found
