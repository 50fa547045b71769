"""What this node's network is to serve as the pool stands now: the ENIs, the VPC's networks, and a route for each
pod. The reconciler brings it about (`host.reconciler`)."""

from __future__ import annotations

from ipamd.cloud.port import Cloud
from ipamd.cloud.vpc import Vpc
from ipamd.host import EniNetwork, NodeNetwork, PodNetwork
from ipamd.host.veth import host_link
from ipamd.pool.view import View


class WantedNetwork:
    def __init__(self, view: View, vpc: Vpc) -> None:
        self._view = view
        self._vpc = vpc

    def node_network(self) -> NodeNetwork:
        """All ENIs on the node, also those that are yet to be configured: after a restart none of them may be taken
        for one that is gone."""
        enis = [
            EniNetwork(
                eni.id, eni.mac, eni.device_index, eni.primary, eni.primary_ip, self._vpc.subnets[eni.subnet_id]
            )
            for eni in self._view.served()
            if eni.subnet_id in self._vpc.subnets
        ]
        pods = [pod for address in self._view.held() if (pod := self.pod_at(address))]
        return NodeNetwork(tuple(enis), self._vpc.networks, tuple(pods))

    async def learn_subnets(self, cloud: Cloud) -> None:
        """Before the network is touched, so that nothing of it waits for EC2. Raises `CloudError`."""
        for eni in self._view.served():
            if eni.subnet_id not in self._vpc.subnets:
                self._vpc.learn(eni.subnet_id, await cloud.subnet_cidr(eni.subnet_id))

    def attached_links(self) -> frozenset[str]:
        """The host's ends of all attachments, also of those whose address no ENI has any more."""
        return frozenset(host_link(attachment.key) for attachment in self._view.attachments())

    def pod_at(self, address: str) -> PodNetwork | None:
        """None for an address that nobody has, or that no ENI of the node has any more."""
        held = self._view.pod_at(address)
        if held is None:
            return None
        key, device_index = held
        return PodNetwork(address, host_link(key), device_index)
