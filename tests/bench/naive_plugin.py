"""The plugin as one writes it first, kept as a yardstick: json, grpcio with the generated stubs, pyroute2.

It asks the same daemon and leaves the same kernel state as `ipamd-cni`; it only does so with what a Python programmer
takes from the shelf. It has no spool, no undo and no care for races.
"""

from __future__ import annotations

import json
import os
import sys
from socket import AF_INET, inet_ntop

import grpc
from pyroute2 import IPRoute, NetNS

from ipamd.api.v1 import ipam_pb2, ipam_pb2_grpc


def main() -> None:
    text = sys.stdin.buffer.read()
    config = json.loads(text)
    call = ipam_pb2.CniCall(
        container_id=os.environ["CNI_CONTAINERID"],
        ifname=os.environ["CNI_IFNAME"],
        netns=os.environ["CNI_NETNS"],
        args=os.environ.get("CNI_ARGS", ""),
        path=os.environ.get("CNI_PATH", ""),
        config=text,
    )
    with grpc.insecure_channel(f"unix:{config['socket']}") as channel:
        ipam = ipam_pb2_grpc.IpamStub(channel)
        if os.environ["CNI_COMMAND"] == "ADD":
            plan = ipam.Allocate(ipam_pb2.AllocateRequest(cni=call))
            add(plan)
            print(plan.result.decode())
        else:
            delete(ipam.Release(ipam_pb2.ReleaseRequest(cni=call)).host_ifname)


def add(plan: ipam_pb2.AllocateReply) -> None:
    address, gateway = inet_ntop(AF_INET, plan.address), inet_ntop(AF_INET, plan.gateway)
    descriptor = os.open(plan.netns, os.O_RDONLY)
    with IPRoute() as host:
        mac, host_mac = plan.mac.hex(":"), plan.host_mac.hex(":")
        peer = {"ifname": plan.ifname, "address": mac, "mtu": plan.mtu, "net_ns_fd": descriptor}
        pair = {"ifname": plan.host_ifname, "address": host_mac, "mtu": plan.mtu, "group": plan.link_group}
        host.link("add", kind="veth", peer=peer, state="up", **pair)
        (index,) = host.link_lookup(ifname=plan.host_ifname)
        route = {"table": plan.table, "proto": plan.route_protocol, "scope": "link"}
        host.route("replace", dst=f"{address}/32", oif=index, **route)
    with NetNS(plan.netns) as pod:
        (index,) = pod.link_lookup(ifname=plan.ifname)
        pod.link("set", index=index, state="up")
        pod.addr("add", index=index, address=address, prefixlen=plan.prefix_length)
        pod.neigh("add", dst=gateway, lladdr=plan.host_mac.hex(":"), ifindex=index, state="permanent")
        pod.route("add", dst=f"{gateway}/32", oif=index, scope="link")
        pod.route("add", dst="default", gateway=gateway)


def delete(link: str) -> None:
    with IPRoute() as host:
        for index in host.link_lookup(ifname=link):
            host.link("del", index=index)


if __name__ == "__main__":
    main()
