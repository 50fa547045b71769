"""Nodes of one account in one virtual time."""

from __future__ import annotations

from random import Random

from ipamd.pool.model import Targets
from ipamd.sim.virtual.clock import VirtualClock
from ipamd.sim.virtual.ec2 import Instance, Latencies, VirtualEc2
from ipamd.sim.virtual.incumbent import IncumbentNode, IncumbentTargets
from ipamd.sim.virtual.kubelet import Kubelet
from ipamd.sim.virtual.node import Node, PoolNode


class Fleet:
    """All nodes lie in the subnets of `prefix_lengths`, spread evenly, and each adds ENIs in any of them, its own
    first. The same seed gives the same run."""

    def __init__(
        self, *, seed: int = 0, latencies: Latencies | None = None, prefix_lengths: tuple[int, ...] = (16,)
    ) -> None:
        self.clock = VirtualClock()
        self.kubelets: list[Kubelet] = []
        self._random = Random(seed)
        self.ec2 = VirtualEc2(self.clock, latencies or Latencies(), Random(self._random.random()))
        self._subnets = [self.ec2.add_subnet(length) for length in prefix_lengths]

    def add(self, instance_type: str, targets: Targets | IncumbentTargets) -> Kubelet:
        """A node whose daemon is the one that the targets are for; it boots with `Kubelet.boot`. Raises ValueError
        for an unknown instance type."""
        own = self._subnets[len(self.kubelets) % len(self._subnets)]
        instance = self.ec2.launch(instance_type, own)
        subnets = tuple(subnet.id for subnet in sorted(self._subnets, key=lambda subnet: subnet is not own))
        kubelet = Kubelet(self.clock, self._node(instance, targets, subnets))
        self.kubelets.append(kubelet)
        return kubelet

    def _node(self, instance: Instance, targets: Targets | IncumbentTargets, subnets: tuple[str, ...]) -> Node:
        random = Random(self._random.random())
        if isinstance(targets, Targets):
            return PoolNode(self.clock, self.ec2, instance, targets, random, subnets)
        return IncumbentNode(self.clock, self.ec2, instance, targets, random, subnets)
