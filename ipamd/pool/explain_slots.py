"""What there is room for, and who else takes some of it, in sentences."""

from __future__ import annotations

from collections.abc import Iterable

from ipamd.pool.model import EniState
from ipamd.pool.pool import Pool
from ipamd.pool.slots import ARRIVING, CARD
from ipamd.pool.words import many

# So many ids or prefixes stand in a sentence.
NAMED = 8


def room(pool: Pool) -> str:
    slots = max(pool.eni_slots(), 0)
    here = sum(
        eni.room for eni in pool.inventory.enis.values() if eni.state is EniState.READY or eni.state in ARRIVING
    )
    barrier = "the instance type allows"
    if pool.learnt_limit is not None:
        barrier = "EC2 turned out to allow"
    if pool.targets.max_enis and pool.max_enis == pool.targets.max_enis:
        barrier = "pool.max_enis allows"
    attached = pool.attached()
    there = f", and there are {attached}" if attached > pool.max_enis else ""
    text = (
        f"Room: {many(here, 'more address', 'more addresses')} on the ENIs that are there, and "
        f"{many(slots, 'more ENI', 'more ENIs')} with {pool.addresses_of_new_eni} each "
        f"({barrier} {pool.max_enis}{there})"
    )
    if pool.pod_limit <= pool.capacity:
        text += f"; pool.max_pods lets {pool.pod_limit} be in use"
    return text + "."


def others(pool: Pool) -> list[str]:
    """What somebody else has of this node's slots, and what is known of it."""
    found = []
    if foreign := pool.foreign_enis():
        found.append(f"Somebody else's ENIs hold slots of the instance: {_named(eni.id for eni in foreign)}.")
    elsewhere = [eni for eni in pool.inventory.enis.values() if eni.card != CARD]
    if elsewhere:
        cards = _named(str(card) for card in sorted({eni.card for eni in elsewhere}))
        there = many(len(elsewhere), "ENI is", "ENIs are")
        found.append(f"{there} on other network cards ({cards}), whose slots are not for pods.")
    for eni in pool.inventory.enis.values():
        if eni.prefixes:
            found.append(
                f"{many(len(eni.prefixes), '/28 prefix', '/28 prefixes')} on {eni.id} ({_named(eni.prefixes)}), "
                "each in the place of an address: another network's, and left alone. Once none of its pods runs: aws "
                f"ec2 unassign-private-ip-addresses --network-interface-id {eni.id} --ipv4-prefixes PREFIX..."
            )
        if eni.withheld:
            found.append(
                f"EC2 refuses more than {many(eni.capacity - eni.withheld, 'address', 'addresses')} on {eni.id}, "
                f"where the type has {eni.capacity}: asked again later, and when somebody gives something up."
            )
    strange = sum(eni.foreign for eni in pool.inventory.enis.values())
    if strange:
        those = many(strange, "address on our ENIs is", "addresses on our ENIs are")
        found.append(f"{those} somebody else's, and left alone.")
    return found


def _named(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - NAMED
    return ", ".join(listed[:NAMED]) + (f" and {more} more" if more > 0 else "")
