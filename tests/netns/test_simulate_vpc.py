"""The VPC in a box as a whole: in this process, and as the process that `ipamd simulate vpc` is."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipamd.cloud.budget import RateBudget
from ipamd.cloud.ec2 import Ec2
from ipamd.cloud.imds import Imds
from ipamd.config.load import load
from ipamd.sim import netns
from ipamd.sim import simulate as simulate_command
from ipamd.sim.ec2.cloud import Delays
from ipamd.sim.ec2.rules import Ask
from ipamd.sim.vpc import SimulatedNode, SimulatedVpc, SpecError

pytestmark = pytest.mark.netns

# Run inside a node: what a daemon's first steps are, with nothing but the standard library.
FETCH = """
import sys, urllib.request
url, token_url = sys.argv[1:]
put = urllib.request.Request(token_url, method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"})
token = urllib.request.urlopen(put, timeout=5).read().decode()
get = urllib.request.Request(url, headers={"X-aws-ec2-metadata-token": token})
print(urllib.request.urlopen(get, timeout=5).read().decode())
"""
POST = """
import sys, urllib.error, urllib.request
try:
    urllib.request.urlopen(sys.argv[1], data=sys.argv[2].encode(), timeout=5)
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""


async def metadata(vpc: SimulatedVpc, namespace: str, path: str) -> str:
    urls = f"{vpc.imds_url}/latest/meta-data/{path}", f"{vpc.imds_url}/latest/api/token"
    return (await netns.command("ip", "netns", "exec", namespace, sys.executable, "-c", FETCH, *urls)).strip()


async def test_each_node_is_an_instance_that_knows_who_it_is(tmp_path: Path, prefix: str) -> None:
    async with SimulatedVpc.build(
        dir=tmp_path,
        nodes={"n1": "m5.large", "n2": "c5.large"},
        subnets=["10.0.0.0/24", "10.0.1.0/24"],
        prefix=prefix,
    ) as vpc:
        assert [(node.name, node.instance_type) for node in vpc.nodes] == [("n1", "m5.large"), ("n2", "c5.large")]
        assert [node.primary_ip.rpartition(".")[0] for node in vpc.nodes] == ["10.0.0", "10.0.1"]
        for node in vpc.nodes:
            assert await metadata(vpc, node.netns, "instance-id") == node.instance_id
            assert await metadata(vpc, node.netns, "instance-type") == node.instance_type
            assert await metadata(vpc, node.netns, "local-ipv4") == node.primary_ip
        one, two = vpc.nodes
        await netns.command(*f"ip netns exec {one.netns} ping -n -q -c 1 -W 5 {two.primary_ip}".split())


async def test_the_ec2_endpoint_is_reachable_from_a_node(tmp_path: Path, prefix: str) -> None:
    async with SimulatedVpc.build(dir=tmp_path, nodes={"n1": "m5.large"}, prefix=prefix) as vpc:
        body = urllib.parse.urlencode({"Action": "DescribeInstances", "Version": "2016-11-15"})
        argv = ("ip", "netns", "exec", vpc.nodes[0].netns, sys.executable, "-c", POST, vpc.ec2_url, body)
        answer = await netns.command(*argv)

    assert answer.startswith("401 ") and "<Code>AuthFailure</Code>" in answer  # not signed, so refused


async def test_generated_node_configuration_is_accepted_by_the_daemon(tmp_path: Path, prefix: str) -> None:
    odd = tmp_path / 'a "quoted" dïr'
    async with SimulatedVpc.build(dir=odd, nodes={"n1": "m5.large"}, prefix=prefix) as vpc:
        [node] = vpc.nodes
        loaded = load(node.config, environ={}).settings

    assert node.dir == odd / "n1"
    assert loaded.api.socket == node.socket == odd / "n1" / "ipamd.sock"
    assert loaded.ledger.path == odd / "n1" / "ledger.db"
    assert loaded.cni.spool_dir == odd / "n1" / "released"
    assert loaded.cni.conf_dir == odd / "n1" / "net.d"
    assert (loaded.ec2.endpoint, loaded.imds.endpoint) == (vpc.ec2_url, vpc.imds_url)
    assert (odd / "n1" / "net.d").is_dir() and (odd / "n1" / "bin").is_dir()


QUICK = Delays(create=0, attach=0.05, detach=0.05, assign=0, link=0.05, imds_lag=0)


async def addresses_of(node: SimulatedNode) -> dict[str, str]:
    """MAC addresses of the node's links by name."""
    return {
        link["ifname"]: link["address"]
        for link in json.loads(await netns.command("ip", "-j", "-n", node.netns, "link"))
    }


async def test_cloud_changes_to_an_eni_reach_the_nodes_link(tmp_path: Path, prefix: str) -> None:
    nodes = {"n1": "m5.large", "n2": "m5.large"}
    async with SimulatedVpc.build(dir=tmp_path, nodes=nodes, delays=QUICK, prefix=prefix) as vpc:
        one, two = vpc.nodes
        subnet = next(iter(vpc.cloud.subnets))
        eni = await vpc.cloud.create_eni(subnet.id, Ask(1))
        attachment = vpc.cloud.attach_eni(eni.id, one.instance_id, 1)
        await vpc.cloud.settle()
        assert (await addresses_of(one))["eth1"] == eni.mac

        [pod] = await vpc.cloud.assign(eni.id, Ask(1))
        await netns.ip_batch(
            one.netns,
            [
                "link set eth1 up",
                f"addr add {pod}/32 dev lo",
                f"rule add from {pod} lookup 77",
                "route add default via 10.0.0.1 dev eth1 onlink table 77",
            ],
        )
        ping = f"ip netns exec {two.netns} ping -n -q -c 1 -W".split()
        await netns.command(*ping, "5", pod)
        await vpc.cloud.unassign(eni.id, [pod])
        with pytest.raises(netns.CommandError):
            await netns.command(*ping, "0.5", pod)

        vpc.cloud.detach_eni(attachment.id)
        await vpc.cloud.settle()
        assert set(await addresses_of(one)) == {"lo", "eth0"}


async def test_the_daemons_own_cloud_side_works_from_a_node(
    tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Identity and credentials from instance metadata, then a signed call that makes a link appear."""
    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    async with SimulatedVpc.build(dir=tmp_path, nodes={"n1": "m5.large"}, delays=QUICK, prefix=prefix) as vpc:
        [node] = vpc.nodes
        loaded = load(node.config, environ={}).settings

        async def grow() -> str:
            async with Imds(loaded.imds.endpoint) as imds:
                identity = await imds.identity()
            assert (identity.instance_id, identity.primary_ip) == (node.instance_id, node.primary_ip)
            async with Ec2(loaded.ec2, loaded.imds, identity, RateBudget()) as ec2:
                created = await ec2.create_eni(
                    token="t", subnet_id=identity.subnet_id, security_groups=(), address_count=3
                )
                await ec2.attach_eni(created.id, 1)
            return created.mac

        # A loop of its own, on a thread inside the node: whatever it opens belongs there.
        mac = await asyncio.to_thread(netns.run_in, node.netns, lambda: asyncio.run(grow()))
        await vpc.cloud.settle()
        assert (await addresses_of(node))["eth1"] == mac


@pytest.mark.parametrize(
    ("nodes", "subnets", "message"),
    [
        ({}, ["10.0.0.0/24"], "at least one node"),
        ({"N_1": "m5.large"}, ["10.0.0.0/24"], "node name"),
        ({"n1": "m5.larg"}, ["10.0.0.0/24"], "did you mean .*m5.large"),
        ({"n1": "warp9.huge"}, ["10.0.0.0/24"], "'warp9.huge' is not known"),
        ({"n1": "m5.large"}, [], "at least one subnet"),
        ({"n1": "m5.large"}, ["10.0.0.0"], "a /16 to a /28"),
        ({"n1": "m5.large"}, ["10.0.0.5/24"], "host bits set"),
        ({"n1": "m5.large"}, ["ten/24"], "write it like"),
        ({"n1": "m5.large"}, ["10.0.0.0/24", "10.0.0.128/25"], "overlaps"),
        ({"n1": "m5.large"}, ["10.0.0.0/24", "10.1.0.0/24"], "outside 10.0.0.0/16"),
        ({f"n{i}": "m5.large" for i in range(12)}, ["10.0.0.0/28"], "room for 11 addresses, but 12 nodes"),
    ],
)
async def test_what_cannot_be_built_is_refused_with_the_remedy(
    tmp_path: Path, prefix: str, nodes: dict[str, str], subnets: list[str], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        async with SimulatedVpc.build(dir=tmp_path, nodes=nodes, subnets=subnets, prefix=prefix):
            pass
    assert list(tmp_path.iterdir()) == []


async def test_nothing_is_left_when_the_last_step_fails(tmp_path: Path, prefix: str) -> None:
    (tmp_path / "n2").touch()  # in the place of the directory of the second node

    with pytest.raises(NotADirectoryError):
        async with SimulatedVpc.build(dir=tmp_path, nodes={"n1": "m5.large", "n2": "m5.large"}, prefix=prefix):
            pass
    assert list(netns.DIRECTORY.glob(f"{prefix}*")) == []


async def test_a_path_too_long_for_a_unix_socket_is_refused(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(SpecError, match="shorter path"):
        async with SimulatedVpc.build(dir=tmp_path / ("x" * 100), nodes={"n1": "m5.large"}, prefix=prefix):
            pass


class Simulation:
    """A running `ipamd simulate vpc` and what its ready line said."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ipamd", "simulate", "vpc", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            pytest.fail(f"no ready line: {self.process.communicate()[1]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """Send the signal; returns exit code, further standard output and standard error."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def simulate() -> Iterator[Callable[..., Simulation]]:
    started: list[Simulation] = []

    def start(*options: str) -> Simulation:
        started.append(Simulation(*options))
        return started[-1]

    yield start
    for simulation in started:
        if simulation.process.poll() is None:
            simulation.stop()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def namespaces_of(ready: dict[str, Any]) -> set[str]:
    """All namespaces of the VPC that a ready line describes: its nodes', the router's and the internet's."""
    [prefix] = {node["netns"].removesuffix(f"-{node['name']}") for node in ready["nodes"]}
    return {path.name for path in netns.DIRECTORY.iterdir() if path.name.startswith(prefix)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command_reports_readiness_and_removes_everything(
    tmp_path: Path, simulate: Callable[..., Simulation], number: signal.Signals
) -> None:
    simulation = simulate("--dir", str(tmp_path), "--node", "n1=m5.large", "--node", "n2=c5.large")
    ready = simulation.ready()

    assert set(ready) == {"ec2", "imds", "control", "router", "internet", "peer", "nodes", "hosts"}
    assert {ready[name] for name in ("router", "internet", "peer")} < namespaces_of(ready)
    assert [(n["name"], n["instance_type"], n["dir"]) for n in ready["nodes"]] == [
        ("n1", "m5.large", str(tmp_path / "n1")),
        ("n2", "c5.large", str(tmp_path / "n2")),
    ]
    state = get(f"{ready['control']}/_control/state")
    placed = {eni["instance_id"]: eni["primary_ip"] for eni in state["enis"]}
    assert placed == {node["instance_id"]: node["primary_ip"] for node in ready["nodes"]}
    assert {node["netns"] for node in ready["nodes"]} < namespaces_of(ready)

    assert simulation.stop(number) == (0, "", "")
    assert namespaces_of(ready) == set()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n1", "n2"]


def test_machines_hosts_and_web_names_are_on_the_ready_line(
    tmp_path: Path, simulate: Callable[..., Simulation]
) -> None:
    options = ["--node", "n1=m5.large", "--host", "cp", "--machines", "--web-name", "example.org"]
    simulation = simulate("--dir", str(tmp_path), *options)
    ready = simulation.ready()
    [node], [host] = ready["nodes"], ready["hosts"]

    assert host["name"] == "cp" and host["primary_ip"] != node["primary_ip"]
    for machine in (node, host):
        enter = [sys.executable, "-m", "ipamd", "simulate", "enter", machine["netns"], "--"]
        said = subprocess.check_output([*enter, "sh", "-c", "hostname; getent hosts example.org"], text=True)
        assert said.split() == [machine["name"], "203.0.113.80", "example.org"]
        assert Path(f"/sys/fs/cgroup/cpu{machine['cgroup']}").exists() or Path("/sys/fs/cgroup/cgroup.procs").exists()
    assert simulation.stop() == (0, "", "")
    assert not Path(f"/proc/{node['pid']}").exists()
    assert (tmp_path / "n1/etc/ipamd/config.toml").exists() and not (tmp_path / "cp/etc/ipamd/config.toml").exists()


def test_a_relative_directory_is_told_in_full(
    tmp_path: Path, simulate: Callable[..., Simulation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ready = simulate("--dir", "here", "--node", "n1=m5.large").ready()

    assert ready["nodes"][0]["dir"] == str(tmp_path / "here" / "n1")


def test_two_simulations_of_one_cidr_stand_side_by_side(tmp_path: Path, simulate: Callable[..., Simulation]) -> None:
    one, two = (simulate("--dir", str(tmp_path / name), "--node", "n1=m5.large") for name in ("a", "b"))
    first, second = one.ready(), two.ready()

    assert namespaces_of(first).isdisjoint(namespaces_of(second))
    assert one.stop()[0] == 0
    assert len(get(f"{second['control']}/_control/state")["instances"]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--node", "n1"], "--node n1: write it like n1=m5.large"),
        (["--node", "n1=m5.large", "--node", "n1=c5.large"], "n1 is given twice"),
        (["--node", "n1=m5.lrage"], "did you mean"),
        (["--node", "n1=m5.large", "--subnet", "10.0.0.0/30"], "/16 to a /28"),
        (["--node", "n1=m5.large", "--delay", "coffee=1"], "coffee is not one of"),
        (["--node", "n1=m5.large", "--delay", "attach=soon"], "not a number"),
        (["--node", "n1=m5.large", "--delay", "attach=-1"], "give 0 to"),
        (["--node", "n1=m5.large", "--subnet", "198.51.0.0/24"], "stands for other networks"),
        (["--node", "n1=m5.large", "--hop-limit", "0"], "EC2 allows 1 to 64"),
        (["--node", "n1=m5.large", "--dir", "/dev/null/x"], "Not a directory"),
    ],
)
def test_bad_options_end_with_one_line_and_exit_code_1(
    tmp_path: Path, simulate: Callable[..., Simulation], options: list[str], message: str
) -> None:
    simulation = simulate("--dir", str(tmp_path), *options)
    out, err = simulation.process.communicate(timeout=60)

    assert (simulation.process.returncode, out) == (1, "")
    assert message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_root_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    simulate_command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["simulate", "vpc", "--dir", str(tmp_path), "--node", "n1=m5.large"])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert args.run(args) == 1
    out, err = capsys.readouterr()
    assert out == "" and "need root" in err and err.count("\n") == 1
