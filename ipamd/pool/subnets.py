"""Where new addresses come from: the subnets, how full each was when last seen, and how much to ask of it at once.

A subnet gives all that a call asks for, or nothing. One that refused is in doubt: it is read before it is asked
again, and then asked for no more than the reading shows; one that shows nothing is left alone until a reading shows
room. Where EC2 does not let us read, half as much is asked for each time, down to a single address.

New ENIs go to a subnet drawn at random, weighted by free addresses: nodes that read the same figures at the same time
must not all choose the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

# Seconds for which a reading may weigh in the choice between subnets.
READING_LASTS = 300.0

# No ENI takes more addresses.
LARGEST = 64


@dataclass(slots=True)
class Subnet:
    """`available` is what the last reading showed, less what was asked for since; None before the first. `at_most` is
    the most to ask for in a call; None: no limit. `refused` is the smallest call that failed since then."""

    id: str
    available: int | None = None
    read_at: float = 0.0
    in_doubt: bool = False
    refused: int | None = None
    at_most: int | None = None


class Subnets:
    """`ids` are those for new ENIs in order of preference. The ENIs that are there may lie in others."""

    def __init__(self, ids: tuple[str, ...], random: Random) -> None:
        self.ids = ids
        self._random = random
        self._known = {subnet_id: Subnet(subnet_id) for subnet_id in ids}

    def __getitem__(self, subnet_id: str) -> Subnet:
        return self._known.setdefault(subnet_id, Subnet(subnet_id))

    def portion(self, subnet_id: str, wanted: int) -> int:
        """How many addresses to ask for in one call."""
        at_most = self[subnet_id].at_most
        return wanted if at_most is None else min(wanted, at_most)

    def asked(self, subnet_id: str, count: int) -> None:
        subnet = self[subnet_id]
        if subnet.available is not None:
            subnet.available = max(subnet.available - count, 0)

    def gave(self, subnet_id: str) -> None:
        """It carried a call out: the next one may ask for twice as much as the limit was."""
        subnet = self[subnet_id]
        subnet.in_doubt, subnet.refused = False, None
        if subnet.at_most is not None:
            subnet.at_most = subnet.at_most * 2 if subnet.at_most < LARGEST else None

    def refused(self, subnet_id: str, count: int) -> None:
        """It did not have `count` addresses."""
        subnet = self[subnet_id]
        subnet.refused = count if subnet.refused is None else min(count, subnet.refused)
        subnet.in_doubt = True

    def doubtful(self) -> tuple[str, ...]:
        return tuple(subnet.id for subnet in self._known.values() if subnet.in_doubt)

    def observed(self, subnet_id: str, available: int, now: float) -> bool:
        """A reading; false when the subnet, being in doubt, turned out to be full."""
        subnet = self[subnet_id]
        subnet.available, subnet.read_at = available, now
        if not subnet.in_doubt:
            return True
        if subnet.refused is not None and available >= subnet.refused:
            available = subnet.refused // 2  # the reading is older than the refusal
        return self._ask_for(subnet, available)

    def noted(self, subnet_id: str, available: int, now: float) -> None:
        """A reading that was not made because of a doubt: it settles none."""
        subnet = self[subnet_id]
        if not subnet.in_doubt:
            subnet.available, subnet.read_at = available, now

    def unreadable(self, subnet_id: str) -> bool:
        """What to make of a subnet in doubt without a reading; false: take it for full."""
        subnet = self[subnet_id]
        if subnet.refused is None:
            subnet.in_doubt, subnet.at_most = False, 2  # the least that makes an ENI with an address
            return True
        return self._ask_for(subnet, subnet.refused // 2)

    def full(self, subnet_id: str) -> None:
        """It stays in doubt: the next reading that shows room ends it."""
        subnet = self[subnet_id]
        subnet.in_doubt, subnet.refused = True, None

    def _ask_for(self, subnet: Subnet, at_most: int) -> bool:
        if at_most:
            subnet.in_doubt, subnet.refused, subnet.at_most = False, None, at_most
        return at_most > 0

    def unread(self, now: float) -> tuple[str, ...]:
        """Those among which a choice can't be made for want of a recent reading."""
        if len(self.ids) == 1:
            return ()
        return tuple(i for i in self.ids if self[i].available is None or now - self[i].read_at > READING_LASTS)

    def choose(self, candidates: Sequence[str], wanted: int) -> str:
        """One of these, if possible one with so many addresses; the first when nothing is known of any."""
        free = {subnet_id: self[subnet_id].available or 0 for subnet_id in candidates}
        free = {subnet_id: count for subnet_id, count in free.items() if count >= wanted} or free
        if len(free) == 1 or not any(free.values()):
            return next(iter(free))
        return self._random.choices(list(free), list(free.values()))[0]
