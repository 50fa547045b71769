"""A node with three ENIs in network namespaces, a pod on each, and a router that treats packets as a VPC does:

    pod namespaces            node namespace                       router namespace
    eth0 10.0.<i>.50 --- ipm<i>   eth<i> 10.0.<i>.10 ------------- p<i> 10.0.<i>.1
                                                                  lo  10.0.9.9       another host of the VPC
                                                                      198.51.100.10  a host outside

The router drops what comes from an ENI with a source that is not that ENI's, and what goes outside from anything but
the primary ENI's own address. So a connection that works has left, and was answered, by the right ENI with the right
source; nothing else has to be looked at.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, TypeVar

from ipamd.host import EniNetwork, HostNetwork, NodeNetwork, link_group
from ipamd.settings import HostSettings
from ipamd.sim import netns

VPC_HOST: Final = "10.0.9.9"
OUTSIDE: Final = "198.51.100.10"
ENIS: Final = tuple(
    EniNetwork(f"eni-{i}", f"02:00:00:00:10:0{i}", i, i == 0, f"10.0.{i}.10", f"10.0.{i}.0/24") for i in range(3)
)
NODE: Final = NodeNetwork(ENIS, ("10.0.0.0/16",))

_ROUTER: Final = """
table ip vpc {
  set inside { type ipv4_addr; flags interval; elements = { 10.0.0.0/16 }; }
  chain prerouting {
    type filter hook prerouting priority raw; policy accept;
    iifname "p0" ip saddr != { 10.0.0.10, 10.0.0.50 } drop
    iifname "p1" ip saddr != { 10.0.1.10, 10.0.1.50 } drop
    iifname "p2" ip saddr != { 10.0.2.10, 10.0.2.50 } drop
    iifname "p*" ip daddr @inside accept
    iifname "p*" ip saddr != 10.0.0.10 drop
  }
}
"""

T = TypeVar("T")


class Topology:
    """Everything is named with the prefix and removed at the end. The node is as an instance boots: eth0 set up by
    the system, the other ENIs' links down and bare."""

    def __init__(self, prefix: str, settings: HostSettings | None = None) -> None:
        self.settings = settings or HostSettings()
        self.node, self.router = f"{prefix}-node", f"{prefix}-router"
        self._pods = [f"{prefix}-pod{i}" for i in range(len(ENIS))]
        self._made: list[str] = []
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Topology:
        try:
            self._build()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._sockets:
            each.close()
        for name in self._made:
            subprocess.run(["ip", "netns", "delete", name], check=True)

    def _build(self) -> None:
        for name in (self.node, self.router, *self._pods):
            subprocess.run(["ip", "netns", "add", name], check=True)
            self._made.append(name)
            self.ip(name, "link set lo up")
        netns.write_sysctls(self.router, {"ipv4/ip_forward": 1, "ipv4/conf/all/rp_filter": 0})
        # As strict as any distribution boots: what is too strict for ENIs has to be undone.
        netns.write_sysctls(
            self.node, {"ipv4/ip_forward": 0, "ipv4/conf/all/rp_filter": 0, "ipv4/conf/default/rp_filter": 1}
        )
        self.ip(self.router, f"addr add {VPC_HOST}/32 dev lo", f"addr add {OUTSIDE}/32 dev lo")
        for eni in ENIS:
            self.plug(eni)
        self.ip(
            self.node, "link set eth0 up", "addr add 10.0.0.10/24 dev eth0", "route add default via 10.0.0.1 dev eth0"
        )
        self.nft(self.router, _ROUTER)
        for index, name in enumerate(self._pods):
            self._add_pod(index, name)

    def plug(self, eni: EniNetwork) -> None:
        i = eni.device_index
        self.ip(
            self.router,
            f"link add p{i} type veth peer name eth{i} address {eni.mac} netns {self.node}",
            f"link set p{i} up",
            f"addr add 10.0.{i}.1/24 dev p{i}",
            # Nobody answers ARP for a pod's address: the VPC knows which ENI has it.
            f"route add 10.0.{i}.50/32 via 10.0.{i}.10 dev p{i}",
        )

    def _add_pod(self, index: int, name: str) -> None:
        """What the plugin does."""
        address, group = f"10.0.{index}.50", link_group(self.settings, index)
        ends = f"link add ipm{index} address 0a:59:00:00:00:0{index} group {group} type veth"
        self.ip(
            self.node,
            f"{ends} peer name eth0 address 0a:58:00:00:00:0{index} netns {name}",
            f"link set ipm{index} up",
            f"route add {address}/32 dev ipm{index} scope link table {self.settings.table} "
            f"protocol {self.settings.route_protocol}",
        )
        self.ip(
            name,
            f"addr add {address}/32 dev eth0",
            "link set eth0 up",
            "route add 169.254.1.1 dev eth0 scope link",
            "route add default via 169.254.1.1 dev eth0",
            f"neigh add 169.254.1.1 lladdr 0a:59:00:00:00:0{index} dev eth0 nud permanent",
        )

    # Commands

    def ip(self, namespace: str, *commands: str) -> str:
        argv = ["ip", "-n", namespace, "-batch", "-"]
        done = subprocess.run(argv, input="\n".join(commands), text=True, capture_output=True)
        assert done.returncode == 0, f"{commands}: {done.stderr}"
        return done.stdout

    def nft(self, namespace: str, script: str) -> str:
        argv = ["ip", "netns", "exec", namespace, "nft", "-a", "-f", "-"]
        done = subprocess.run(argv, input=script, text=True, capture_output=True)
        assert done.returncode == 0, f"{script}: {done.stderr}"
        return done.stdout

    # The subject

    def host(self, steps: Callable[[HostNetwork], Awaitable[T]]) -> T:
        """What `steps` returns, run with an open HostNetwork inside the node."""

        async def inside() -> T:
            network = HostNetwork(self.settings)
            await network.open()
            try:
                return await steps(network)
            finally:
                await network.close()

        return netns.run_in(self.node, lambda: asyncio.run(inside()))

    def apply(self, node: NodeNetwork = NODE) -> list[str]:
        async def steps(network: HostNetwork) -> list[str]:
            return [str(step) for step in (await network.apply(node)).done]

        return self.host(steps)

    # Connections

    def place(self, who: str) -> str:
        """The namespace of "node", "router" or "pod<i>"."""
        return {"node": self.node, "router": self.router}.get(who) or self._pods[int(who.removeprefix("pod"))]

    def listen(self, who: str, address: str) -> tuple[socket.socket, int]:
        listener = netns.listen_in(self.place(who), address, 0)
        self._sockets.append(listener)
        return listener, listener.getsockname()[1]

    def connect(
        self, who: str, address: str, port: int, listener: socket.socket, *, source: str = "", patience: float = 10.0
    ) -> str:
        """Open a connection, send a byte each way, and return the client's address as the server sees it.

        Raises TimeoutError when no answer comes.
        """
        bound = (source, 0) if source else None
        client = netns.run_in(
            self.place(who), lambda: socket.create_connection((address, port), patience, source_address=bound)
        )
        with client:
            listener.settimeout(patience)
            server, peer = listener.accept()
            with server:
                server.settimeout(patience)
                client.sendall(b"?")
                assert server.recv(1) == b"?"
                server.sendall(b"!")
                assert client.recv(1) == b"!"
        return str(peer[0])
