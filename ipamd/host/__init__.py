"""The node's kernel: ENI links, routing tables, rules and nftables, brought to a desired state."""

from ipamd.host.desired import EniNetwork, NodeNetwork, link_group
from ipamd.host.errors import HostError, LinkTimeout, NftError
from ipamd.host.network import Change, HostNetwork

__all__ = [
    "Change",
    "EniNetwork",
    "HostError",
    "HostNetwork",
    "LinkTimeout",
    "NftError",
    "NodeNetwork",
    "link_group",
]
