"""How many ENIs and addresses each instance type allows, so that a fresh node needs no EC2 call to know its size.

The figures in instance-limits.json are those of DescribeInstanceTypes (NetworkInfo.NetworkCards and
NetworkInfo.Ipv4AddressesPerInterface): for each type, the ENIs that its network card 0 takes, the primary one
included, and the IPv4 addresses of one ENI, its primary address included. A type that came out later is asked of EC2.
A third figure is the number of network cards where there are several (67 types): each takes as many ENIs. The further
ones are left to the workloads that need their bandwidth.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources

from ipamd.pool.model import Limits


@cache
def _figures() -> Mapping[str, Sequence[int]]:
    text = resources.files("ipamd.cloud").joinpath("instance-limits.json").read_text("utf-8")
    found: Mapping[str, Sequence[int]] = json.loads(text)
    return found


@cache
def table() -> Mapping[str, Limits]:
    """Every known instance type with its limits."""
    return {instance_type: Limits(*figures[:2]) for instance_type, figures in _figures().items()}


def network_cards(instance_type: str) -> int:
    """1 also for a type that the table does not know."""
    return next(iter(_figures().get(instance_type, ())[2:]), 1)


def limits_of(instance_type: str) -> Limits | None:
    """None for a type that the table does not know."""
    return table().get(instance_type)
