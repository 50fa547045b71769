"""Pods on a node: when they come, how long they wait for an address, when they go."""

from __future__ import annotations

from ipamd.sim.virtual.clock import VirtualClock
from ipamd.sim.virtual.node import Node

# kubelet tries a pod whose sandbox failed again after this and up to half as much more (pkg/kubelet/pod_workers.go:
# backOffPeriod, workerBackOffPeriodJitterFactor). The random part is left out, in favour of daemons that fail ADDs.
SANDBOX_RETRY = 10.0


class Kubelet:
    """Starts each pod as soon as it comes and the node is ready, all at once. A pod that waits for an answer waits
    on; one whose ADD failed is tried again after `SANDBOX_RETRY`. What else a pod needs to start takes no time.

    `waits` maps each pod that has its address to the seconds from its arrival until then; `failures` counts ADDs
    that failed.
    """

    def __init__(self, clock: VirtualClock, node: Node) -> None:
        self.node = node
        self.waits: dict[str, float] = {}
        self.failures = 0
        self._clock = clock
        self._ready = False
        self._arrived: dict[str, float] = {}  # those without an address
        self._lifetimes: dict[str, float | None] = {}
        self._stopped: set[str] = set()

    @property
    def pending(self) -> int:
        """Pods without an address."""
        return len(self._arrived)

    @property
    def pods(self) -> int:
        return len(self._arrived) + self.node.instance.meter.used

    def boot(self) -> None:
        self.node.start(self._node_ready)

    def run(self, pod: str, lifetime: float | None = None) -> None:
        """The pod ends `lifetime` seconds after it got its address; None: when it is stopped."""
        self._arrived[pod] = self._clock()
        self._lifetimes[pod] = lifetime
        if self._ready:
            self._try(pod)

    def stop(self, pod: str) -> None:
        """End the pod now, or as soon as it has its address."""
        if pod in self._arrived:
            self._stopped.add(pod)
        else:
            self.node.instance.meter.use(-1)
            self.node.delete(pod)

    def _node_ready(self) -> None:
        self._ready = True
        for pod in list(self._arrived):
            self._try(pod)

    def _try(self, pod: str) -> None:
        self.node.add(pod, lambda granted: self._answered(pod, granted))

    def _answered(self, pod: str, granted: bool) -> None:
        if not granted:
            self.failures += 1
            self._clock.call_later(SANDBOX_RETRY, lambda: self._try(pod))
            return
        self.waits[pod] = self._clock() - self._arrived.pop(pod)
        self.node.instance.meter.use(1)
        lifetime = self._lifetimes.pop(pod)
        if pod in self._stopped:
            self._stopped.discard(pod)
            lifetime = 0.0
        if lifetime is not None:
            self._clock.call_later(lifetime, lambda: self.stop(pod))
