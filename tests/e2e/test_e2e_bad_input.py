"""Bad input and bad circumstances through the real plugin and daemon: a clear reason, the right code, no trace."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from ipamd.install.plugin import install_plugin
from ipamd.neighbours.chain import PLUGIN
from ipamd.pool.model import CloudErrorKind, Limits
from ipamd.sim import netns as namespaces
from ipamd.sim.demo.checks import ControlClient, leaks
from ipamd.sim.demo.node import DaemonFailed, Node
from ipamd.sim.runtimes.direct import Direct, Outcome, PluginError, direct
from ipamd.sim.vpc import SimulatedVpc

pytestmark = pytest.mark.e2e

NETWORK = {"cniVersion": "1.0.0", "name": "ipamd", "type": PLUGIN}
GOOD = json.dumps(NETWORK).encode()
# CNI specification 1.1.0, section "Error"
INCOMPATIBLE_VERSION, UNKNOWN_CONTAINER, INVALID_ENVIRONMENT, UNDECODABLE, INVALID_CONFIG, TRY_LATER = (
    1,
    3,
    4,
    6,
    7,
    11,
)


@pytest.fixture
def types() -> Mapping[str, str]:
    return {"n1": "m5.large"}


@dataclass
class Caller:
    """A runtime with one container, which may say whatever it likes to the plugin."""

    runtime: Direct
    netns: str
    container: str

    async def __call__(
        self, command: str, config: bytes = GOOD, variables: Mapping[str, str | None] | None = None
    ) -> Outcome:
        """`variables`: changes to what a good runtime says; None: not set."""
        netns = str(namespaces.DIRECTORY / self.netns)
        said = {"CONTAINERID": self.container, "NETNS": netns, "IFNAME": "eth0", **(variables or {})}
        environment = {name: value for name, value in said.items() if value is not None}
        return await self.runtime.execute(command, PLUGIN, config, environment)

    async def links(self) -> list[str]:
        """The container's interfaces."""
        links = json.loads(await namespaces.command("ip", "-n", self.netns, "-json", "link"))
        return [link["ifname"] for link in links]


async def caller_on(node: Node) -> AsyncIterator[Caller]:
    container = secrets.token_hex(32)
    name = f"{node.spec.netns}-{container[:8]}"
    await namespaces.create(name)
    try:
        async with direct(node.spec.netns, node.bin_dir, node.conf_dir) as runtime:
            yield Caller(runtime, name, container)
    finally:
        await namespaces.delete(name)


@pytest.fixture
async def call(node: Node) -> AsyncIterator[Caller]:
    async for caller in caller_on(node):
        yield caller


@pytest.fixture
async def cold_call(cold_nodes: list[Node]) -> AsyncIterator[Caller]:
    async for caller in caller_on(cold_nodes[0]):
        yield caller


def error_of(outcome: Outcome) -> dict[str, Any]:
    """The CNI error object; nothing else may have been written."""
    assert outcome.exit_code == 1, outcome
    assert outcome.err == b"", outcome
    error: dict[str, Any] = json.loads(outcome.out)
    assert error["cniVersion"] and error["msg"] and error["details"], error
    return error


def changed(**changes: object) -> bytes:
    network = {**NETWORK, **changes}
    return json.dumps({key: value for key, value in network.items() if value is not None}).encode()


BAD_CONFIGS: list[tuple[bytes, int, str]] = [
    (b"", UNDECODABLE, "JSON"),
    (b"{", UNDECODABLE, "JSON"),
    (GOOD[:-1], UNDECODABLE, "JSON"),
    (b"{" * 100_000, UNDECODABLE, "JSON"),
    (b"\xff\xfe{}", UNDECODABLE, "JSON"),
    (b"[1, 2]", UNDECODABLE, "JSON"),
    (b"{}", INVALID_CONFIG, "cniVersion"),
    (changed(cniVersion=None), INVALID_CONFIG, "cniVersion"),
    (changed(cniVersion="9.9.9"), INCOMPATIBLE_VERSION, "1.1.0"),
    (changed(name=None), INVALID_CONFIG, "name"),
    (changed(name="../etc"), INVALID_CONFIG, "name"),
]

BAD_ENVIRONMENTS: list[tuple[dict[str, str | None], int, str]] = [
    ({"CONTAINERID": None}, INVALID_ENVIRONMENT, "CNI_CONTAINERID"),
    ({"CONTAINERID": "../x"}, INVALID_ENVIRONMENT, "CNI_CONTAINERID"),
    ({"IFNAME": None}, INVALID_ENVIRONMENT, "CNI_IFNAME"),
    ({"IFNAME": "longer-than-any-link"}, INVALID_ENVIRONMENT, "CNI_IFNAME"),
    ({"IFNAME": "a/b"}, INVALID_ENVIRONMENT, "CNI_IFNAME"),
    ({"NETNS": None}, INVALID_ENVIRONMENT, "CNI_NETNS"),
    ({"NETNS": "/etc/passwd"}, INVALID_ENVIRONMENT, "CNI_NETNS"),
    ({"NETNS": "/run/netns/there-is-no-such-one"}, UNKNOWN_CONTAINER, "CNI_NETNS"),
    ({"ARGS": "nonsense"}, INVALID_ENVIRONMENT, "CNI_ARGS"),
]


async def test_malformed_calls_are_refused_with_the_reason(call: Caller, node: Node, control: ControlClient) -> None:
    for config, code, word in BAD_CONFIGS:
        for command in ("ADD", "DEL", "CHECK"):
            error = error_of(await call(command, config))
            assert (error["code"], word in error["msg"] + error["details"]) == (code, True), (
                command,
                config[:80],
                error,
            )
    for variables, code, word in BAD_ENVIRONMENTS:
        error = error_of(await call("ADD", variables=variables))
        assert (error["code"], word in error["msg"] + error["details"]) == (code, True), (variables, error)
    for command in ("", "JUMP"):
        error = error_of(await call(command))
        assert (error["code"], "CNI_COMMAND" in error["msg"]) == (INVALID_ENVIRONMENT, True), error
    # None of it took an address, made a link or left a file; and the plugin still serves.
    assert await call.links() == ["lo"]
    assert await leaks(node, control) == []
    assert (await call("ADD")).exit_code == 0
    assert (await call("DEL")).exit_code == 0
    assert await leaks(node, control) == []


async def test_del_of_what_is_gone_succeeds(call: Caller, node: Node, control: ControlClient) -> None:
    """Runtimes repeat DEL until it succeeds, and may know less each time."""
    for netns in (None, "", "/run/netns/there-is-no-such-one"):
        outcome = await call("DEL", variables={"NETNS": netns})
        assert (outcome.exit_code, outcome.out, outcome.err) == (0, b"", b"")
    assert await leaks(node, control) == []


async def test_an_interface_of_that_name_is_not_touched(call: Caller, node: Node, control: ControlClient) -> None:
    await namespaces.ip_batch(call.netns, ["link add eth0 type veth peer name other"])
    error = error_of(await call("ADD"))
    assert error["code"] >= 100
    assert "eth0" in error["msg"]
    assert sorted(await call.links()) == ["eth0", "lo", "other"]
    assert await leaks(node, control) == []


async def test_the_daemon_is_absent(cold_call: Caller, cold_nodes: list[Node], control: ControlClient) -> None:
    [node] = cold_nodes
    install_plugin(node.bin_dir, node.spec.socket, node.spool_dir, add_seconds=4)  # not the 65 s of a real node
    error = error_of(await cold_call("ADD"))
    assert error["code"] == TRY_LATER
    assert str(node.spec.socket) in error["msg"] + error["details"]
    assert await cold_call.links() == ["lo"]
    outcome = await cold_call("DEL")
    assert (outcome.exit_code, outcome.out, outcome.err) == (0, b"", b"")
    assert len(list(node.spool_dir.iterdir())) == 1  # for the daemon, once it is there
    await node.start()
    await node.wait_until_ready()
    await node.wait_until_settled()
    assert await leaks(node, control) == []


def logged(node: Node, event: str) -> list[dict[str, Any]]:
    """The lines of the daemon's log about this event."""
    lines = [json.loads(line) for line in node.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


async def until_logged(node: Node, event: str) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while True:
            if found := logged(node, event):
                return found[0]
            await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("fault", "kind", "word"),
    [
        ({"error": "timeout", "delay_s": 0}, CloudErrorKind.TRANSIENT, "EC2"),
        ({"error": "UnauthorizedOperation"}, CloudErrorKind.NOT_AUTHORIZED, "allow ec2:DescribeNetworkInterfaces"),
        ({"error": "AuthFailure"}, CloudErrorKind.NOT_AUTHORIZED, "role"),
    ],
    ids=["unreachable", "denied", "bad credentials"],
)
async def test_ec2_refuses_at_the_start(
    cold_nodes: list[Node], control: ControlClient, fault: dict[str, object], kind: CloudErrorKind, word: str
) -> None:
    [node] = cold_nodes
    await control.fault("*", **fault)
    await node.start()
    line = await until_logged(node, "ec2.unavailable")
    assert (line["level"], line["action"], line["kind"]) == ("error", "DescribeNetworkInterfaces", kind.value)
    assert word in line["error"]
    assert line["retry_in"] > 0
    assert not (node.conf_dir / "10-ipamd.conflist").exists()
    status = await node.status()
    assert not status["ready"] and status["start"]["tries"] > 0 and word in status["start"]["last_error"]
    # It needs no restart.
    await control.clear_faults()
    await node.wait_until_ready()


async def test_metadata_is_unreachable_at_the_start(cold_nodes: list[Node], control: ControlClient) -> None:
    [node] = cold_nodes
    await control.fault("imds", error="503")
    await node.start()
    line = await until_logged(node, "imds.unavailable")
    assert line["level"] == "error"
    assert "503" in line["error"]
    await control.clear_faults()
    await node.wait_until_ready()


@pytest.mark.parametrize(
    ("fault", "reason", "word"),
    [
        ({"error": "timeout", "delay_s": 0}, "CLOUD_UNAVAILABLE", "EC2"),
        ({"error": "UnauthorizedOperation"}, "NOT_AUTHORIZED", "in the policy of this instance's role"),
        ({"error": "RequestLimitExceeded"}, "THROTTLED", "RequestLimitExceeded"),
    ],
    ids=["unreachable", "denied", "throttled"],
)
async def test_ec2_refuses_when_the_pool_has_to_grow(
    cold_nodes: list[Node], control: ControlClient, fault: dict[str, object], reason: str, word: str
) -> None:
    [node] = cold_nodes
    node.spec.config.write_text(node.spec.config.read_text() + "[pool]\nallocate_wait = 2\nwarm_ips = 2\nslack = 0\n")
    await node.start()
    await node.wait_until_ready()
    await node.wait_until_settled()
    await control.fault("*", **fault)
    async with direct(node.spec.netns, node.bin_dir, node.conf_dir) as runtime:
        pods = [await runtime.run_pod("first"), await runtime.run_pod("second")]  # these were there
        with pytest.raises(PluginError) as refused:
            await runtime.run_pod("third")
        error = error_of(refused.value.outcome)
        assert f"reason={reason}" in error["details"], error
        assert word in error["msg"] + error["details"], error
        assert len(await node.pods()) == 2
        # As soon as EC2 answers again, so does the pool.
        await control.clear_faults()
        await until_free(node)
        pods.append(await runtime.run_pod("fourth"))
        for pod in pods:
            await runtime.remove_pod(pod)
    await node.wait_until_settled()
    assert await leaks(node, control) == []


async def until_free(node: Node) -> None:
    async with asyncio.timeout(40):
        while True:
            if (await node.status())["free"]:
                return
            await asyncio.sleep(0.2)


async def test_an_unknown_instance_type(vpc: SimulatedVpc, cold_nodes: list[Node], control: ControlClient) -> None:
    """Not in the embedded table: EC2 is asked; and when EC2 does not know it either, the log says so."""
    [node] = cold_nodes
    instance = vpc.cloud.instances.get(node.spec.instance_id)
    instance.type = "x9.mystery"
    await node.start()
    line = await until_logged(node, "ec2.unavailable")
    assert line["action"] == "DescribeInstanceTypes"
    assert "x9.mystery" in line["error"]
    # A type that is younger than the table: EC2's answer will do.
    vpc.cloud.rules.limits = {**vpc.cloud.rules.limits, "x9.mystery": Limits(2, 4)}
    await node.wait_until_ready()
    assert (await node.status())["limits"] == {"enis": 2, "addresses_per_eni": 3}
    assert "DescribeInstanceTypes" in {call["action"] for call in await control.calls()}


async def test_a_daemon_that_cannot_start_is_explained(cold_nodes: list[Node]) -> None:
    [node] = cold_nodes
    node.spec.config.write_text(node.spec.config.read_text() + '[pool]\nwarm_ips = "many"\n')
    await node.start()
    with pytest.raises(DaemonFailed, match=r"exit code 1(.|\n)*config\.toml:\d+: pool\.warm_ips = \"many\""):
        await node.wait_until_ready()


async def test_the_hosts_own_namespace_is_refused(call: Caller, node: Node, control: ControlClient) -> None:
    """A runtime that got confused must not cost the node its network."""
    before = await namespaces.command("ip", "-n", node.spec.netns, "route")
    outcome = await call("ADD", variables={"NETNS": f"/run/netns/{node.spec.netns}", "IFNAME": "eth7"})
    assert await namespaces.command("ip", "-n", node.spec.netns, "route") == before
    assert error_of(outcome)["code"] == INVALID_ENVIRONMENT
