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
    """ENIs to give back whole, and other ENIs with how many of their addresses."""
    if state.backoffs.active(now, action_scope(DescribeEni.action)):
        return [], []
    candidates = [eni for eni in state.inventory.ready() if _is_candidate(eni, state, now)]
    candidates.sort(key=lambda eni: (eni.primary, eni.assigned + eni.cooling, len(eni.free)))
    whole: list[Eni] = []
    if not state.backoffs.active(now, action_scope(DetachEni.action)):
        for eni in filter(_is_idle, candidates):
            if len(eni.free) <= excess:
                whole.append(eni)
                excess -= len(eni.free)
    parts: list[tuple[Eni, int]] = []
    if not state.backoffs.active(now, action_scope(UnassignAddresses.action)):
        for eni in candidates:
            if eni not in whole and (count := min(excess, len(eni.free))):
                parts.append((eni, count))
                excess -= count
    return whole, parts


def _is_candidate(eni: Eni, state: State, now: float) -> bool:
    """Whether anything of it can be given back now."""
    has_some = bool(eni.free) or not eni.addresses
    undisturbed = eni.quiet and not (eni.leaving or eni.modifying)
    return has_some and undisturbed and not state.backoffs.active(now, release_scope(eni.id))


def _is_idle(eni: Eni) -> bool:
    return not (eni.primary or eni.assigned or eni.cooling or eni.foreign or eni.prefixes)
