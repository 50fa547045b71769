"""The plan that the plugin carries out: names and numbers of one pod's veth pair and routes (docs/network.md)."""

from __future__ import annotations

from socket import AF_INET, inet_pton

from ipamd.api.v1 import ipam_pb2
from ipamd.host import link_group
from ipamd.host.veth import host_link
from ipamd.pool.model import Attachment
from ipamd.settings import HostSettings

# The next hop inside the container. Nobody owns it: a permanent neighbour entry maps it to the host's end.
GATEWAY = "169.254.1.1"
PACKED_GATEWAY = inet_pton(AF_INET, GATEWAY)


def plan(
    attachment: Attachment, settings: HostSettings, device_index: int, mtu: int, netns: str
) -> ipam_pb2.AllocateReply:
    """Both MACs follow from the address, which is unique in the VPC: locally administered (second bit of the first
    octet), and set in the message that creates the pair, so that udev's MACAddressPolicy leaves them alone."""
    address = packed(attachment)
    return ipam_pb2.AllocateReply(
        address=address,
        prefix_length=32,
        gateway=PACKED_GATEWAY,
        ifname=attachment.key.ifname,
        host_ifname=host_link(attachment.key),
        mac=b"\x0a\x58" + address,
        host_mac=b"\x0a\x59" + address,
        mtu=mtu,
        link_group=link_group(settings, device_index),
        table=settings.table,
        route_protocol=settings.route_protocol,
        netns=netns,
    )


def packed(attachment: Attachment) -> bytes:
    """The address in network byte order."""
    return inet_pton(AF_INET, attachment.address)
