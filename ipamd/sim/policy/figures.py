"""What a run comes to, in figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ipamd.sim.policy.replay import Outcome, Sample

_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds from a pod's arrival until it has its address, failed ADDs included; over the `served` of the pods that
    asked. `refusals` maps reasons to answers; one pod may get several."""

    asked: int
    served: int
    waited: int
    p50: float
    p95: float
    p99: float
    max: float
    withdrawn: int
    unserved: int
    refusals: dict[str, int]

    @property
    def share(self) -> float:
        """Of those that asked, the ones that did not get their address at once."""
        return (self.asked - self.served + self.waited) / self.asked if self.asked else 0.0


@dataclass(frozen=True, slots=True)
class Addresses:
    """Means are over time. Free is what a pod would get at once. Idle is what the node takes from the subnet and no
    pod has: free, cooling, on its way in or out, and the own address of each further ENI."""

    used_mean: float
    used_peak: int
    free_mean: float
    free_peak: int
    cooling_peak: int
    idle_mean: float
    idle_hours: float
    enis_mean: float
    enis_peak: int


@dataclass(frozen=True, slots=True)
class Calls:
    """Of EC2's API. `delayed` ones had to wait for the node's own rate budget."""

    total: int
    per_hour: float
    by_action: dict[str, int]
    delayed: int


@dataclass(frozen=True, slots=True)
class Figures:
    waits: Waits
    addresses: Addresses
    calls: Calls


def figures(outcome: Outcome) -> Figures:
    waits = sorted(wait.seconds for wait in outcome.waits)
    samples, seconds = outcome.samples, outcome.seconds
    idle = _mean(samples, seconds, lambda sample: sample.held - sample.used)
    total = outcome.calls.total()
    return Figures(
        Waits(
            outcome.adds,
            len(waits),
            sum(wait > 0 for wait in waits),
            percentile(waits, 0.5),
            percentile(waits, 0.95),
            percentile(waits, 0.99),
            percentile(waits, 1.0),
            outcome.withdrawn,
            outcome.unserved,
            dict(sorted(outcome.refusals.items())),
        ),
        Addresses(
            _mean(samples, seconds, lambda sample: sample.used),
            max(sample.used for sample in samples),
            _mean(samples, seconds, lambda sample: sample.free),
            max(sample.free for sample in samples),
            max(sample.cooling for sample in samples),
            idle,
            idle * seconds / _HOUR,
            _mean(samples, seconds, lambda sample: sample.enis),
            max(sample.enis for sample in samples),
        ),
        Calls(total, total * _HOUR / seconds, dict(sorted(outcome.calls.items())), outcome.delayed),
    )


def percentile(ascending: Sequence[float], share: float) -> float:
    """The smallest value that is not exceeded by so many of them (nearest rank); 0 of none."""
    return ascending[max(math.ceil(share * len(ascending)), 1) - 1] if ascending else 0.0


def _mean(samples: Sequence[Sample], seconds: float, value: Callable[[Sample], int]) -> float:
    return sum(value(sample) * length for sample, length in _lengths(samples, seconds)) / seconds


def _lengths(samples: Sequence[Sample], end: float) -> Iterator[tuple[Sample, float]]:
    """How long each was true; the first one is of time 0."""
    for sample, following in pairwise(samples):
        yield sample, following.t - sample.t
    yield samples[-1], end - samples[-1].t
