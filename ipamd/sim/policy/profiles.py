"""Pods that come and go as they do in three common kinds of clusters, as a trace that was never recorded.

Each profile starts with the pods that are there at its beginning, added at 0, and is made by its seed alone. Times
are in seconds from midnight; pods end at a given time, whether or not they got their address at once.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from random import Random

from ipamd.workload.trace import TraceEvent

DAY = 86400.0

# Kubernetes' default for a Deployment: a quarter more pods than wanted while it is rolled (maxSurge).
_SURGE = 0.25
# Until a new pod is ready and an old one may go.
_READY = 30.0


class _Pods:
    """Those that run, the oldest first, and all that happened to them."""

    def __init__(self, name: str) -> None:
        self.running: deque[str] = deque()
        self.events: list[TraceEvent] = []
        self._name = name
        self._number = 0

    def start(self, t: float, count: int = 1) -> None:
        for _ in range(count):
            self._number += 1
            pod = f"{self._name}-{self._number}"
            self.running.append(pod)
            self.events.append(TraceEvent(t, "add", pod, pod))

    def stop_oldest(self, t: float, count: int = 1) -> None:
        for _ in range(count):
            self.events.append(TraceEvent(t, "del", self.running.popleft()))

    def stop_newest(self, t: float) -> None:
        self.events.append(TraceEvent(t, "del", self.running.pop()))

    def roll(self, t: float) -> float:
        """Replace all of them, a quarter at a time; returns when it is done."""
        left = len(self.running)
        batch = math.ceil(left * _SURGE)
        while left > 0:
            count = min(batch, left)
            self.start(t, count)
            t += _READY
            self.stop_oldest(t, count)
            left -= count
        return t


def web(random: Random, seconds: float, pods: int) -> list[TraceEvent]:
    """Services behind an autoscaler that looks every minute: 40 % of the pods at 4 o'clock, all of them at 16, with
    noise of some percent that lasts for minutes. What is too few is started at once; of what is too many one pod
    goes each minute. Every four hours all pods are replaced, a quarter at a time."""
    found = _Pods("web")
    noise, t, next_roll = 0.0, 0.0, random.uniform(0.5, 1.5) * 4 * 3600
    while t < seconds:
        noise = 0.9 * noise + random.gauss(0.0, 0.03)
        by_day = 0.7 - 0.3 * math.cos(2 * math.pi * (t - 4 * 3600) / DAY)
        wanted = max(1, min(pods, round(pods * (by_day + noise))))
        if len(found.running) < wanted:
            found.start(t, wanted - len(found.running))
        elif len(found.running) > wanted:
            found.stop_newest(t)
        t += 60.0
        if t >= next_roll:
            t = 60.0 * math.ceil((found.roll(t) + 1.0) / 60.0)
            next_roll += 4 * 3600
    return found.events


def batch(random: Random, seconds: float, pods: int) -> list[TraceEvent]:
    """Short jobs in bursts, every ten minutes on average: a fifth of the pods to all of them, within five seconds. A
    job runs for a minute or so (log-normal, median 60 s), and waits where as many run as the node has room for
    (`pods`). Nothing else runs."""
    arrivals: list[float] = []
    t = random.expovariate(1 / 600)
    while t < seconds:
        burst = random.randint(max(1, pods // 5), pods)
        arrivals += [t + random.uniform(0.0, 5.0) for _ in range(burst)]
        t += random.expovariate(1 / 600)
    events: list[TraceEvent] = []
    ends: list[float] = []
    start = 0.0
    for number, arrival in enumerate(sorted(arrivals), 1):
        start = max(start, arrival)  # first in, first out
        while ends and ends[0] < start:
            heapq.heappop(ends)
        if len(ends) == pods:  # a second after the one whose place it takes
            start = heapq.heappop(ends) + 1.0
        job, end = f"job-{number}", start + random.lognormvariate(math.log(60.0), 0.6)
        events += [TraceEvent(start, "add", job, job), TraceEvent(end, "del", job)]
        heapq.heappush(ends, end)
    return events


def deploy(random: Random, seconds: float, pods: int) -> list[TraceEvent]:
    """All pods run all the time; four to eight hours apart a new version replaces them, a quarter at a time. Between
    those nothing happens."""
    found = _Pods("app")
    found.start(0.0, pods)
    t = random.uniform(1.0, 4.0) * 3600
    while t < seconds:
        t = found.roll(t) + random.uniform(4.0, 8.0) * 3600
    return found.events


PROFILES: dict[str, Callable[[Random, float, int], list[TraceEvent]]] = {"web": web, "batch": batch, "deploy": deploy}


def made_up(name: str, *, seed: int, seconds: float, pods: int) -> list[TraceEvent]:
    """In the order of time, cut off after so many seconds. `pods` is the most that are there at a time, rolling
    updates aside, which need a quarter more."""
    events = PROFILES[name](Random(seed), seconds, pods)
    return sorted((event for event in events if event.t < seconds), key=lambda event: event.t)
