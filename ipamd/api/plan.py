"""The plan that the plugin carries out: names and numbers of one pod's veth pair and routes (design, section 6)."""

from __future__ import annotations

import ipaddress

from cni_shim.names import host_ifname
from ipamd.api.v1 import ipam_pb2
from ipamd.host import link_group
from ipamd.pool.model import Attachment
from ipamd.settings import HostSettings

# The next hop inside the container. Nobody owns it: a permanent neighbour entry maps it to the host's end.
GATEWAY = "169.254.1.1"


def plan(
    attachment: Attachment, settings: HostSettings, device_index: int, mtu: int, netns: str
) -> ipam_pb2.AllocateReply:
    """Both MACs follow from the address, which is unique in the VPC: locally administered (second bit of the first
    octet), and set in the message that creates the pair, so that udev's MACAddressPolicy leaves them alone."""
    address = ipaddress.IPv4Address(attachment.address).packed
    return ipam_pb2.AllocateReply(
        address=address,
        prefix_length=32,
        gateway=ipaddress.IPv4Address(GATEWAY).packed,
        ifname=attachment.key.ifname,
        host_ifname=host_ifname(attachment.key.container_id, attachment.key.ifname),
        mac=b"\x0a\x58" + address,
        host_mac=b"\x0a\x59" + address,
        mtu=mtu,
        link_group=link_group(settings, device_index),
        table=settings.table,
        route_protocol=settings.route_protocol,
        netns=netns,
    )
