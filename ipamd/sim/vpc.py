"""The VPC in a box: packet fabric, EC2 and IMDS double, and a directory for each node, as one thing.

`SimulatedVpc.build` is what `ipamd simulate vpc`, the demo and the end-to-end tests stand on. Each node gets a
network namespace, which is to the daemon what the instance is, and a directory with everything that on a real
instance has a fixed place (socket, ledger, CNI configuration, plugin), so that many nodes share a machine:

    DIR/<node>/config.toml   for `ipamd run --config`
    DIR/<node>/ipamd.sock, ledger.db, released/
    DIR/<node>/net.d/        CNI configuration
    DIR/<node>/bin/          CNI plugins

With `machines` each node is a machine instead (`ipamd.sim.machine`), where everything has its fixed place;
DIR/<node>/etc/ipamd, etc/cni, var/lib/kubelet and the like are the folders that outlive its power cut. A host is in
the VPC as a node is, but no pool: it has neither configuration nor plugin.
"""

from __future__ import annotations

import difflib
import ipaddress
import itertools
import json
import re
import socket
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ipamd.cloud import limits
from ipamd.sim import internet
from ipamd.sim.ec2.cloud import Delays, SimulatedCloud, new_id
from ipamd.sim.ec2.consistency import Lags
from ipamd.sim.ec2.faults import Fault
from ipamd.sim.ec2.rules import RESERVED
from ipamd.sim.ec2.rules.throttle import Throttle
from ipamd.sim.fabric import EC2_ADDRESS, IMDS_ADDRESS, Fabric
from ipamd.sim.imds import DEFAULT_HOP_LIMIT, MOST_HOPS
from ipamd.sim.machine import Machine
from ipamd.sim.servers import CloudServers

EC2_URL: Final = f"http://{EC2_ADDRESS}"
IMDS_URL: Final = f"http://{IMDS_ADDRESS}"

_HOST_TYPE: Final = "m5.large"  # its size does not matter: nothing asks EC2 for a host
_NODE_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_LONGEST_SOCKET_PATH: Final = 107  # sun_path of unix(7), without its final NUL
_VPC_PREFIX: Final = 16  # a VPC and a subnet have /16 to /28: AWS, "VPC CIDR blocks", "Subnet sizing for IPv4"
_LONGEST_PREFIX: Final = 28


class SpecError(ValueError):
    """What was asked for can't be built; the message says what to change."""


@dataclass(frozen=True, slots=True)
class SimulatedNode:
    name: str
    netns: str  # as ip-netns(8) names it
    dir: Path
    instance_id: str
    instance_type: str
    primary_ip: str
    machine: Machine | None = None

    @property
    def config(self) -> Path:
        return self.dir / ("config.toml" if self.machine is None else "etc/ipamd/config.toml")

    @property
    def socket(self) -> Path:
        """Raises `MachineError` when the node is a machine that is off."""
        return self.dir / "ipamd.sock" if self.machine is None else self.machine.path("/run/ipamd/ipamd.sock")


@dataclass(frozen=True, slots=True)
class SimulatedVpc:
    """A VPC that is up. `nodes` and `hosts` are in the order in which they were asked for."""

    nodes: tuple[SimulatedNode, ...]
    hosts: tuple[SimulatedNode, ...]
    cloud: SimulatedCloud
    fabric: Fabric
    control_url: str  # reachable from the network namespace of the caller
    ec2_url: str = EC2_URL  # these two from the nodes'
    imds_url: str = IMDS_URL

    @classmethod
    @asynccontextmanager
    async def build(
        cls,
        *,
        dir: Path,
        nodes: Mapping[str, str],
        subnets: Sequence[str] = ("10.0.0.0/24",),
        delays: Delays | None = None,
        lags: Lags | None = None,
        throttle: Throttle | None = None,
        faults: Sequence[Fault] = (),
        hop_limit: int = DEFAULT_HOP_LIMIT,
        prefix: str = "",
        hosts: Sequence[str] = (),
        machines: bool = False,
        names: Sequence[str] = (),
    ) -> AsyncIterator[SimulatedVpc]:
        """Build everything, and remove it at the end, except for `dir` and what is in it.

        `nodes` maps names to instance types. They are dealt out over the subnets in turn. The VPC's CIDR is the /16
        around the first subnet. EC2 is consistent and has no limits of requests unless `lags` and `throttle` say
        otherwise; `faults` are there from the beginning. `hop_limit`: see `ipamd.sim.imds`. `prefix` begins the names
        of all namespaces (default: random). `hosts` and `machines`: see above. `names` are known in the internet, see
        `ipamd.sim.internet`. Raises `SpecError`, `MachineError`, `netns.CommandError` (not root, nft missing) and
        OSError.
        """
        networks = _check_subnets(subnets)
        if not 1 <= hop_limit <= MOST_HOPS:
            raise SpecError(f"hop limit {hop_limit}: EC2 allows 1 to {MOST_HOPS}")
        types = _check_nodes(nodes, hosts, networks)
        if not machines:
            _check_sockets(dir.absolute(), nodes)
        vpc_cidr = str(networks[0].supernet(new_prefix=_VPC_PREFIX))
        async with AsyncExitStack() as stack:
            fabric = await stack.enter_async_context(Fabric(vpc_cidr, prefix))
            cloud = SimulatedCloud(vpc_cidr, limits=limits.table(), wiring=fabric, delays=delays, lags=lags)
            for network in networks:
                await fabric.add_subnet(str(network))
                cloud.add_subnet(str(network))
            ec2 = stack.enter_context(fabric.listen(EC2_ADDRESS, 80))
            imds = stack.enter_context(fabric.listen(IMDS_ADDRESS, 80))
            control = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            servers = CloudServers(
                cloud, ec2=ec2, imds=imds, control=control, throttle=throttle, script=faults, hop_limit=hop_limit
            )
            stack.push_async_callback(servers.stop)
            await servers.start()
            await stack.enter_async_context(internet.serve(fabric.internet, names))
            made = [
                await _add_node(fabric, cloud, subnet.id, dir.absolute() / name, instance_type, machines)
                for (name, instance_type), subnet in zip(types.items(), itertools.cycle(cloud.subnets))
            ]
            for node in made:
                if node.name in nodes:
                    _write_config(node)
                if node.machine is not None:
                    stack.push_async_callback(node.machine.power_cut)
                    await node.machine.boot()
            inside, outside = made[: len(nodes)], made[len(nodes) :]
            url = f"http://127.0.0.1:{control.getsockname()[1]}"
            yield cls(tuple(inside), tuple(outside), cloud, fabric, url)

    async def boot(self, node: SimulatedNode) -> None:
        """Boot the node's machine after its power cut, in a network namespace as a booted instance has it. Raises
        `MachineError`, `netns.CommandError` and OSError."""
        assert node.machine is not None
        await self.fabric.restart(node.instance_id)
        await node.machine.boot()


async def _add_node(
    fabric: Fabric, cloud: SimulatedCloud, subnet_id: str, dir: Path, instance_type: str, machines: bool
) -> SimulatedNode:
    instance_id = new_id("i")
    namespace = await fabric.add_node(instance_id, dir.name)
    instance = await cloud.add_instance(dir.name, instance_type, subnet_id, instance_id=instance_id)
    machine = Machine(dir.name, namespace, dir, internet.RESOLVER) if machines else None
    primary_ip = instance.primary.addresses[0]
    return SimulatedNode(dir.name, namespace, dir, instance_id, instance_type, primary_ip, machine)


def _check_subnets(cidrs: Sequence[str]) -> list[ipaddress.IPv4Network]:
    networks: list[ipaddress.IPv4Network] = []
    for cidr in cidrs:
        try:
            network = ipaddress.IPv4Network(cidr)
        except ValueError as error:
            raise SpecError(f"subnet {cidr}: {error}; write it like 10.0.0.0/24") from None
        if not _VPC_PREFIX <= network.prefixlen <= _LONGEST_PREFIX:
            raise SpecError(f"subnet {cidr}: a subnet has a /{_VPC_PREFIX} to a /{_LONGEST_PREFIX}")
        for other in networks:
            if network.overlaps(other):
                raise SpecError(f"subnet {cidr} overlaps subnet {other}")
        networks.append(network)
    if not networks:
        raise SpecError("a VPC needs at least one subnet, for instance 10.0.0.0/24")
    vpc = networks[0].supernet(new_prefix=_VPC_PREFIX)
    for network in networks:
        if not network.subnet_of(vpc):
            raise SpecError(f"subnet {network} is outside {vpc}, the VPC around the first subnet")
    return networks


def _check_nodes(
    nodes: Mapping[str, str], hosts: Sequence[str], subnets: Sequence[ipaddress.IPv4Network]
) -> dict[str, str]:
    """The instance types of all of them by name, nodes first."""
    if not nodes:
        raise SpecError("a VPC in a box needs at least one node, for instance n1=m5.large")
    known = limits.table()
    for name in (*nodes, *hosts):
        if not _NODE_NAME.fullmatch(name):
            raise SpecError(f"node name {name!r}: use lower-case letters, digits and inner hyphens, at most 32")
    for name, instance_type in nodes.items():
        if instance_type not in known:
            near = difflib.get_close_matches(instance_type, known, n=3)
            raise SpecError(
                f"node {name}: instance type {instance_type!r} is not known"
                + (f"; did you mean {' or '.join(near)}?" if near else "")
            )
    types = {**nodes, **dict.fromkeys(hosts, _HOST_TYPE)}
    if len(types) < len(nodes) + len(hosts):
        raise SpecError(f"each node and host needs a name of its own: {', '.join((*nodes, *hosts))}")
    for index, subnet in enumerate(subnets):
        wanted = len(range(index, len(types), len(subnets)))
        room = subnet.num_addresses - RESERVED
        if wanted > room:
            raise SpecError(f"subnet {subnet} has room for {room} addresses, but {wanted} nodes; take a larger one")
    return types


def _check_sockets(dir: Path, nodes: Iterable[str]) -> None:
    for name in nodes:
        length = len(bytes(dir / name / "ipamd.sock"))
        if length > _LONGEST_SOCKET_PATH:
            raise SpecError(
                f"{dir / name / 'ipamd.sock'}: {length} bytes are too many for the path of a Unix socket "
                f"(at most {_LONGEST_SOCKET_PATH}); choose a directory with a shorter path"
            )


def _write_config(node: SimulatedNode) -> None:
    sections: dict[str, dict[str, object]] = {
        "ec2": {"endpoint": EC2_URL, "check_permissions": False},  # tests that count calls count those that matter
        "imds": {"endpoint": IMDS_URL},
    }
    folders = ["etc/ipamd"]
    if node.machine is None:
        folders = ["net.d", "bin"]
        sections |= {
            "api": {"socket": str(node.socket)},
            "ledger": {"path": str(node.dir / "ledger.db")},
            "cni": {
                "spool_dir": str(node.dir / "released"),
                "conf_dir": str(node.dir / "net.d"),
                "bin_dirs": [str(node.dir / "bin")],
            },
        }
    for folder in folders:
        (node.dir / folder).mkdir(parents=True, exist_ok=True)
    lines = []
    for section, keys in sections.items():
        lines += [
            f"[{section}]",
            *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in keys.items()),
            "",
        ]
    node.config.write_text("\n".join(lines), encoding="utf-8")
