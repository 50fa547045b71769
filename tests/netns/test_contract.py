"""What runtimes do to a plugin, in every order: nothing may be lost, given twice or left behind.

The real daemon and the installed plugin on a node of the VPC in a box. After each test kernel, ledger, spool and EC2
are compared.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cni_shim.names import DISCARDED_GROUP, host_ifname
from ipamd.sim import netns
from ipamd.sim.demo.checks import ControlClient, host_links, leaks, pod_routes
from ipamd.sim.demo.node import Node
from ipamd.sim.runtimes.direct import Direct, Outcome, direct
from ipamd.sim.runtimes.process import Child, inside
from ipamd.sim.vpc import SimulatedVpc
from tests.netns.boxed import NOBODY, QUICK, until

pytestmark = pytest.mark.netns

CONFIG = {"cniVersion": "1.1.0", "name": "ipamd", "type": "ipamd-cni"}


@dataclass
class Stage:
    node: Node
    control: ControlClient
    runtime: Direct

    async def container(self) -> Container:
        id = secrets.token_hex(32)
        name = f"{self.node.spec.netns}-{id[:8]}"
        await netns.create(name)
        return Container(self, id, name)

    async def held(self) -> dict[tuple[str, str], str]:
        """Address by (container, interface)."""
        return {(pod["container_id"], pod["ifname"]): pod["ip"] for pod in await self.node.pods()}


@dataclass
class Container:
    stage: Stage
    id: str
    netns: str
    result: dict[str, Any] | None = None

    async def call(self, verb: str, ifname: str = "eth0", netns_path: str | None = None, **config: Any) -> Outcome:
        path = str(netns.DIRECTORY / self.netns) if netns_path is None else netns_path
        variables = {"CONTAINERID": self.id, "NETNS": path, "IFNAME": ifname, "ARGS": "IgnoreUnknown=1"}
        return await self.stage.runtime.execute(verb, "ipamd-cni", json.dumps(CONFIG | config).encode(), variables)

    async def add(self, ifname: str = "eth0", **config: Any) -> str:
        """The address."""
        outcome = await self.call("ADD", ifname, **config)
        assert (outcome.exit_code, outcome.err) == (0, b""), outcome
        self.result = json.loads(outcome.out)
        assert self.result is not None
        address: str = self.result["ips"][-1]["address"].partition("/")[0]
        assert (await self.stage.held())[self.id, ifname] == address
        return address

    async def delete(self, ifname: str = "eth0", netns_path: str | None = None, **config: Any) -> None:
        outcome = await self.call("DEL", ifname, netns_path, **config)
        assert (outcome.exit_code, outcome.out, outcome.err) == (0, b"", b""), outcome

    async def start_add(self, log: Path) -> Child:
        """As a process of its own, so that it can be killed."""
        config = log.with_name("config.json")
        config.write_text(json.dumps(CONFIG))
        plugin = self.stage.node.bin_dir / "ipamd-cni"
        command = inside(self.stage.node.spec.netns, "/bin/sh", "-c", f'exec "{plugin}" < "{config}"')
        environment = {"COMMAND": "ADD", "CONTAINERID": self.id, "IFNAME": "eth0", "ARGS": "", "PATH": "/"}
        environment["NETNS"] = str(netns.DIRECTORY / self.netns)
        return await Child.start(command, log, {f"CNI_{name}": value for name, value in environment.items()})

    async def ping(self, *options: str) -> None:
        """The host."""
        command = ("ip", "netns", "exec", self.netns, "ping", "-n", "-q", "-c1", "-W5", *options)
        await netns.command(*command, self.stage.node.spec.primary_ip)

    async def end(self) -> None:
        """As containers do, with the network namespace."""
        await netns.delete(self.netns)


@pytest.fixture
async def stage(tmp_path: Path, prefix: str) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        vpc = await stack.enter_async_context(
            SimulatedVpc.build(
                dir=tmp_path, nodes={"n1": "m5.large"}, subnets=["10.0.0.0/24"], delays=QUICK, prefix=prefix
            )
        )
        node = Node(vpc.nodes[0])
        node.spec.config.write_text(
            node.spec.config.read_text() + "[pool]\nwarm_ips = 4\nslack = 0\nallocate_wait = 5\n"
        )
        stack.callback(node.close)
        await asyncio.to_thread(node.install_plugin)
        await node.start()
        stack.push_async_callback(node.stop)
        await node.wait_until_ready()
        session = await stack.enter_async_context(aiohttp.ClientSession())
        runtime = await stack.enter_async_context(direct(node.spec.netns, node.bin_dir, node.conf_dir))
        control = ControlClient(session, vpc.control_url)
        yield Stage(node, control, runtime)
        found: list[str] = []
        for _ in range(3):  # the pool may have begun to fill up between the two looks
            await node.wait_until_settled()
            found = await leaks(node, control)
            if not found:
                break
        assert found == []


async def test_a_repeated_add_gives_the_same(stage: Stage) -> None:
    pod = await stage.container()
    address = await pod.add()
    for _ in range(2):
        assert await pod.add() == address
        await pod.ping()
    assert await host_links(stage.node.spec.netns) == [host_ifname(pod.id, "eth0")]
    assert await pod_routes(stage.node.spec.netns) == [address]
    await pod.delete()
    await pod.end()


async def test_adds_killed_at_any_moment_are_undone_by_del(stage: Stage, tmp_path: Path) -> None:
    for number in range(25):
        pod = await stage.container()
        add = await pod.start_add(tmp_path / f"add-{number}.log")
        await asyncio.sleep(random.uniform(0.0, 0.03))
        add.kill()
        await add.wait()
        await pod.delete()
        await pod.end()
    assert await stage.held() == {}


async def test_del_while_an_orphaned_add_still_waits(stage: Stage, tmp_path: Path) -> None:
    """The runtime was killed, the ADD that it had started waits for EC2, and the restarted runtime sends DEL."""
    full = [await stage.container() for _ in range(4)]
    await stage.control.fault("*", error="InternalError")
    for pod in full:
        await pod.add()
    late = await stage.container()
    add = await late.start_add(tmp_path / "add.log")

    async def waits() -> bool:
        return bool((await stage.node.status())["waiting"])

    await until(waits, "the ADD waits")
    await late.delete()
    assert await add.wait() == 1
    assert "reason=RELEASED" in add.last_words()
    assert (late.id, "eth0") not in await stage.held()
    await stage.control.clear_faults()
    for pod in [late, *full]:
        await pod.delete()
        await pod.end()


@pytest.mark.parametrize("prev_result", [True, False])
@pytest.mark.parametrize("path", ["its own", "empty", "gone"])
async def test_del_in_every_form_and_twice(stage: Stage, path: str, prev_result: bool) -> None:
    pod = await stage.container()
    await pod.add()
    config: dict[str, Any] = {"prevResult": pod.result} if prev_result else {}
    if path == "gone":
        await pod.end()
    for _ in range(2):
        await pod.delete(netns_path="" if path == "empty" else None, **config)
        assert await stage.held() == {}
        assert await pod_routes(stage.node.spec.netns) == []
    if path != "gone":
        await pod.end()


async def test_del_after_a_reboot(stage: Stage) -> None:
    """Neither namespace nor ledger nor socket of before are there, and the runtime still knows the container."""
    pod = await stage.container()
    await pod.add()
    await stage.node.kill()
    await pod.end()
    for file in (*stage.node.spec.dir.glob("ledger.db*"), stage.node.spec.socket):
        file.unlink(missing_ok=True)

    async def gone() -> bool:
        return await host_links(stage.node.spec.netns) == []

    await until(gone, "the kernel has taken the namespace down")
    await stage.node.start()
    await stage.node.wait_until_ready()
    await pod.delete(prevResult=pod.result)
    again = await stage.container()
    await again.add()
    await again.delete()
    await again.end()


async def test_a_name_that_another_attachment_has(stage: Stage) -> None:
    """Two containers of one namespace that both want to call theirs eth0: the first keeps it."""
    first, second = await stage.container(), await stage.container()
    address = await first.add()
    second_there = Container(stage, second.id, first.netns)
    outcome = await second_there.call("ADD")
    error = json.loads(outcome.out)
    assert (outcome.exit_code, error["code"]) == (1, 100) and "eth0" in error["msg"]
    assert "request_id=" in error["details"]
    await second_there.delete()
    assert await stage.held() == {(first.id, "eth0"): address}
    await first.ping()
    await first.delete()
    for pod in (first, second):
        await pod.end()


async def test_two_containers_in_one_namespace(stage: Stage) -> None:
    first = await stage.container()
    second = Container(stage, secrets.token_hex(32), first.netns)
    addresses = {await first.add("eth0"), await second.add("eth1")}
    assert len(addresses) == 2
    for address in addresses:
        await first.ping("-I", address)
    await first.delete("eth0")
    # Until the daemon has deleted the first pair, packets may take the first interface's way, which leads nowhere.
    await until(partial(second_only, first.netns), "the first interface is gone")
    await second.ping()
    await second.delete("eth1")
    await first.end()


async def second_only(netns_name: str) -> bool:
    links = json.loads(await netns.command("ip", "-n", netns_name, "-json", "link"))
    return [link["ifname"] for link in links if link["ifname"] != "lo"] == ["eth1"]


async def test_several_interfaces_of_one_container(stage: Stage) -> None:
    pod = await stage.container()
    names = ["eth0", "net1", "net2"]
    addresses = {name: await pod.add(name) for name in names}
    assert len(set(addresses.values())) == 3
    assert pod.result is not None and pod.result["routes"] == [], "the first has the default route"
    assert await stage.held() == {(pod.id, name): addresses[name] for name in names}
    for name in names:
        await pod.ping("-I", addresses[name])
        assert (await pod.call("CHECK", name)).exit_code == 0
    for name in names:
        await pod.delete(name)
    await pod.end()


async def test_the_network_of_a_running_container_is_made_anew(stage: Stage) -> None:
    """DEL and ADD in the same namespace, as `podman network reload` does."""
    pod = await stage.container()
    for _ in range(4):
        await pod.add()
        await pod.ping()
        await pod.delete()
    await pod.add()
    await pod.ping()
    await pod.delete()
    await pod.end()


async def test_an_address_that_is_asked_for(stage: Stage) -> None:
    pod, other = await stage.container(), await stage.container()
    address = await pod.add()
    await pod.delete()
    # It cools beyond the deadline after another container's use; the other is none of the node's.
    for wanted, code in ((address, 11), (NOBODY, 7)):
        outcome = await other.call("ADD", args={"cni": {"ips": [wanted]}})
        error = json.loads(outcome.out)
        assert (outcome.exit_code, error["code"]) == (1, code) and wanted in error["msg"]
        assert "reason=ADDRESS_UNAVAILABLE" in error["details"]
    assert await pod.add(args={"cni": {"ips": [address]}, "unknown": 1}) == address
    await pod.ping()
    await pod.delete()
    for each in (pod, other):
        await each.end()


async def test_add_in_a_burst_gets_the_address_asked_for_or_none(stage: Stage) -> None:
    """Addresses are on their way meanwhile: to a pod that has one, and to one that has none."""
    held, wishing = await stage.container(), await stage.container()
    address = await held.add()
    burst = [await stage.container() for _ in range(8)]  # as many as the primary ENI has room for
    await stage.control.fault("AssignPrivateIpAddresses", delay_s=2)
    adds = [asyncio.create_task(pod.add()) for pod in burst]

    async def waits() -> bool:
        return bool((await stage.node.status())["waiting"])

    await until(waits, "the burst waits")
    wanted = "10.0.0.250"
    again, other = await asyncio.gather(
        held.call("ADD", args={"cni": {"ips": [wanted]}}),
        wishing.call("ADD", runtimeConfig={"ips": [wanted]}),
    )
    error = json.loads(again.out)
    assert (again.exit_code, error["code"]) == (1, 7), again
    assert "reason=ADDRESS_UNAVAILABLE" in error["details"] and address in error["msg"]
    answer = json.loads(other.out)
    if other.exit_code:  # unless EC2 gives just this one
        assert "reason=ADDRESS_UNAVAILABLE" in answer["details"] and wanted in answer["msg"]
    else:
        assert answer["ips"][0]["address"] == f"{wanted}/32"
    await stage.control.clear_faults()
    await asyncio.gather(*adds)
    assert (await stage.held())[held.id, "eth0"] == address
    await held.ping()
    for pod in (held, wishing, *burst):
        await pod.delete()
        await pod.end()


async def test_address_asked_for_is_waited_for_over_a_restart(stage: Stage) -> None:
    """After the restart it cools, or its ENI is being set up: it comes, so the ADD waits for it."""
    pod, other = await stage.container(), await stage.container()
    address = await pod.add()
    await stage.node.kill()
    wish = {"args": {"cni": {"ips": [address]}}}
    again = asyncio.create_task(pod.call("ADD", **wish))
    different = asyncio.create_task(pod.call("ADD", "eth1", args={"cni": {"ips": [NOBODY]}}))
    await stage.node.start()
    outcome, refused = await asyncio.gather(again, different)
    assert json.loads(outcome.out)["ips"][0]["address"] == f"{address}/32"
    assert (refused.exit_code, json.loads(refused.out)["code"]) == (1, 7)
    await pod.delete()
    await pod.end()
    await other.end()


async def test_add_and_del_of_many_in_any_order(stage: Stage) -> None:
    """Containers that come, go, come again and are asked for twice at the same time."""
    pods = [await stage.container() for _ in range(6)]

    async def live(pod: Container, dice: random.Random) -> None:
        for _ in range(6):
            verbs = dice.choice([("ADD",), ("DEL",), ("ADD", "DEL"), ("ADD", "ADD"), ("DEL", "DEL"), ("DEL", "ADD")])
            await asyncio.gather(*(pod.call(verb) for verb in verbs))

    await asyncio.gather(*(live(pod, random.Random(number)) for number, pod in enumerate(pods)))
    for pod in pods:
        await pod.delete()
    assert await stage.held() == {}
    for pod in pods:
        await pod.add()
        await pod.ping()
        await pod.delete()
        await pod.end()


async def test_check_compares_with_what_the_runtime_believes(stage: Stage) -> None:
    pod = await stage.container()
    await pod.add()
    assert (await pod.call("CHECK", prevResult=pod.result)).exit_code == 0
    other = {"cniVersion": "1.1.0", "ips": [{"address": f"{NOBODY}/32"}]}
    error = json.loads((await pod.call("CHECK", prevResult=other)).out)
    assert error["code"] == 100 and NOBODY in error["msg"]
    await pod.delete()
    error = json.loads((await pod.call("CHECK", prevResult=pod.result)).out)
    assert error["code"] == 3
    await pod.end()


async def test_pairs_that_a_killed_daemon_left_are_deleted_by_the_next(stage: Stage) -> None:
    await stage.node.kill()
    link = host_ifname("somebody", "eth0")
    await netns.ip_batch(
        stage.node.spec.netns,
        [f"link add {link} type veth peer name {link[1:]}", f"link set {link} group {DISCARDED_GROUP}"],
    )
    await stage.node.start()
    await stage.node.wait_until_ready()
    assert await host_links(stage.node.spec.netns) == []


async def test_releases_without_a_daemon_are_applied_when_it_is_back(stage: Stage) -> None:
    pods = [await stage.container() for _ in range(3)]
    for pod in pods:
        await pod.add()
    await stage.node.stop()
    for pod in pods[:2]:
        await pod.delete()
        await pod.delete()
        with suppress(FileNotFoundError):
            assert list(stage.node.spool_dir.iterdir())
    assert await host_links(stage.node.spec.netns) == [host_ifname(pods[2].id, "eth0")]
    await stage.node.start()
    await stage.node.wait_until_ready()
    assert set(await stage.held()) == {(pods[2].id, "eth0")}
    assert list(stage.node.spool_dir.iterdir()) == []
    await pods[2].ping()
    await pods[2].delete()
    for pod in pods:
        await pod.end()
