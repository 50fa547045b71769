"""Nodes of the VPC in a box as machines: what they have of their own, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ipamd.sim import cgroups, enter, machine_init, netns
from ipamd.sim.ec2.cloud import Delays
from ipamd.sim.ec2.rules import Ask
from ipamd.sim.machine import Machine, MachineError
from ipamd.sim.vpc import SimulatedNode, SimulatedVpc, SpecError

pytestmark = pytest.mark.netns

QUICK = Delays(create=0, attach=0.05, detach=0.05, assign=0, link=0.05, imds_lag=0)


@pytest.fixture
def mounts() -> Iterator[None]:
    """The test fails if it changes the mounts of the machine below, or leaves a folder where there was none."""

    def mine(name: str) -> list[str]:
        # Others mount below /run and /tmp meanwhile.
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line for line in lines if not line.split()[4].startswith(("/run/", "/tmp/"))]

    def folders() -> set[str]:
        return {folder for folder in machine_init.KEPT if Path(folder).exists()}

    before = mine(""), folders()
    yield
    assert (mine(""), folders()) == before


@asynccontextmanager
async def machines(directory: Path, prefix: str) -> AsyncIterator[SimulatedVpc]:
    async with SimulatedVpc.build(
        dir=directory,
        nodes={"n1": "m5.large", "n2": "m5.large"},
        hosts=["h1"],
        machines=True,
        delays=QUICK,
        prefix=prefix,
        names=["example.org"],
    ) as vpc:
        yield vpc
    assert groups(prefix) == []


def groups(prefix: str) -> list[Path]:
    return [*cgroups.ROOT.glob(f"{prefix}*"), *cgroups.ROOT.glob(f"*/{prefix}*")]


def machine_of(node: SimulatedNode) -> Machine:
    assert node.machine is not None
    return node.machine


async def on(node: SimulatedNode, *argv: str) -> str:
    return (await netns.command(*machine_of(node).inside(*argv))).strip()


@pytest.mark.usefixtures("mounts")
async def test_machines_share_neither_files_nor_processes(tmp_path: Path, prefix: str) -> None:
    async with machines(tmp_path, prefix) as vpc:
        one, two = vpc.nodes
        for node in (*vpc.nodes, *vpc.hosts):
            assert await on(node, "hostname") == node.name
            assert await on(node, "cat", "/etc/hostname") == node.name
            assert await on(node, "ls", "/sys/class/net") == "eth0\nlo"
        for folder in (*machine_init.KEPT, "/run", "/etc", "/opt", "/var/lib", "/var/log"):
            await on(one, "touch", f"{folder}/{prefix}")
            assert await on(two, "find", folder, "-maxdepth", "1", "-name", prefix) == ""
            assert not Path(folder, prefix).exists()
        processes = await on(one, "ps", "-e", "-o", "pid=,comm=")
        assert len(processes.splitlines()) == 2 and processes.endswith("ps")
        boots = {await on(node, "cat", "/proc/sys/kernel/random/boot_id") for node in vpc.nodes}
        assert len(boots | {Path("/proc/sys/kernel/random/boot_id").read_text().strip()}) == 3
        assert groups(prefix) != []


@pytest.mark.parametrize(
    ("file", "value"), [("vm/overcommit_memory", "1"), ("kernel/panic", "10"), ("kernel/panic_on_oops", "1")]
)
async def test_a_sysctl_of_the_whole_machine_is_a_nodes_own(
    tmp_path: Path, prefix: str, file: str, value: str
) -> None:
    real = Path("/proc/sys", file)
    before = real.read_text()
    async with machines(tmp_path, prefix) as vpc:
        assert await on(vpc.nodes[0], "cat", str(real)) == value
        await on(vpc.nodes[0], "sh", "-c", f"echo 7 > {real}")
        assert await on(vpc.nodes[1], "cat", str(real)) == value
    assert real.read_text() == before


async def test_a_power_cut_ends_all_and_leaves_what_is_kept(tmp_path: Path, prefix: str) -> None:
    async with machines(tmp_path, prefix) as vpc:
        node, other = vpc.nodes
        machine = machine_of(node)
        sleeper = await machine.start(["sleep", "1000"], tmp_path / "log")
        orphan = await on(node, "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!")
        for folder in ("/etc/cni", "/run", "/etc"):
            await on(node, "touch", f"{folder}/mark")
        for words in (
            "ip link add pod0 type veth peer name pod1",
            "ip rule add from 10.0.0.3 lookup 99",
            "nft add table inet left",
        ):
            await on(node, *words.split())
        boot_id = await on(node, "cat", "/proc/sys/kernel/random/boot_id")
        pid = machine.pid

        (groups(machine.netns)[0] / "pods").mkdir()  # as a kubelet makes them
        await machine.power_cut()
        assert groups(machine.netns) == []
        assert await sleeper.wait() == -signal.SIGKILL
        assert orphan and not Path(f"/proc/{pid}").exists()
        with pytest.raises(MachineError, match="n1 is off"):
            machine.inside("true")

        await vpc.boot(node)
        there = [f for f in ("/etc/cni", "/run", "/etc") if "mark" in (await on(node, "ls", f)).split()]
        assert there == ["/etc/cni"]
        assert await on(node, "cat", "/proc/sys/kernel/random/boot_id") != boot_id
        assert await on(node, "ls", "/sys/class/net") == "eth0\nlo"
        assert "lookup 99" not in await on(node, "ip", "rule")
        assert await on(node, "nft", "list", "ruleset") == ""
        await on(node, *f"ping -n -q -c 1 -W 5 {other.primary_ip}".split())
        await on(other, *f"ping -n -q -c 1 -W 5 {node.primary_ip}".split())


async def test_a_machine_whose_first_process_was_killed_is_off(tmp_path: Path, prefix: str) -> None:
    async with machines(tmp_path, prefix) as vpc:
        machine = machine_of(vpc.nodes[0])
        sleeper = await machine.start(["sleep", "1000"], tmp_path / "log")
        os.kill(machine.pid, signal.SIGKILL)
        assert await sleeper.wait() == -signal.SIGKILL
        while machine.is_up:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        with pytest.raises(MachineError, match="n1 is off"):
            machine.path("/run")
        await machine.power_cut()
        await vpc.boot(vpc.nodes[0])
        assert await on(vpc.nodes[0], "hostname") == "n1"


async def test_enis_stay_attached_over_a_power_cut(tmp_path: Path, prefix: str) -> None:
    async with machines(tmp_path, prefix) as vpc:
        node, other = vpc.nodes
        eni = await vpc.cloud.create_eni(next(iter(vpc.cloud.subnets)).id, Ask(1))
        attachment = vpc.cloud.attach_eni(eni.id, node.instance_id, 1)
        await vpc.cloud.settle()
        await machine_of(node).power_cut()
        await vpc.boot(node)

        assert await on(node, "cat", "/sys/class/net/eth1/address") == eni.mac
        assert "state DOWN" in await on(node, "ip", "-o", "link", "show", "eth1")
        pod = eni.addresses[1]
        for words in (
            "link set eth1 up",
            f"addr add {pod}/32 dev lo",
            f"rule add from {pod} lookup 77",
            "route add default via 10.0.0.1 dev eth1 onlink table 77",
        ):
            await on(node, "ip", *words.split())
        await on(other, *f"ping -n -q -c 1 -W 5 {pod}".split())
        vpc.cloud.detach_eni(attachment.id)
        await vpc.cloud.settle()
        assert await on(node, "ls", "/sys/class/net") == "eth0\nlo"


async def test_a_process_of_a_machine_is_ended_by_its_own_number(tmp_path: Path, prefix: str) -> None:
    async with machines(tmp_path, prefix) as vpc:
        machine = machine_of(vpc.nodes[0])
        log = tmp_path / "log"
        kind = await machine.start(["sh", "-c", "trap 'echo bye; exit 3' TERM; while :; do sleep 0.01; done"], log)
        deaf = await machine.start(["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.01; done"], log)
        while "deaf" not in log.read_text():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert Path(f"/proc/{kind.pid}/ns/pid").stat() == Path(f"/proc/{machine.pid}/ns/pid").stat()
        assert await kind.stop(30) and kind.exit_code == 3
        assert not await deaf.stop(0.1) and deaf.exit_code == -signal.SIGKILL
        assert "bye" in log.read_text()


async def test_a_program_that_is_missing_is_named(tmp_path: Path, prefix: str) -> None:
    async with machines(tmp_path, prefix) as vpc:
        process = await machine_of(vpc.nodes[0]).start(["no-such-program"], tmp_path / "log")
        assert await process.wait() != 0
        assert "no-such-program" in process.last_words()


async def test_the_internet_answers_nodes_by_name(tmp_path: Path, prefix: str) -> None:
    async with machines(tmp_path, prefix) as vpc:
        node = vpc.nodes[0]
        fetch = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"
        for name in ("google.com", "example.org"):
            hello = await on(node, sys.executable, "-c", fetch, f"http://{name}/a/path")
            assert hello == f"hello {node.primary_ip}, this is {name}"
        with pytest.raises(netns.CommandError):
            await on(node, "getent", "hosts", "nobody.example")
        ask = (
            "import socket, struct; s = socket.create_connection(('8.8.8.8', 53), 5); "
            r"q = struct.pack('!6H', 7, 256, 1, 0, 0, 0) + b'\x06google\x03com\0\0\1\0\1'; "
            "s.sendall(struct.pack('!H', len(q)) + q); print(list(s.makefile('rb').read()[-4:]))"
        )
        assert await on(node, sys.executable, "-c", ask) == "[203, 0, 113, 80]"


async def test_a_host_is_in_the_vpc_and_no_node(tmp_path: Path, prefix: str) -> None:
    async with SimulatedVpc.build(
        dir=tmp_path, nodes={"n1": "m5.large"}, hosts=["cp", "extra"], prefix=prefix
    ) as vpc:
        assert [host.name for host in vpc.hosts] == ["cp", "extra"]
        assert [node.name for node in vpc.nodes] == ["n1"]
        for host in vpc.hosts:
            await netns.command(*f"ip netns exec {vpc.nodes[0].netns} ping -n -q -c 1 -W 5 {host.primary_ip}".split())
            assert not host.config.exists() and host.machine is None


@pytest.mark.parametrize(
    ("hosts", "message"), [(["n1"], "name of its own"), (["h", "h"], "name of its own"), (["H_1"], "node name")]
)
async def test_a_host_that_cannot_be_is_refused(tmp_path: Path, prefix: str, hosts: list[str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        async with SimulatedVpc.build(dir=tmp_path, nodes={"n1": "m5.large"}, hosts=hosts, prefix=prefix):
            pass


@pytest.mark.usefixtures("mounts")
async def test_nothing_is_left_of_a_machine_that_does_not_boot(tmp_path: Path, prefix: str) -> None:
    (tmp_path / "n2").mkdir()
    (tmp_path / "n2" / "opt").touch()  # where a folder must be

    with pytest.raises(MachineError, match="n2 can't be booted"):
        async with machines(tmp_path, prefix):
            pass
    assert groups(prefix) == [] and list(netns.DIRECTORY.glob(f"{prefix}*")) == []


async def test_machines_end_with_the_process_that_made_them(tmp_path: Path, prefix: str) -> None:
    """kill -9 leaves the namespaces' names, which only root's next look removes, but no process."""
    code = (
        "import asyncio, sys; from pathlib import Path; from ipamd.sim.machine import Machine\n"
        "async def main():\n"
        "    machine = Machine('n1', sys.argv[1], Path(sys.argv[2]), '8.8.8.8'); await machine.boot()\n"
        "    print(machine.pid, flush=True); await asyncio.sleep(1000)\n"
        "asyncio.run(main())\n"
    )
    await netns.create(prefix)
    try:
        maker = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, prefix, str(tmp_path), stdout=asyncio.subprocess.PIPE
        )
        assert maker.stdout is not None
        descriptor = os.pidfd_open(int(await maker.stdout.readline()))
        maker.kill()
        await maker.wait()
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, ended.set)
        await asyncio.wait_for(ended.wait(), 30)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
    finally:
        await cgroups.remove(prefix)
        await netns.delete(prefix)


async def test_enter_runs_a_command_on_a_machine(tmp_path: Path, prefix: str) -> None:
    async with machines(tmp_path, prefix) as vpc:
        for name, words, said in (
            (f"{prefix}-n1", ["hostname"], "n1"),
            (f"{prefix}-n2", ["sh", "-c", "echo $0 $1", "a b", "-c"], "a b -c"),
            (f"{prefix}.internet", ["cat", "/sys/class/net/eth0/ifindex"], None),
        ):
            argv = [sys.executable, "-m", "ipamd", "simulate", "enter", name, "--", *words]
            out = await netns.command(*argv)
            assert said is None or out.strip() == said
        # A container that shares the node's network is not the machine, though it is number 1 where it is.
        pod = await machine_of(vpc.nodes[0]).start(
            ["unshare", "--pid", "--fork", "--kill-child", "sleep", "1000"], tmp_path / "log"
        )
        assert enter.first_process(vpc.nodes[0].netns) == machine_of(vpc.nodes[0]).pid
        await pod.kill()


async def test_enter_says_what_there_is(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "ipamd", "simulate", "enter", "no-such-node", "--", "true"]
    done = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE)
    _, err = await done.communicate()
    assert done.returncode == 1 and b"no VPC in a box has a no-such-node" in err


def test_util_linux_has_what_machines_need() -> None:
    assert shutil.which("unshare") and shutil.which("nsenter")
