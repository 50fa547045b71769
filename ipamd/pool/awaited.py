"""What each ADD in the queue waits for, which distinguishes a wait from a fault.

The queue is served in order, so what comes by itself is for the first in it: what is on its way from EC2, then what
cools. The others wait for the end of a pod. One that asks for one address waits for what brings that one (wish.py).
Reads the pool's state, changes nothing.
"""

from __future__ import annotations

from ipamd.pool import wish
from ipamd.pool.outlook import Line, Supply
from ipamd.pool.queue import Waiting, WaitsFor
from ipamd.pool.state import State


def waits(state: State, now: float) -> list[tuple[Waiting, WaitsFor]]:
    """In order. Before the pool has started all of them wait for EC2, which says what the node has."""
    if not state.started or not state.waiting:
        return [(waiting, WaitsFor.EC2) for waiting in state.waiting.values()]
    supply, line, found = Supply(state, now), Line(), []
    for waiting in state.waiting.values():
        if waiting.wanted:
            verdict = wish.judge(state, waiting, now)
            found.append((waiting, verdict.by if isinstance(verdict, wish.Coming) else WaitsFor.RELEASE))
        elif line.before < supply.at_least:
            found.append((waiting, WaitsFor.EC2))
        elif line.before < supply.until(waiting.deadline):
            found.append((waiting, WaitsFor.COOLDOWN))
        else:
            found.append((waiting, WaitsFor.RELEASE))
        line.let_in(waiting, state, now)
    return found
