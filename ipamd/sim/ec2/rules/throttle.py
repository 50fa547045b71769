"""EC2's request rate limits: a bucket of tokens for each action, shared by all that call in the account and region.

AWS, "Request throttling for the Amazon EC2 API"
(https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html): each call takes a token from its action's
bucket; without one it fails with RequestLimitExceeded and takes nothing. An action has its own limits or those of its
category. Of the categories, two have no action here: resource-intensive (50 tokens, 5 per second: peering, key pairs,
spot requests), and console (100, 10), since nobody calls from the console.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ipamd.sim.ec2.rules.errors import Ec2Error

READ: Final = "non-mutating"
BARE_READ: Final = "unfiltered"  # a read with neither filter nor page
CHANGE: Final = "mutating"


@dataclass(frozen=True, slots=True)
class Rate:
    """`capacity` in tokens, `refill` in tokens per second. EC2 adds them each second, the double without steps."""

    capacity: float
    refill: float


PUBLISHED: Final[Mapping[str, Rate]] = {
    READ: Rate(100, 20),
    BARE_READ: Rate(50, 10),
    CHANGE: Rate(50, 5),
    "AssignPrivateIpAddresses": Rate(100, 5),
    "CreateNetworkInterface": Rate(100, 5),
    "CreateTags": Rate(100, 10),
    "DeleteNetworkInterface": Rate(100, 5),
    "ModifyNetworkInterfaceAttribute": Rate(100, 5),
    "UnassignPrivateIpAddresses": Rate(100, 5),
}

# These have the smaller bucket when they are asked without filter and page; ids are neither.
_BARE: Final = frozenset({"DescribeInstances", "DescribeNetworkInterfaces", "DescribeSecurityGroups"})
_FILTER_OR_PAGE: Final = frozenset({"Filters", "MaxResults", "NextToken"})


class Bucket:
    """Full at first. `now` in seconds of any clock that only goes forward."""

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._tokens = rate.capacity
        self._since = now

    def tokens(self, now: float) -> float:
        self._tokens = min(self._rate.capacity, self._tokens + (now - self._since) * self._rate.refill)
        self._since = now
        return self._tokens

    def take(self, now: float) -> bool:
        if self.tokens(now) < 1:
            return False
        self._tokens -= 1
        return True


class Throttle:
    """Off until `limit` is called. `rates` are those in force, by action or category; None: off. `now` is as for
    `Bucket`."""

    def __init__(self) -> None:
        self.rates: Mapping[str, Rate] | None = None
        self._buckets: dict[tuple[str, bool], Bucket] = {}

    def limit(self, changes: Mapping[str, Rate]) -> None:
        """On, with full buckets: the published limits, except `changes`, whose keys are actions and categories.

        An action's own limits go before its category's, but not for a bare read.
        """
        self.rates = {**PUBLISHED, **changes}
        self._buckets.clear()

    def lift(self) -> None:
        self.rates = None
        self._buckets.clear()

    def take(self, action: str, parameters: Mapping[str, Any], now: float) -> None:
        """One call. Raises `Ec2Error` when it is one too many."""
        if self.rates is None:
            return
        bare = action in _BARE and not _FILTER_OR_PAGE & parameters.keys()
        category = BARE_READ if bare else READ if action.startswith(("Describe", "Get")) else CHANGE
        rate = self.rates[category] if bare else self.rates.get(action, self.rates[category])
        bucket = self._buckets.setdefault((action, bare), Bucket(rate, now))
        if not bucket.take(now):
            raise Ec2Error("RequestLimitExceeded", "Request limit exceeded.")

    def tokens(self, now: float) -> dict[str, float]:
        """What is left in the buckets that were used, by action; those of bare reads by "ACTION unfiltered"."""
        return {
            f"{action} {BARE_READ}" if bare else action: bucket.tokens(now)
            for (action, bare), bucket in self._buckets.items()
        }
