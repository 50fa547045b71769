"""One node with one choice of settings, to which the pods of a trace come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from ipamd.pool.model import Reason, Targets
from ipamd.sim.virtual.clock import Process, VirtualClock
from ipamd.sim.virtual.ec2 import Latencies, VirtualEc2
from ipamd.sim.virtual.kubelet import SANDBOX_RETRY
from ipamd.sim.virtual.node import PoolNode
from ipamd.workload.trace import TraceEvent

# Before the trace begins: long enough for the pods that are there at its beginning, and for the pool to come to rest.
SETTLE = 900.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The node from `t` on, in seconds since the trace's beginning. `held` are the addresses of the subnet that the
    node has beyond its own one: these, those on their way in and the ENIs' own. `enis` has the primary one."""

    t: float
    used: int
    free: int
    cooling: int
    held: int
    enis: int


@dataclass(frozen=True, slots=True)
class Wait:
    """A pod that asked at `t` had its address `seconds` later."""

    t: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a trace. Of its `adds`, those at 0 aside, some got their address (`waits`), some were deleted
    before they did (`withdrawn`), and some had none when the trace ended (`unserved`).

    `refusals` counts answers; a pod may get several. `calls` are by EC2's names; `delayed` of them had to
    wait in the node's rate budget.
    """

    seconds: float
    adds: int
    waits: tuple[Wait, ...]
    withdrawn: int
    unserved: int
    refusals: Counter[str]
    calls: Counter[str]
    delayed: int
    samples: tuple[Sample, ...]


@dataclass(slots=True, eq=False)
class _Pod:
    id: str
    asked: float
    served: bool = False


class _Runtime:
    """Asks for a pod's address as often as a kubelet does, and counts what comes of it."""

    def __init__(self, clock: VirtualClock, node: PoolNode, start: float) -> None:
        self.waits: list[Wait] = []
        self.adds = self.withdrawn = 0
        self._clock = clock
        self._node = node
        self._start = start
        self._pods: dict[str, _Pod] = {}

    def play(self, trace: Sequence[TraceEvent]) -> Process:
        for event in trace:
            yield max(self._start + event.t - self._clock(), 0.0)
            if event.event == "add":
                self.adds += 1
                self.add(event.id)
            else:
                self.delete(event.id)

    def add(self, id: str) -> None:
        pod = self._pods[id] = _Pod(id, self._clock())
        self._try(pod)

    def delete(self, id: str) -> None:
        pod = self._pods.pop(id)
        self.withdrawn += not pod.served and pod.asked >= self._start
        self._node.delete(id)

    @property
    def unserved(self) -> int:
        return sum(not pod.served and pod.asked >= self._start for pod in self._pods.values())

    def _try(self, pod: _Pod) -> None:
        if self._pods.get(pod.id) is pod:
            self._node.add(pod.id, lambda granted: self._answered(pod, granted))

    def _answered(self, pod: _Pod, granted: bool) -> None:
        if self._pods.get(pod.id) is not pod:
            return
        if not granted:
            self._clock.call_later(SANDBOX_RETRY, lambda: self._try(pod))
            return
        pod.served = True
        if pod.asked >= self._start:
            self.waits.append(Wait(pod.asked - self._start, self._clock() - pod.asked))


class _Camera:
    def __init__(self, clock: VirtualClock, node: PoolNode, start: float) -> None:
        self.samples: list[Sample] = []
        self._clock = clock
        self._node = node
        self._start = start

    def take(self) -> None:
        counts, instance = self._node.pool.counts(), self._node.instance
        t = self._clock() - self._start
        attached = len(instance.instance.enis)
        sample = Sample(t, counts.assigned, counts.free, counts.cooling, instance.meter.held, attached)
        if self.samples and self.samples[-1].t == t:
            self.samples.pop()
        self.samples.append(sample)


def replay(
    trace: Sequence[TraceEvent],
    seconds: float,
    instance_type: str,
    targets: Targets,
    latencies: Latencies,
    seed: int,
) -> Outcome:
    """Let the trace happen to a fresh node that has settled with the pods that are there at 0. The same arguments
    give the same outcome. Raises ValueError for an unknown instance type."""
    random = Random(seed)
    clock = VirtualClock()
    ec2 = VirtualEc2(clock, latencies, Random(random.random()))
    node = PoolNode(clock, ec2, ec2.launch(instance_type, ec2.add_subnet()), targets, Random(random.random()))
    runtime = _Runtime(clock, node, SETTLE)
    there, rest = beginning(trace)

    def ready() -> None:
        for id in there:
            runtime.add(id)

    node.start(ready)
    clock.run_until(SETTLE)

    refusals, calls = node.refusals.copy(), node.instance.calls.copy()
    delayed = _delayed(node)
    camera = _Camera(clock, node, SETTLE)
    camera.take()
    node.changed = camera.take
    clock.spawn(runtime.play(rest))
    clock.run_until(SETTLE + seconds)
    refused = node.refusals - refusals
    del refused[Reason.RELEASED]  # nobody was there any more to be refused
    return Outcome(
        seconds,
        runtime.adds,
        tuple(runtime.waits),
        runtime.withdrawn,
        runtime.unserved,
        Counter({reason.value: count for reason, count in refused.items()}),
        node.instance.calls - calls,
        _delayed(node) - delayed,
        tuple(camera.samples),
    )


def beginning(trace: Sequence[TraceEvent]) -> tuple[list[str], Sequence[TraceEvent]]:
    """The ids that are there at 0, and what happens later."""
    there: dict[str, None] = {}
    for number, event in enumerate(trace):
        if event.t > 0:
            return list(there), trace[number:]
        if event.event == "add":
            there[event.id] = None
        else:
            del there[event.id]
    return list(there), ()


def _delayed(node: PoolNode) -> int:
    return sum(waits.delayed for bucket in node.budget.view() for waits in bucket.waits.values())
