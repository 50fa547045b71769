"""What an address of this node is, for somebody who has only the address: from a flow log, tcpdump or an alert."""

from __future__ import annotations

from typing import assert_never

from ipamd.pool.eni import Address, Eni
from ipamd.pool.explain import Explanation
from ipamd.pool.model import AddressState
from ipamd.pool.pool import Pool
from ipamd.pool.words import span


def explain_address(pool: Pool, ip: str, now: float) -> Explanation | None:
    """None: no ENI of this node has it. An address that a pod holds is explained by its attachment."""
    owner = pool.inventory.owner_of(ip)
    if owner is not None:
        return Explanation(
            "own",
            f"{ip} is the own address of {owner.id}, {_where(owner)}.",
            ["The host uses it itself; no pod ever gets it."],
        )
    address = pool.inventory.addresses.get(ip)
    if address is None:
        return None
    explanation = Explanation(str(address.state), f"{ip} is {_condition(pool, address, now)}.")
    explanation.because.append(f"It is on {address.eni.id}, {_where(address.eni)}, which is {address.eni.state}.")
    explanation.because.append(f"It has been {address.state} for {span(now - address.since)}.")
    return explanation


def _condition(pool: Pool, address: Address, now: float) -> str:
    match address.state:
        case AddressState.FREE:
            return "free: the next pod may get it"
        case AddressState.COOLING:
            left = max(pool.inventory.cooling.get(address.ip, now) + pool.targets.cooldown - now, 0.0)
            return f"cooling down after its last pod: it is free in {span(left)}"
        case AddressState.RELEASING:
            return "on its way back to EC2: no pod gets it"
        case AddressState.FOREIGN:
            return "somebody else's: ipamd did not ask for it, or others use it, so no pod gets it"
        case AddressState.ASSIGNED:
            return "assigned to a pod"
        case _:
            assert_never(address.state)


def _where(eni: Eni) -> str:
    kind = "the primary ENI" if eni.primary else "a secondary ENI"
    return f"{kind} (link {eni.link or 'not known yet'})"
