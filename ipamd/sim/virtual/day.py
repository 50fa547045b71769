"""A day on a cluster: short jobs that come at random, more by day than by night, and services deployed anew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from random import Random

from ipamd.sim.virtual.clock import Process, VirtualClock
from ipamd.sim.virtual.kubelet import Kubelet

_DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Load:
    """Times in seconds, rates per second.

    Jobs arrive as a Poisson process whose rate goes from `night_share * peak_rate` at midnight to `peak_rate` at noon
    and back, and run for `job_time`. `services` pods run all the time; every `deploy_interval` each is replaced: the
    new ones come at once, the old ones leave `deploy_overlap` later.
    """

    peak_rate: float = 1 / 3
    night_share: float = 0.1
    job_time: float = 120.0
    services: int = 40
    deploy_interval: float = 7200.0
    deploy_overlap: float = 60.0


class Day:
    """Spreads the load over the nodes: each pod goes to the one with the fewest pods."""

    def __init__(self, clock: VirtualClock, kubelets: Sequence[Kubelet], load: Load, random: Random) -> None:
        self._clock = clock
        self._kubelets = kubelets
        self._load = load
        self._random = random
        self._numbers = count(1)
        self._services: list[tuple[Kubelet, str]] = []

    def begin(self) -> None:
        self._clock.spawn(self._jobs())
        self._clock.spawn(self._deploys())

    def _jobs(self) -> Process:
        load = self._load
        while True:
            # Thinning: candidates at the peak rate, and the share of the hour of them is taken.
            yield self._random.expovariate(load.peak_rate)
            by_day = (1 - math.cos(2 * math.pi * self._clock() / _DAY)) / 2
            if self._random.random() < load.night_share + (1 - load.night_share) * by_day:
                self._run(load.job_time)

    def _deploys(self) -> Process:
        while True:
            old = self._services
            self._services = [self._run(None) for _ in range(self._load.services)]
            yield self._load.deploy_overlap
            for kubelet, pod in old:
                kubelet.stop(pod)
            yield self._load.deploy_interval - self._load.deploy_overlap

    def _run(self, lifetime: float | None) -> tuple[Kubelet, str]:
        kubelet = min(self._kubelets, key=lambda kubelet: kubelet.pods)
        pod = f"pod-{next(self._numbers)}"
        kubelet.run(pod, lifetime)
        return kubelet, pod
