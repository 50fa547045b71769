"""How many addresses a node takes from its subnet, in numbers: the pool's arithmetic at rest, for planning.

A test holds it against the pool itself (tests/unit/test_plan.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ipamd.pool.model import Limits, Targets


@dataclass(frozen=True, slots=True)
class Footprint:
    """Of one node at rest. `addresses` are those for pods, in use, cooling or free: at least, and at most for as long
    as nothing but `pods` pods asks for more. `enis` are those that it takes to hold them; each has one address of its
    own on top. `most_pods` is what the node could ever hold."""

    pods: int
    least: int
    most: int
    enis_least: int
    enis_most: int
    most_pods: int

    @property
    def subnet_least(self) -> int:
        """Addresses of the subnet, those of the ENIs themselves included."""
        return self.least + self.enis_least

    @property
    def subnet_most(self) -> int:
        return self.most + self.enis_most


def footprint(targets: Targets, limits: Limits, pods: int, cooling: float = 0.0) -> Footprint:
    """`cooling`: addresses that cool at any one time, on average."""
    per_eni = max(limits.secondary_per_eni, 1)
    max_enis = min(targets.max_enis or limits.max_enis, limits.max_enis)
    room = max_enis * limits.secondary_per_eni
    most_pods = min(targets.max_pods or room, room)
    headroom = targets.warm_enis * limits.secondary_per_eni if targets.warm_enis else targets.warm_ips
    cooled = math.ceil(cooling)
    ceiling = min(most_pods + cooled, room)
    least = min(max(pods + headroom + cooled, targets.minimum_ips), ceiling)
    most = min(max(pods + headroom + cooled + targets.slack, targets.minimum_ips), ceiling)
    enis = [max(math.ceil(count / per_eni), 1) for count in (least, most)]
    return Footprint(pods, least, most, enis[0], enis[1], most_pods)
