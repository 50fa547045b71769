"""A daemon that can't start yet, or lacks what is not its main job: it is seen, it waits, and it goes on."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.api.v1 import ipam_pb2
from ipamd.install.files import CONFLIST
from ipamd.sim import netns
from ipamd.sim.fabric import EC2_ADDRESS
from tests.netns.boxed import Daemon, box, cni_call, control, plain, refused, until
from tests.netns.test_metrics import get, scrape, value
from tests.unit.ctl_daemon import ipamctl

pytestmark = pytest.mark.netns


@asynccontextmanager
async def ec2_away(daemon: Daemon) -> AsyncIterator[None]:
    rule = f"ip daddr {EC2_ADDRESS} tcp dport 80 reject with tcp reset"
    await netns.nft(
        daemon.node.netns, f"table inet t {{ chain c {{ type filter hook output priority 0; {rule}; }}; }}"
    )
    try:
        yield
    finally:
        await netns.nft(daemon.node.netns, "delete table inet t")


async def conditions(daemon: Daemon) -> dict[str, str]:
    node = await daemon.introspection.GetNode(pb.GetNodeRequest(), timeout=5)
    return {condition.name: condition.text for condition in node.conditions}


def leave(spool: Path, name: str) -> None:
    """A DEL, as the plugin leaves it."""
    (spool / f".{name}").write_bytes(ipam_pb2.ReleaseRequest(attachment=plain(name)).SerializeToString())
    (spool / f".{name}").rename(spool / name)


async def condition(daemon: Daemon, name: str, there: bool = True) -> str:
    async def so() -> bool:
        return (name in await conditions(daemon)) is there

    await until(so, f"condition {name}: {there}", timeout=60)
    return (await conditions(daemon)).get(name, "")


async def test_a_daemon_that_waits_for_ec2_is_seen_and_its_adds_wait(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        async with ec2_away(daemon):
            await daemon.start()
            await daemon.seen("ec2.unavailable")
            node = await daemon.introspection.GetNode(pb.GetNodeRequest(), timeout=5)
            assert (node.start.phase, node.ready) == ("ec2", False) and node.start.tries >= 1
            words = node.start.last_error
            socket = daemon.node.socket

            status = await asyncio.to_thread(ipamctl, "--socket", socket, "status")
            assert "Starting: asking EC2" in status.stdout and "last answer" in status.stdout, status.stderr
            explained = await asyncio.to_thread(ipamctl, "--socket", socket, "explain", "pool")
            assert explained.returncode == 3 and "The daemon is starting" in explained.stdout
            events = await asyncio.to_thread(ipamctl, "--socket", socket, "events")
            assert "ec2.unavailable" in events.stdout

            assert await get(daemon, "/healthz") == (200, "alive\n")
            code, text = await get(daemon, "/readyz")
            assert code == 503 and text.startswith("NOT_READY: the daemon is starting: asking EC2")
            samples = await scrape(daemon)
            assert value(samples, "ipamd_started") == value(samples, "ipamd_ready") == 0
            assert value(samples, "ipamd_start_phase", phase="ec2") == 1 and value(samples, "ipamd_start_tries") >= 1
            assert not any(name == "ipamd_addresses" for name, _ in samples), "nothing is known of them"

            early = daemon.ipam.Allocate(ipam_pb2.AllocateRequest(cni=cni_call("early"), deadline_ms=500), timeout=10)
            status_code, info, error = await refused(early)
            assert status_code is grpc.StatusCode.UNAVAILABLE and info.reason == "NOT_READY"
            assert (
                error is not None and error["code"] == 11 and words in error["msg"] and "asking EC2" in error["msg"]
            )
            status_code, info, _ = await refused(
                daemon.ipam.Release(ipam_pb2.ReleaseRequest(attachment=plain("early")), timeout=5)
            )
            assert (status_code, info.reason) == (grpc.StatusCode.UNAVAILABLE, "NOT_READY")
            waiting = asyncio.create_task(daemon.address("patient"))

            async def waits() -> bool:
                reply = await daemon.introspection.ListWaiting(pb.ListWaitingRequest(), timeout=5)
                return [w.pod_name for w in reply.waiting] == ["pod-patient"]

            await until(waits, "the ADD waits")
            explained = await asyncio.to_thread(ipamctl, "--socket", socket, "explain", "pod", "pod-patient")
            assert "asking EC2" in explained.stdout
        assert await waiting
        await daemon.seen("daemon.ready")
        node = await daemon.introspection.GetNode(pb.GetNodeRequest(), timeout=5)
        assert node.ready and not node.HasField("start")
        samples = await scrape(daemon)
        assert (
            value(samples, "ipamd_started") == 1 and value(samples, "ipamd_refusals_total", reason="NOT_READY") == 1
        )


async def test_restart_without_ec2_shows_records_and_keeps_the_node(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        await daemon.ready()
        address = await daemon.address("a")
        await daemon.stop()
        async with ec2_away(daemon):
            await daemon.start()
            await daemon.seen("ec2.unavailable")
            assert await daemon.held() == {"a": address}
            assert (await daemon.counts()).assigned == 1
            await daemon.ipam.Ready(ipam_pb2.ReadyRequest(cni=cni_call("a")), timeout=5)
        await daemon.seen("daemon.ready")
        assert await daemon.held() == {"a": address}


async def test_del_in_spool_comes_before_next_add_of_its_name(tmp_path: Path, prefix: str) -> None:
    """While the kernel tells of no changes, so that the ADD is there first."""
    async with box(tmp_path, prefix, POOL_COOLDOWN=60, POOL_REUSE_COOLING_AFTER=60) as (daemon, _):
        daemon.python = ("-c", WITHOUT_INOTIFY)
        await daemon.ready()
        before = await daemon.allocate("a")
        name = f"{before.host_ifname}-1-1"
        request = ipam_pb2.ReleaseRequest(attachment=plain("a")).SerializeToString()
        spool = daemon.node.dir / "released"
        (spool / f".{name}").write_bytes(request)
        (spool / f".{name}").rename(spool / name)
        after = await daemon.allocate("a")
        assert not (spool / name).exists()
        assert after.address != before.address, "it was released, and cools"
        assert len(await daemon.held()) == 1


WITHOUT_INOTIFY = """
import errno, os, sys
import asyncinotify
class Refused(asyncinotify.Inotify):
    def __init__(self):
        if not os.path.exists(os.environ.get("INOTIFY_BACK", "")):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        super().__init__()
asyncinotify.Inotify = Refused
from ipamd.__main__ import main
sys.exit(main())
"""


async def test_without_inotify_it_serves_and_says_so_until_it_is_back(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        daemon.python = ("-c", WITHOUT_INOTIFY)
        daemon.settings["INOTIFY_BACK"] = str(tmp_path / "back")
        await daemon.ready()
        await daemon.address("a")
        assert "fs.inotify.max_user_instances" in await condition(daemon, "spool.polled")
        await condition(daemon, "settings.polled")
        spool = daemon.node.dir / "released"
        (spool / ".1").write_bytes(ipam_pb2.ReleaseRequest(attachment=plain("a")).SerializeToString())
        (spool / ".1").rename(spool / "1")

        async def released() -> bool:
            return await daemon.held() == {}

        await until(released, "the DEL is found by looking", timeout=30)
        (tmp_path / "back").touch()
        await condition(daemon, "spool.polled", there=False)


async def test_start_waits_for_a_first_address_that_ec2_refuses(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, vpc):
        for action in ("AssignPrivateIpAddresses", "CreateNetworkInterface"):
            await control(vpc, "faults", {"action": action, "error": "TagPolicyViolation"})
        await daemon.start()
        await daemon.seen("ec2.failed")

        async def told() -> bool:
            node = await daemon.introspection.GetNode(pb.GetNodeRequest(), timeout=5)
            return node.start.phase == "address" and "TagPolicyViolation" in node.not_ready_reason

        await until(told, "the start waits for an address")
        await control(vpc, "clear", {})
        await daemon.seen("daemon.ready")


async def test_a_log_that_takes_nothing_does_not_change_the_exit_code(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        daemon.log.symlink_to("/dev/full")
        await daemon.start()

        async def ready() -> bool:
            try:
                return (await daemon.introspection.GetNode(pb.GetNodeRequest(), timeout=5)).ready
            except grpc.aio.AioRpcError:
                return False

        await until(ready, "the daemon is ready")
        assert daemon.process is not None and await daemon.process.stop(60.0)
        assert daemon.process.exit_code == 0
        daemon.process = None


async def test_odd_files_in_the_spool_hold_up_nothing(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        spool = daemon.node.dir / "released"
        spool.mkdir(parents=True)
        (spool / ("n" * 246 + "-1-2")).write_bytes(b"nonsense")
        os.mkfifo(spool / "pipe-1-2")
        with (spool / "huge-1-2").open("wb") as file:
            file.truncate(3 << 30)
        (spool / "folder-1-2").mkdir()
        (spool / "ledger.db").write_bytes(b"not ipamd's")
        await daemon.ready()
        assert await daemon.address("a")
        await daemon.seen("spool.rejected")
        left = {file.name for file in spool.iterdir() if not file.name.endswith(".rejected")}
        assert left == {"ledger.db"}
        samples = await scrape(daemon)
        assert value(samples, "process_resident_memory_bytes") < 200e6


async def test_a_chain_that_can_not_work_does_not_end_the_daemon(tmp_path: Path, prefix: str) -> None:
    chain = ["no-such", "ipamd-cni", "bridge", {"sysctl": {}}]
    async with box(tmp_path, prefix, CNI_CHAIN=json.dumps(chain)) as (daemon, _):
        await daemon.ready()
        text = await condition(daemon, "conflist.plugins_left_out")
        for words in ("no-such", "ipamd-cni is in the list by itself", "bridge makes interfaces", "has no `type`"):
            assert words in text
        written = json.loads((daemon.node.dir / "net.d" / CONFLIST).read_text())
        assert written["plugins"] == [{"type": "ipamd-cni"}]


async def test_unwritable_conflist_folder_is_tried_again(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        folder = tmp_path / "net.d"
        folder.write_text("a file")
        daemon.settings["IPAMD_CNI_CONF_DIR"] = str(folder)
        await daemon.ready()
        assert str(folder) in await condition(daemon, "conflist.not_written")
        assert await daemon.address("a")
        folder.unlink()
        await condition(daemon, "conflist.not_written", there=False)
        assert (folder / "10-ipamd.conflist").exists()


async def test_a_spool_that_is_no_directory_is_tried_again(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        folder = tmp_path / "spool"
        folder.write_text("a file")
        daemon.settings["IPAMD_CNI_SPOOL_DIR"] = str(folder)
        await daemon.ready()
        assert str(folder) in await condition(daemon, "spool.unusable")
        assert await daemon.address("a")
        folder.unlink()
        await condition(daemon, "spool.unusable", there=False)
        assert folder.is_dir()


async def test_a_plugin_that_knows_no_spool_is_heard_beside_the_socket(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        daemon.settings["IPAMD_CNI_SPOOL_DIR"] = str(tmp_path / "elsewhere")
        await daemon.ready()
        for name in ("a", "b"):
            await daemon.address(name)
        spool = daemon.node.socket.parent / "released"
        leave(spool, "a")

        async def released() -> bool:
            return set(await daemon.held()) == {"b"}

        await until(released, "a DEL is taken on sight")
        await daemon.stop()
        leave(spool, "b")
        await daemon.ready()
        assert await daemon.held() == {}


async def test_a_clash_ends_it_before_ec2_is_asked_with_clear_lines(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, vpc):
        await netns.command("ip", "-n", daemon.node.netns, "route", "add", "blackhole", "10.9.9.9", "table", "1500")
        await daemon.start()
        assert daemon.process is not None
        async with asyncio.timeout(20):
            code = await daemon.process.wait()
        log = daemon.log.read_text()
        assert code == 1 and "something on this host is in the way" in log
        assert "Traceback" not in log and "never awaited" not in log
        assert await control(vpc, "calls") == []
        assert not daemon.node.socket.exists()
        await daemon.kill()


async def test_reading_group_that_does_not_exist_is_no_reason_to_stop(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, API_READ_GROUP="nobody-made-this") as (daemon, _):
        await daemon.ready()
        assert "nobody-made-this" in await condition(daemon, "api.readers_not_served")
        assert await daemon.address("a")


async def test_a_metrics_port_that_is_freed_is_taken(tmp_path: Path, prefix: str) -> None:
    hold = "import socket, sys; s = socket.create_server(('127.0.0.1', 61678)); print('held', flush=True); input()"
    async with box(tmp_path, prefix) as (daemon, _):
        holder = await asyncio.create_subprocess_exec(
            "ip", "netns", "exec", daemon.node.netns, "python3", "-c", hold,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            assert holder.stdout is not None and holder.stdin is not None
            assert await holder.stdout.readline() == b"held\n"
            await daemon.ready()
            assert "61678" in await condition(daemon, "metrics.not_served")
            holder.stdin.close()
            await holder.wait()
            await condition(daemon, "metrics.not_served", there=False)
            assert await get(daemon, "/healthz") == (200, "alive\n")
        finally:
            if holder.returncode is None:
                holder.kill()
                await holder.wait()


async def test_tracing_that_can_not_be_set_up_is_said_and_harms_nobody(tmp_path: Path, prefix: str) -> None:
    without = "import sys; sys.modules['opentelemetry'] = None\nfrom ipamd.__main__ import main\nsys.exit(main())"
    async with box(tmp_path, prefix, TRACING_ENDPOINT="http://127.0.0.1:4318") as (daemon, _):
        daemon.python = ("-c", without)
        await daemon.ready()
        assert "opentelemetry" in await condition(daemon, "tracing.off")
        assert await daemon.address("a")


async def test_a_name_that_is_looked_up_does_not_hold_up_the_end(tmp_path: Path, prefix: str) -> None:
    """Of a proxy before EC2, while the name server does not answer. The lookup itself never ends here."""
    program = """
import os, socket, sys, threading
real = socket.getaddrinfo
def look_up(host, *words, **hints):
    if host != "proxy.example":
        return real(host, *words, **hints)
    open(os.environ["LOOKED_UP"], "w").close()
    threading.Event().wait()
socket.getaddrinfo = look_up
from ipamd.__main__ import main
sys.exit(main())
"""
    async with box(tmp_path, prefix) as (daemon, _):
        daemon.python = ("-c", program)
        looked_up = tmp_path / "looked_up"
        daemon.settings |= {"HTTP_PROXY": "http://proxy.example:3128", "LOOKED_UP": str(looked_up)}
        await daemon.start()

        async def there() -> bool:
            return looked_up.exists()

        await until(there, "the name is looked up")
        await daemon.stop()
