"""The installed plugin, run as a runtime runs it, in real network namespaces, against a daemon with fixed answers."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from cni_shim.names import DISCARDED_GROUP, host_ifname
from ipamd.api.v1 import ipam_pb2, ipam_pb2_grpc
from ipamd.install.plugin import InstalledPlugin, install_plugin
from ipamd.shell.serving import Record
from ipamd.sim import netns
from tests.executable import static_executable

pytestmark = pytest.mark.netns

CONTAINER = "7d0f" * 16
CONFIG = b'{"cniVersion":"1.0.0","name":"ipamd","type":"ipamd-cni"}'
HOST_ADDRESS = "10.77.0.1"
POD_ADDRESS = "10.77.0.5"
POD_MAC, HOST_MAC = "02:00:0a:4d:00:05", "02:01:0a:4d:00:05"
RESULT = b'{"cniVersion":"1.0.0","ips":[{"address":"10.77.0.5/32"}]}'
HOST_LINK = host_ifname(CONTAINER, "eth0")


def plan(**changes: Any) -> ipam_pb2.AllocateReply:
    values: dict[str, Any] = {
        "address": socket.inet_aton(POD_ADDRESS),
        "prefix_length": 32,
        "gateway": socket.inet_aton("169.254.1.1"),
        "ifname": "eth0",
        "host_ifname": HOST_LINK,
        "mac": bytes.fromhex(POD_MAC.replace(":", "")),
        "host_mac": bytes.fromhex(HOST_MAC.replace(":", "")),
        "mtu": 1400,
        "link_group": 1501,
        "table": 1500,
        "route_protocol": 158,
        "result": RESULT,
    }
    return ipam_pb2.AllocateReply(**(values | changes))


@dataclass
class Daemon(ipam_pb2_grpc.IpamServicer):
    """Answers as told and remembers what it was asked."""

    plan: ipam_pb2.AllocateReply = field(default_factory=plan)
    plans: dict[str, ipam_pb2.AllocateReply] = field(default_factory=dict)  # by container, before `plan`
    refusal: tuple[grpc.StatusCode, str, str | None] | None = None
    release_refused: bool = False
    allocating: Callable[[], Any] | None = None
    calls: list[tuple[str, Any]] = field(default_factory=list)
    called: asyncio.Event = field(default_factory=asyncio.Event)

    def made(self) -> list[str]:
        return [name for name, _ in self.calls]

    async def _record(self, name: str, request: Any, context: Any) -> None:
        self.calls.append((name, request))
        self.called.set()
        if self.refusal is not None and (name != "Release" or self.release_refused):
            code, message, error = self.refusal
            trailing = () if error is None else (("ipamd-cni-error", error),)
            await context.abort(code, message, trailing_metadata=trailing)

    async def Allocate(self, request: Any, context: Any) -> ipam_pb2.AllocateReply:
        await self._record("Allocate", request, context)
        if self.allocating is not None:
            await self.allocating()
        return self.plans.get(request.cni.container_id, self.plan)

    async def Release(self, request: Any, context: Any) -> ipam_pb2.ReleaseReply:
        await self._record("Release", request, context)
        return ipam_pb2.ReleaseReply(released=True)

    async def Check(self, request: Any, context: Any) -> ipam_pb2.CheckReply:
        await self._record("Check", request, context)
        return ipam_pb2.CheckReply(address=self.plan.address, gateway=self.plan.gateway)

    async def Ready(self, request: Any, context: Any) -> ipam_pb2.ReadyReply:
        await self._record("Ready", request, context)
        return ipam_pb2.ReadyReply(free=3)

    async def Collect(self, request: Any, context: Any) -> ipam_pb2.CollectReply:
        await self._record("Collect", request, context)
        return ipam_pb2.CollectReply(released=0)


@dataclass
class Outcome:
    status: int
    out: bytes
    err: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The CNI error object; nothing else may have been written."""
        assert self.status == 1 and self.err == b"", self
        value: dict[str, Any] = json.loads(self.out)
        assert value["cniVersion"] and value["msg"], value
        return value


@dataclass
class Node:
    """A host namespace, a container's namespace, an installed plugin and the folder of its daemon."""

    host: str
    pod: str
    directory: Path
    install_plugin: Callable[..., InstalledPlugin]  # in the packaging that this node has
    servers: list[grpc.aio.Server] = field(default_factory=list)

    @property
    def socket(self) -> Path:
        return self.directory / "ipamd.sock"

    @property
    def spool(self) -> Path:
        return self.directory / "released"

    @property
    def pod_path(self) -> str:
        return str(netns.DIRECTORY / self.pod)

    async def serve(self, daemon: Daemon) -> grpc.aio.Server:
        server = grpc.aio.server()
        ipam_pb2_grpc.add_IpamServicer_to_server(daemon, server)
        server.add_insecure_port(f"unix:{self.socket}")
        await server.start()
        self.servers.append(server)
        return server

    async def start(self, verb: str, **variables: str) -> asyncio.subprocess.Process:
        """Start the plugin in the host's namespace with a runtime's variables only; `NAME=""` sets CNI_NAME empty."""
        environment = {
            "COMMAND": verb,
            "CONTAINERID": CONTAINER,
            "NETNS": self.pod_path,
            "IFNAME": "eth0",
            "ARGS": "IgnoreUnknown=1;K8S_POD_NAME=web-0",
            "PATH": str(self.directory),
        } | variables
        return await asyncio.create_subprocess_exec(
            *("/usr/bin/nsenter", f"--net={netns.DIRECTORY / self.host}", str(self.directory / "bin" / "ipamd-cni")),
            env={f"CNI_{name}": value for name, value in environment.items()},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def cni(self, verb: str, config: bytes = CONFIG, **variables: str) -> Outcome:
        process = await self.start(verb, **variables)
        out, err = await process.communicate(config)
        assert process.returncode is not None
        return Outcome(process.returncode, out, err)

    async def ip(self, namespace: str, *arguments: str) -> Any:
        """What `ip -json` prints."""
        return json.loads(await netns.command("ip", "-n", namespace, "-json", *arguments) or "[]")

    async def received(self, link: str) -> int:
        """Packets that came in by the host's end of a pair."""
        (found,) = await self.ip(self.host, "-statistics", "link", "show", link)
        packets: int = found["stats64"]["rx"]["packets"]
        return packets

    async def host_links(self) -> list[str]:
        return [link["ifname"] for link in await self.ip(self.host, "link") if link["ifname"] != "lo"]

    async def pod_links(self) -> list[str]:
        return [link["ifname"] for link in await self.ip(self.pod, "link") if link["ifname"] != "lo"]

    async def ping(self, source: str, destination: str) -> None:
        await netns.command("ip", "netns", "exec", source, "ping", "-n", "-q", "-c1", "-W5", destination)

    async def sweep(self) -> None:
        """What a real daemon does with the pairs that DELs took out of service."""
        for link in await self.ip(self.host, "link"):
            if link["group"] == str(DISCARDED_GROUP):
                assert "UP" not in link["flags"], link
                assert await self.ip(self.host, "route", "show", "table", "all", "dev", link["ifname"]) == []
                await netns.command("ip", "-n", self.host, "link", "delete", link["ifname"])

    async def bare(self) -> bool:
        """Nothing is left, on either side, that a daemon would not remove."""
        await self.sweep()
        routes = await self.ip(self.host, "route", "show", "table", "all", "proto", "158")
        return await self.host_links() == [] and await self.pod_links() == [] and routes == []


@pytest.fixture(params=["launcher", "static"])
async def node(prefix: str, request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    """With the plugin in either packaging."""
    install = partial(install_plugin, packaging=request.param)
    if request.param == "static":
        install = partial(install, executable=static_executable())
    made = Node(f"{prefix}h", f"{prefix}p", Path(tempfile.mkdtemp(prefix="ipm")), install)
    try:
        await asyncio.to_thread(install, made.directory / "bin", made.socket, add_seconds=8.0)
        for name in (made.host, made.pod):
            await netns.create(name)
        await netns.ip_batch(
            made.host,
            ["link set lo up", f"address add {HOST_ADDRESS}/32 dev lo", "rule add priority 500 lookup 1500"],
        )
        yield made
        for server in made.servers:
            await server.stop(None)
        for name in (made.host, made.pod):
            await netns.delete(name)
    finally:  # a namespace that is left is removed, and complained of, by `prefix`
        shutil.rmtree(made.directory)


@pytest.fixture
async def daemon(node: Node) -> Daemon:
    daemon = Daemon()
    await node.serve(daemon)
    return daemon


async def test_add_connects_the_container(node: Node, daemon: Daemon) -> None:
    outcome = await node.cni("ADD")
    assert (outcome.status, outcome.out, outcome.err) == (0, RESULT + b"\n", b"")

    (_, request), *others = daemon.calls
    assert others == []
    assert request.cni == ipam_pb2.CniCall(
        container_id=CONTAINER,
        ifname="eth0",
        netns=node.pod_path,
        args="IgnoreUnknown=1;K8S_POD_NAME=web-0",
        path=str(node.directory),
        config=CONFIG,
    )
    assert 0 < request.deadline_ms <= 5000

    (host,) = await node.ip(node.host, "-d", "link", "show", HOST_LINK)
    assert host["address"] == HOST_MAC and host["mtu"] == 1400 and host["group"] == "1501"
    assert {"UP", "LOWER_UP"} <= set(host["flags"]) and host["linkinfo"]["info_kind"] == "veth"
    (route,) = await node.ip(node.host, "route", "show", "table", "1500")
    assert (route["dst"], route["dev"], route["scope"], route["protocol"]) == (POD_ADDRESS, HOST_LINK, "link", "158")
    assert await node.ip(node.host, "-6", "address", "show", HOST_LINK) == []
    accept = f"/proc/sys/net/ipv6/conf/{HOST_LINK}/accept_ra"
    assert await netns.command("ip", "netns", "exec", node.host, "cat", accept) == "0\n"

    (pod,) = [link for link in await node.ip(node.pod, "address") if link["ifname"] == "eth0"]
    assert pod["address"] == POD_MAC and pod["mtu"] == 1400 and "UP" in pod["flags"]
    assert [(a["local"], a["prefixlen"]) for a in pod["addr_info"] if a["family"] == "inet"] == [(POD_ADDRESS, 32)]
    default, gateway = await node.ip(node.pod, "route")
    assert (default["dst"], default["gateway"], default["dev"]) == ("default", "169.254.1.1", "eth0")
    assert (gateway["dst"], gateway["dev"], gateway["scope"]) == ("169.254.1.1", "eth0", "link")
    (neighbour,) = await node.ip(node.pod, "neighbour", "show", "169.254.1.1")
    assert neighbour["lladdr"] == HOST_MAC and neighbour["state"] == ["PERMANENT"]
    (loopback,) = await node.ip(node.pod, "link", "show", "lo")
    assert "UP" not in loopback["flags"]  # the runtime's own plugin sees to it

    await node.ping(node.host, POD_ADDRESS)
    await node.ping(node.pod, HOST_ADDRESS)


async def test_del_removes_everything_and_may_come_again(node: Node, daemon: Daemon) -> None:
    await node.cni("ADD")
    first = await node.cni("DEL")
    assert (first.status, first.out, first.err) == (0, b"", b"")
    assert await node.bare()
    again = await node.cni("DEL", NETNS="")
    assert (again.status, again.out) == (0, b"")
    assert daemon.made() == ["Allocate", "Release", "Release"]
    assert daemon.calls[1][1].cni.container_id == CONTAINER
    assert daemon.calls[2][1].cni.netns == ""
    assert not node.spool.exists()


def _strict(namespace: str, **values: int) -> None:
    netns.write_sysctls(namespace, {f"ipv4/conf/{name.replace('__', '/')}": value for name, value in values.items()})


async def test_host_end_forwards_with_default_off(node: Node, daemon: Daemon) -> None:
    """Packets that are to leave the node: the host forwards what comes in by a link that forwards."""
    await netns.ip_batch(
        node.host,
        ["link add up0 type veth peer up1", "link set up0 up", "link set up1 up", "address add 10.88.0.1/24 dev up0"],
    )
    netns.write_sysctls(node.host, {"ipv4/ip_forward": 1})
    _strict(node.host, default__forwarding=0)
    assert (await node.cni("ADD")).status == 0
    route = await node.ip(node.host, "route", "get", "10.88.0.9", "from", POD_ADDRESS, "iif", HOST_LINK)
    assert route[0]["dev"] == "up0"


@pytest.mark.parametrize("strictness", [2, 8])
@pytest.mark.parametrize("scope", ["all", "default"])
async def test_container_answers_arp_where_hosts_hardly_do(
    node: Node, daemon: Daemon, scope: str, strictness: int
) -> None:
    _strict(node.pod, **{f"{scope}__arp_ignore": strictness})
    assert (await node.cni("ADD")).status == 0
    await node.ping(node.host, POD_ADDRESS)


@pytest.mark.parametrize("ifname", ["eth0", "net1"])
async def test_name_and_address_are_free_when_del_returns(node: Node, daemon: Daemon, ifname: str) -> None:
    """Without any daemon that deletes the pair meanwhile."""
    daemon.plan = plan(ifname=ifname, host_ifname=host_ifname(CONTAINER, ifname))
    assert (await node.cni("ADD", IFNAME=ifname)).status == 0
    await netns.ip_batch(node.pod, [f"address add 10.9.9.9/24 dev {ifname}"])
    assert (await node.cni("DEL", IFNAME=ifname)).status == 0
    assert await node.pod_links() == ["gone0"]
    assert await node.ip(node.pod, "-4", "address") == []
    assert await node.ip(node.pod, "-4", "route", "show", "table", "all") == []
    await netns.ip_batch(node.pod, [f"link add {ifname} type veth peer other"])
    assert await node.host_links() == [host_ifname(CONTAINER, ifname)]
    await node.sweep()
    assert sorted(await node.pod_links()) == sorted([ifname, "other"])


async def test_add_for_another_container_right_after_del(node: Node, daemon: Daemon) -> None:
    names = [f"{number:064x}" for number in range(25)]
    daemon.plans = {name: plan(host_ifname=host_ifname(name, "eth0")) for name in names}
    for name in names:
        added = await node.cni("ADD", CONTAINERID=name)
        assert added.status == 0, added
        await node.ping(node.pod, HOST_ADDRESS)
        assert (await node.cni("DEL", CONTAINERID=name)).status == 0
    assert await node.bare()


async def test_del_without_a_daemon_frees_the_name(node: Node, daemon: Daemon) -> None:
    assert (await node.cni("ADD")).status == 0
    for server in node.servers:
        await server.stop(None)
    assert (await node.cni("DEL")).status == 0
    assert await node.pod_links() == [] and await node.host_links() == []


async def test_del_leaves_another_namespaces_links_alone(node: Node, daemon: Daemon, prefix: str) -> None:
    """CNI_NETNS may lead to another namespace by now: the same index there is somebody else's."""
    assert (await node.cni("ADD")).status == 0
    (ours,) = [link["ifindex"] for link in await node.ip(node.pod, "link") if link["ifname"] == "eth0"]
    other = f"{prefix}o"
    await netns.create(other)
    try:
        link = f"link add eth0 index {ours} type veth peer other index {ours + 1}"
        await netns.ip_batch(other, [link, "address add 10.9.9.9/24 dev eth0"])
        assert (await node.cni("DEL", NETNS=str(netns.DIRECTORY / other))).status == 0
        (found,) = [link for link in await node.ip(other, "-4", "address") if link["ifindex"] == ours]
        assert found["ifname"] == "eth0" and found["addr_info"][0]["local"] == "10.9.9.9"
    finally:
        await netns.delete(other)
    assert await node.bare()


async def test_a_repeated_add_builds_it_anew(node: Node, daemon: Daemon) -> None:
    await node.cni("ADD")
    assert (await node.cni("ADD")).status == 0
    assert await node.host_links() == [HOST_LINK]
    assert await node.pod_links() == ["eth0"]
    await node.ping(node.pod, HOST_ADDRESS)
    assert daemon.made() == ["Allocate", "Allocate"]


async def test_add_takes_over_a_route_left_behind(node: Node, daemon: Daemon) -> None:
    await netns.ip_batch(
        node.host,
        ["link add left type veth peer left1", "link set left up", f"route add {POD_ADDRESS} dev left table 1500"],
    )
    assert (await node.cni("ADD")).status == 0
    await node.ping(node.host, POD_ADDRESS)


async def test_name_taken_inside_the_container(node: Node, daemon: Daemon) -> None:
    await netns.ip_batch(node.pod, ["link add eth0 type veth peer other"])
    error = (await node.cni("ADD")).error
    assert error["code"] == 100 and "eth0" in error["msg"] and "already" in error["msg"]
    assert await node.host_links() == []
    assert sorted(await node.pod_links()) == ["eth0", "other"]
    assert daemon.made() == ["Allocate", "Release"]


async def test_another_default_route_is_left_alone(node: Node, daemon: Daemon) -> None:
    await netns.ip_batch(
        node.pod,
        [
            "link add net1 type veth peer net1p",
            "address add 10.9.0.2/24 dev net1",
            "link set net1 up",
            "route add default via 10.9.0.1",
        ],
    )
    daemon.plan = plan(result_beside=b'{"beside":true}')
    added = await node.cni("ADD")
    assert (added.status, added.out, added.err) == (0, b'{"beside":true}\n', b"")
    assert (await node.cni("CHECK")).status == 0
    first, second = await node.ip(node.pod, "route", "show", "default")
    assert first["dev"] == "net1" and "metric" not in first
    assert second["dev"] == "eth0" and second["metric"] > 0
    await node.ping(node.host, POD_ADDRESS)  # what comes from our address leaves by our interface
    await netns.ip_batch(node.pod, ["link delete net1"])
    await node.ping(node.pod, HOST_ADDRESS)
    assert (await node.cni("DEL")).status == 0
    await node.sweep()
    assert (await node.cni("ADD")).status == 0  # the rule for the address is still there
    await node.ping(node.pod, HOST_ADDRESS)


async def test_the_kernels_reason_reaches_the_runtime(node: Node, daemon: Daemon) -> None:
    daemon.plan = plan(mtu=60)
    error = (await node.cni("ADD")).error
    assert error["code"] == 100 and "create the veth pair" in error["msg"]
    assert "released" in error["details"]
    assert await node.bare()
    assert daemon.made() == ["Allocate", "Release"]


async def test_a_result_that_nobody_reads_is_undone(node: Node, daemon: Daemon) -> None:
    process = await node.start("ADD")
    assert process.stdin is not None
    process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined] # the runtime's end of stdout
    process.stdin.write(CONFIG)
    process.stdin.close()
    assert await process.wait() == 1
    assert await node.bare()
    assert daemon.made() == ["Allocate", "Release"]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/run/netns/no-such-namespace", 3),
        ("/etc/hostname/x", 3),
        ("/run/netns/" + "x" * 300, 3),
        ("/proc/self/ns/net", 4),
        ("/etc/hostname", 4),
        ("/dev/null", 4),
        ("/run", 4),
        *((f"/proc/self/ns/{kind}", 4) for kind in ("mnt", "pid", "user", "uts", "ipc", "cgroup")),
    ],
)
@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
async def test_a_wrong_namespace(node: Node, daemon: Daemon, path: str, code: int, verb: str) -> None:
    error = (await node.cni(verb, NETNS=path)).error
    assert error["code"] == code, error
    assert path in error["msg"] and error["details"]
    assert daemon.calls == []
    assert await node.bare()


async def test_del_with_a_namespace_of_another_kind(node: Node, daemon: Daemon) -> None:
    assert (await node.cni("ADD")).status == 0
    assert (await node.cni("DEL", NETNS="/proc/self/ns/mnt")).status == 0
    assert await node.bare()


@pytest.mark.parametrize("config", [b"", b"no JSON", b"  \n", b"[1]", b"\xff\xfe"])
@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
async def test_standard_input_that_is_no_configuration(node: Node, verb: str, config: bytes) -> None:
    assert (await node.cni(verb, config)).error["code"] == 6


@pytest.mark.parametrize(
    ("verb", "variable"),
    [("ADD", "CONTAINERID"), ("ADD", "IFNAME"), ("ADD", "NETNS"), ("DEL", "CONTAINERID"), ("CHECK", "NETNS")],
)
async def test_a_missing_variable(node: Node, daemon: Daemon, verb: str, variable: str) -> None:
    error = (await node.cni(verb, CONFIG, **{variable: ""})).error
    assert error["code"] == 4 and f"CNI_{variable}" in error["msg"]
    assert daemon.calls == []


@pytest.mark.parametrize("verb", ["", "add", "REMOVE"])
async def test_an_unknown_command(node: Node, verb: str) -> None:
    error = (await node.cni(verb)).error
    assert error["code"] == 4 and "CNI_COMMAND" in error["msg"]


async def test_the_daemons_own_error_is_printed_as_it_is(node: Node, daemon: Daemon) -> None:
    text = '{"cniVersion":"0.4.0","code":11,"msg":"no address","details":"SUBNET_EXHAUSTED: 0 free"}'
    daemon.refusal = (grpc.StatusCode.RESOURCE_EXHAUSTED, "subnet full", text)
    outcome = await node.cni("ADD")
    assert (outcome.status, outcome.out) == (1, text.encode() + b"\n")
    assert daemon.made() == ["Allocate"]
    assert await node.bare()


async def test_an_unusable_plan_is_given_back(node: Node, daemon: Daemon) -> None:
    daemon.plan = plan(mac=b"\1\2\3")
    error = (await node.cni("ADD")).error
    assert error["code"] == 101 and "mac" in error["msg"] and str(node.socket) in error["details"]
    assert daemon.made() == ["Allocate", "Release"]
    assert await node.bare()


async def test_add_without_a_daemon(node: Node) -> None:
    await asyncio.to_thread(install_plugin, node.directory / "bin", node.socket, add_seconds=3.3)
    error = (await node.cni("ADD")).error
    assert error["code"] == 11 and str(node.socket) in error["msg"] and "ipamd" in error["details"]
    assert await node.bare()
    assert not node.spool.exists()  # nobody has heard of it


async def test_add_waits_for_a_daemon_that_starts(node: Node) -> None:
    adding = asyncio.create_task(node.cni("ADD"))
    await asyncio.sleep(0.5)
    await node.serve(Daemon())
    assert (await adding).status == 0
    await node.ping(node.host, POD_ADDRESS)


async def test_add_outlives_a_restart_of_the_daemon(node: Node) -> None:
    first = Daemon(allocating=asyncio.Event().wait)
    server = await node.serve(first)
    adding = asyncio.create_task(node.cni("ADD"))
    await first.called.wait()
    await server.stop(None)
    second = Daemon()
    await node.serve(second)
    assert (await adding).status == 0
    assert second.made() == ["Allocate"]
    await node.ping(node.host, POD_ADDRESS)


async def test_a_draining_daemon_is_waited_for(node: Node, daemon: Daemon) -> None:
    daemon.refusal = (grpc.StatusCode.UNAVAILABLE, "stopping", None)
    adding = asyncio.create_task(node.cni("ADD"))
    await daemon.called.wait()
    daemon.refusal = None
    assert (await adding).status == 0


async def test_del_without_a_daemon_leaves_a_release(node: Node) -> None:
    server = await node.serve(Daemon())
    await node.cni("ADD")
    await server.stop(None)
    outcome = await node.cni("DEL", NETNS="")
    assert (outcome.status, outcome.out, outcome.err) == (0, b"", b"")
    assert await node.bare()
    (file,) = node.spool.iterdir()
    request = ipam_pb2.ReleaseRequest.FromString(file.read_bytes())
    assert request.cni.container_id == CONTAINER and request.cni.config == CONFIG
    assert not file.name.startswith(".")


async def test_del_does_not_wait_long_for_a_daemon_that_hangs(node: Node) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(node.socket))
        listening.listen()
        assert (await node.cni("DEL")).status == 0
    assert len(list(node.spool.iterdir())) == 1


async def test_del_when_not_even_the_spool_can_be_written(node: Node) -> None:
    node.spool.write_text("a file where the directory should be")
    error = (await node.cni("DEL")).error
    assert error["code"] == 5 and str(node.spool) in error["msg"]


async def test_del_that_the_daemon_does_not_understand(node: Node, daemon: Daemon) -> None:
    text = '{"cniVersion":"1.0.0","code":6,"msg":"malformed"}'
    daemon.refusal = (grpc.StatusCode.INVALID_ARGUMENT, "malformed", text)
    daemon.release_refused = True
    assert (await node.cni("DEL", b'{"cniVersion":}')).error["code"] == 6
    assert not node.spool.exists()


async def test_del_that_the_daemon_can_not_record_is_kept(node: Node, daemon: Daemon) -> None:
    daemon.refusal = (grpc.StatusCode.UNAVAILABLE, "disk full", '{"cniVersion":"1.0.0","code":11,"msg":"disk full"}')
    daemon.release_refused = True
    assert (await node.cni("DEL")).status == 0
    assert len(list(node.spool.iterdir())) == 1


async def test_a_del_overtakes_a_running_add(node: Node, daemon: Daemon) -> None:
    """A restarted runtime sends DEL while the ADD that it had started before still waits for its address."""
    daemon.allocating = lambda: asyncio.sleep(0.3)
    adding = asyncio.create_task(node.cni("ADD"))
    await daemon.called.wait()
    assert (await node.cni("DEL")).status == 0
    error = (await adding).error
    assert error["code"] == 11 and "DEL" in error["msg"]
    assert daemon.made() == ["Allocate", "Release", "Release"]
    assert await node.bare()


@pytest.mark.parametrize("after", [0.0, 0.001, 0.002, 0.004, 0.008])
async def test_an_add_that_was_stopped_for_long_undoes_itself(node: Node, daemon: Daemon, after: float) -> None:
    """Stopped so many seconds after its plan was on the way, for longer than the DEL is willing to wait."""
    adding = await node.start("ADD")
    assert adding.stdin is not None
    adding.stdin.write(CONFIG)
    adding.stdin.close()
    await daemon.called.wait()
    await asyncio.sleep(after)
    with suppress(ProcessLookupError):
        os.kill(adding.pid, signal.SIGSTOP)  # Process.send_signal() would take its end away from asyncio
    assert (await node.cni("DEL")).status == 0
    with suppress(ProcessLookupError):
        os.kill(adding.pid, signal.SIGCONT)
    out, err = await adding.communicate()
    outcome = Outcome(await adding.wait(), out, err)
    if outcome.status:
        assert "DEL" in outcome.error["msg"]
    # Else it had ended, or was past all work, when it was stopped: the DEL found everything there.
    assert daemon.made()[-1] == "Release"
    assert await node.bare()


@pytest.mark.parametrize("after", [0.0, 0.0005, 0.001, 0.0015, 0.002, 0.004])
async def test_an_add_that_is_killed_half_way_leaves_nothing_after_del(
    node: Node, daemon: Daemon, after: float
) -> None:
    adding = await node.start("ADD")
    assert adding.stdin is not None
    adding.stdin.write(CONFIG)
    adding.stdin.close()
    await daemon.called.wait()
    await asyncio.sleep(after)
    with suppress(ProcessLookupError):
        os.kill(adding.pid, signal.SIGKILL)
    await adding.wait()
    assert (await node.cni("DEL")).status == 0
    assert await node.bare()


async def test_check(node: Node, daemon: Daemon) -> None:
    missing = (await node.cni("CHECK")).error
    assert missing["code"] == 100 and "eth0" in missing["msg"] and "gone" in missing["msg"]
    await node.cni("ADD")
    good = await node.cni("CHECK")
    assert (good.status, good.out, good.err) == (0, b"", b"")


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        ("link set eth0 down", "is down"),
        ("link delete eth0", "is gone"),
        (f"address delete {POD_ADDRESS}/32 dev eth0", "lacks its address"),
        ("route delete default", "lacks its address or its routes"),
        ("route replace default dev eth0", "is not where"),
        ("neighbour delete 169.254.1.1 dev eth0", "neighbour"),
    ],
)
async def test_check_sees_what_is_wrong_in_the_container(node: Node, daemon: Daemon, damage: str, word: str) -> None:
    await node.cni("ADD")
    await netns.ip_batch(node.pod, [damage])
    error = (await node.cni("CHECK")).error
    assert error["code"] == 100 and "eth0" in error["msg"] and word in error["msg"]


async def test_nothing_passes_a_pair_that_is_out_of_service(node: Node, daemon: Daemon) -> None:
    """Another container gets the address before the daemon has deleted the old pair."""
    await node.cni("ADD")
    await node.ping(node.pod, HOST_ADDRESS)
    assert (await node.cni("DEL")).status == 0
    (old,) = await node.ip(node.host, "link", "show", HOST_LINK)
    assert await node.pod_links() == ["gone0"], "the pair is still there"
    heir = f"{node.pod}2"
    await netns.create(heir)
    try:
        name = host_ifname("heir", "eth0")
        daemon.plan = plan(host_ifname=name)
        assert (await node.cni("ADD", CONTAINERID="heir", NETNS=str(netns.DIRECTORY / heir))).status == 0
        await node.ping(node.host, POD_ADDRESS)
        before = await node.received(HOST_LINK)
        # From the old container, even if it takes the address again: not one packet.
        await netns.ip_batch(
            node.pod,
            [
                "link set gone0 up",
                f"address add {POD_ADDRESS}/32 dev gone0",
                "route add 169.254.1.1 dev gone0 scope link",
                "route add default via 169.254.1.1",
                f"neighbour replace 169.254.1.1 lladdr {HOST_MAC} dev gone0",
            ],
        )
        command = ("ip", "netns", "exec", node.pod, "ping", "-n", "-q", "-c3", "-i0.05", "-W1", HOST_ADDRESS)
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
        assert await process.wait() == 1
        assert await node.received(HOST_LINK) == before
        await node.ping(heir, HOST_ADDRESS)
        (still,) = await node.ip(node.host, "link", "show", HOST_LINK)
        assert still["ifindex"] == old["ifindex"]
    finally:
        await netns.delete(heir)


async def test_container_is_attached_anew_before_old_pair_is_deleted(node: Node, daemon: Daemon) -> None:
    """As `podman network reload` does it."""
    await node.cni("ADD")
    for _ in range(3):
        assert (await node.cni("DEL")).status == 0
        assert (await node.cni("ADD")).status == 0
        await node.ping(node.pod, HOST_ADDRESS)
    await node.sweep()
    await node.ping(node.pod, HOST_ADDRESS)


async def test_two_interfaces_of_one_container(node: Node, daemon: Daemon) -> None:
    """The first gives the default route; both addresses can be reached, and leave by their own interface."""
    second = host_ifname(CONTAINER, "eth1")
    await node.cni("ADD")
    daemon.plan = plan(
        address=socket.inet_aton("10.77.0.6"), ifname="eth1", host_ifname=second, result_beside=b'{"beside":true}'
    )
    added = await node.cni("ADD", IFNAME="eth1")
    assert added.out == b'{"beside":true}\n', added
    for address in (POD_ADDRESS, "10.77.0.6"):
        await node.ping(node.host, address)
    received = await node.received(second)
    await netns.command(
        *("ip", "netns", "exec", node.pod, "ping", "-n", "-q", "-c3", "-i0.05", "-I", "10.77.0.6", HOST_ADDRESS)
    )
    assert await node.received(second) >= received + 3
    # Without the first, the second carries everything.
    assert (await node.cni("DEL")).status == 0
    await node.sweep()
    await node.ping(node.pod, HOST_ADDRESS)
    assert (await node.cni("DEL", IFNAME="eth1")).status == 0
    assert await node.bare()


@pytest.mark.parametrize(("verb", "method"), [("STATUS", "Ready"), ("GC", "Collect")])
async def test_relays(node: Node, daemon: Daemon, verb: str, method: str) -> None:
    absent = {"CONTAINERID": "", "NETNS": "", "IFNAME": ""}
    good = await node.cni(verb, CONFIG, **absent)
    assert (good.status, good.out, good.err) == (0, b"", b"")
    assert daemon.made() == [method]
    assert daemon.calls[0][1].cni.config == CONFIG


async def test_status_without_a_daemon(node: Node) -> None:
    assert (await node.cni("STATUS")).error["code"] == 50


async def test_status_of_a_node_that_has_served_needs_no_daemon(node: Node, daemon: Daemon) -> None:
    record = Record(node.socket)
    record.write()
    daemon.refusal = (grpc.StatusCode.UNAVAILABLE, "full", '{"cniVersion":"1.1.0","code":50,"msg":"full"}')
    good = await node.cni("STATUS")
    assert (good.status, good.out, good.err) == (0, b"", b"") and daemon.calls == []
    await node.servers[0].stop(None)
    assert (await node.cni("STATUS")).status == 0
    record.path.write_text("00000000-0000-0000-0000-000000000000\n")  # written before a reboot
    assert (await node.cni("STATUS")).error["code"] == 50


async def test_status_asks_the_daemon_about_an_unknown_version(node: Node, daemon: Daemon) -> None:
    Record(node.socket).write()
    daemon.refusal = (grpc.StatusCode.INVALID_ARGUMENT, "version", '{"cniVersion":"9.9","code":1,"msg":"version"}')
    assert (await node.cni("STATUS", b'{"cniVersion":"9.9","name":"n"}')).error["code"] == 1


async def test_status_ends_soon_beside_a_socket_that_hangs(node: Node) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(node.socket))
        silent.listen(1)
        error = (await node.cni("STATUS")).error
        assert error["code"] == 50 and "no answer within" in error["msg"]
        Record(node.socket).write()
        assert (await node.cni("STATUS")).status == 0


async def test_status_of_a_daemon_that_stops(node: Node, daemon: Daemon) -> None:
    daemon.refusal = (grpc.StatusCode.UNAVAILABLE, "stopping", None)
    error = (await node.cni("STATUS")).error
    assert error["code"] == 50 and "stopping" in error["msg"]


async def test_version_needs_neither_daemon_nor_container(node: Node) -> None:
    dummy = {"NETNS": "dummy", "IFNAME": "dummy", "PATH": "dummy", "CONTAINERID": "", "ARGS": ""}
    outcome = await node.cni("VERSION", b'{"cniVersion":"0.4.0"}', **dummy)
    assert outcome.status == 0
    assert json.loads(outcome.out) == {
        "cniVersion": "0.4.0",
        "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }


async def test_a_log_only_on_request(node: Node, daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "plugin.log"
    daemon.plan = plan(request_id="r-7")
    await asyncio.to_thread(node.install_plugin, node.directory / "bin", node.socket, log=file)
    await node.cni("ADD")
    daemon.refusal = (grpc.StatusCode.UNAVAILABLE, "x", '{"cniVersion":"1.0.0","code":50,"msg":"not now"}')
    assert (await node.cni("STATUS")).error["code"] == 50
    added, asked = map(json.loads, file.read_text().splitlines())
    assert (added["verb"], added["container"], added["ifname"]) == ("ADD", CONTAINER, "eth0")
    assert added["request_id"] == "r-7" and added["ms"] > 0 and "error" not in added
    assert asked["verb"] == "STATUS" and asked["error"]["msg"] == "not now"
    file.unlink()
    file.mkdir()  # can't be written: the plugin works on
    assert (await node.cni("DEL")).status == 0


async def test_a_burst(node: Node, daemon: Daemon, prefix: str) -> None:
    """Many at once, each with its own container: every one gets its own pair."""
    containers = [f"c{number}" for number in range(12)]
    daemon.plans = {
        name: plan(address=socket.inet_aton(f"10.77.1.{number}"), host_ifname=host_ifname(name, "eth0"))
        for number, name in enumerate(containers)
    }
    names = [f"{prefix}{name}" for name in containers]
    try:
        for name in names:
            await netns.create(name)
        both = list(zip(containers, names, strict=True))
        path = str(netns.DIRECTORY)
        added = await asyncio.gather(*(node.cni("ADD", CONTAINERID=c, NETNS=f"{path}/{n}") for c, n in both))
        assert [outcome.status for outcome in added] == [0] * len(both)
        assert len(await node.host_links()) == len(both)
        await asyncio.gather(*(node.ping(node.host, f"10.77.1.{number}") for number in range(len(both))))
        deleted = await asyncio.gather(*(node.cni("DEL", CONTAINERID=c, NETNS=f"{path}/{n}") for c, n in both))
        assert [outcome.status for outcome in deleted] == [0] * len(both)
        assert await node.bare()
    finally:
        for name in names:
            await netns.delete(name)
