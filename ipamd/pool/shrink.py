"""What to give back to EC2 when addresses have lain idle: a plan, read from the state, changing nothing.

Whole ENIs first, since an ENI costs an attachment slot and an address of its own; then the addresses of the ENIs with
the fewest pods, so that those drain. Growth always goes before: with anybody waiting or a deficit there is no plan.
"""

from __future__ import annotations

from ipamd.pool.backoff import action_scope, release_scope
from ipamd.pool.effects import DescribeEni, DetachEni, UnassignAddresses
from ipamd.pool.eni import Eni
from ipamd.pool.state import State


def plan(state: State, excess: int, now: float) -> tuple[list[Eni], list[tuple[Eni, int]]]:
    """(ENIs to give back whole, how many addresses of which others)."""
    if state.backoffs.active(now, action_scope(DescribeEni.action)):
        return [], []
    candidates = [
        eni
        for eni in state.inventory.ready()
        if (eni.free or not eni.addresses)
        and not (eni.busy or eni.unsure or eni.leaving or eni.pending or eni.modifying)
        if not state.backoffs.active(now, release_scope(eni.id))
    ]
    candidates.sort(key=lambda eni: (eni.primary, eni.assigned + eni.cooling, len(eni.free)))
    whole, parts = [], []
    detach_held_back = state.backoffs.active(now, action_scope(DetachEni.action)) is not None
    unassign_held_back = state.backoffs.active(now, action_scope(UnassignAddresses.action)) is not None
    for eni in candidates:
        idle = not (eni.primary or eni.assigned or eni.cooling or eni.foreign or eni.prefixes)
        if idle and len(eni.free) <= excess and not detach_held_back:
            whole.append(eni)
            excess -= len(eni.free)
    for eni in candidates:
        count = min(excess, len(eni.free))
        if eni not in whole and count and not unassign_held_back:
            parts.append((eni, count))
            excess -= count
    return whole, parts
