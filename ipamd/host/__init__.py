"""The node's kernel: ENI links, routing tables, rules and nftables, brought to a desired state and kept there."""

from ipamd.host.desired import EniNetwork, NodeNetwork, PodNetwork, link_group
from ipamd.host.errors import HostError, LinkTimeout, NftError
from ipamd.host.network import Applied, Disturbance, HostNetwork
from ipamd.host.reconciler import Health, Reconciler

__all__ = [
    "Applied",
    "Disturbance",
    "EniNetwork",
    "Health",
    "HostError",
    "HostNetwork",
    "LinkTimeout",
    "NftError",
    "NodeNetwork",
    "PodNetwork",
    "Reconciler",
    "link_group",
]
