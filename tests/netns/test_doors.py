"""The daemon's doors and those who come to them with no good in mind: pods get their addresses meanwhile."""

from __future__ import annotations

import asyncio
import grp
import json
import resource
import sys
from pathlib import Path

import grpc
import pytest

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.api.v1 import introspection_pb2_grpc, ipam_pb2
from tests.netns.boxed import CONFIG, Daemon, box, calls, cni_call
from tests.netns.nobody import line, nobody

pytestmark = pytest.mark.netns

LIMIT = 256
ADDS = 8

# The daemon with so few descriptors.
FEW = (
    "-c",
    f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT}, {LIMIT}))\n"
    "from ipamd.__main__ import main\nsys.exit(main())",
)

# Opens as many connections to the metrics port as are asked for and keeps them; those that the daemon ends, it opens
# again. What it says on each: nothing; a request that never ends, one byte at a time; or requests without a pause.
HOLD = """
import asyncio, sys
how, number = sys.argv[1], int(sys.argv[2])
async def hold(ready):
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", 61678)
            ready.set()
            if how == "many":
                writer.write(b"GET /metrics HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n" * 20)
            while how == "slow":
                writer.write(b"G")
                await writer.drain()
                await asyncio.sleep(0.2)
            while await reader.read(65536):
                pass
            writer.close()
        except OSError:
            ready.set()
        await asyncio.sleep(0.05)
async def main():
    ready = [asyncio.Event() for _ in range(number)]
    tasks = [asyncio.create_task(hold(each)) for each in ready]
    for each in ready:
        await each.wait()
    print("at work", flush=True)
    await asyncio.gather(*tasks)
asyncio.run(main())
"""

# Asks for a page, as kubelet does; prints the status.
ASK = """
import sys, urllib.error, urllib.request
print("at work", flush=True)
for path in sys.stdin:
    try:
        print(urllib.request.urlopen("http://127.0.0.1:61678" + path.strip(), timeout=10).status, flush=True)
    except OSError as error:
        print(error, flush=True)
"""


def descriptors(daemon: Daemon) -> int:
    assert daemon.process is not None
    return sum(1 for _ in Path(f"/proc/{daemon.process.pid}/fd").iterdir())


async def adds(daemon: Daemon, kind: str) -> None:
    """Each with a connection of its own, as the plugin has it."""
    for number in range(ADDS):
        async with grpc.aio.insecure_channel(
            f"unix:{daemon.node.socket}", options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            add = channel.unary_unary(
                "/ipamd.v1.Ipam/Allocate",
                request_serializer=ipam_pb2.AllocateRequest.SerializeToString,
                response_deserializer=ipam_pb2.AllocateReply.FromString,
            )
            await add(ipam_pb2.AllocateRequest(cni=cni_call(f"{kind}-{number}")), timeout=10)


@pytest.mark.parametrize("how", ["idle", "slow", "many"])
async def test_the_metrics_port_leaves_descriptors_for_pods(tmp_path: Path, prefix: str, how: str) -> None:
    async with box(tmp_path, prefix, type="m5.xlarge", POOL_WARM_IPS=ADDS) as (daemon, _):
        daemon.python = FEW
        await daemon.ready()
        await daemon.seen("metrics.serving")
        before = descriptors(daemon)
        async with nobody(daemon.node.netns, HOLD, how, "360"):
            await adds(daemon, how)
            assert descriptors(daemon) < before + LIMIT // 4
        async with nobody(daemon.node.netns, ASK) as asking:
            assert asking.stdin is not None
            for path in ("/healthz", "/readyz", "/metrics"):
                asking.stdin.write(f"{path}\n".encode())
                assert await line(asking) == "200", path
        log = daemon.log.read_text()
        assert "Traceback" not in log and not daemon.events("metrics.refused")


async def test_connections_that_stay_keep_nobody_from_the_metrics(tmp_path: Path, prefix: str) -> None:
    program = """
import socket, time
held = [socket.create_connection(("127.0.0.1", 61678), 30) for _ in range(100)]
print("at work", flush=True)
time.sleep(600)
"""
    async with box(tmp_path, prefix) as (daemon, _):
        await daemon.ready()
        await daemon.seen("metrics.serving")
        async with nobody(daemon.node.netns, program), nobody(daemon.node.netns, ASK) as asking:
            assert asking.stdin is not None
            asking.stdin.write(b"/metrics\n")
            assert await line(asking) == "200"


async def test_odd_requests_to_metrics_port_leave_no_word_in_log(tmp_path: Path, prefix: str) -> None:
    program = """
import socket
print("at work", flush=True)
line = "GET /metrics HTTP/1.1\\r\\nHost: x\\r\\n"
odd = [
    "\\x16\\x03\\x01", "\\r\\n" * 5000, "GET " + "/" * 200000,
    line + "A: " + "b" * 200000 + "\\r\\n\\r\\n",
    line + "A: b\\r\\n" * 100000 + "\\r\\n", line + "Content-Length: -1\\r\\n\\r\\n",
    line + "Content-Length: 99999999999999999999\\r\\n\\r\\n",
    line + "Transfer-Encoding: chunked\\r\\n\\r\\nzz\\r\\n",
    line + "Accept: application/openmetrics-text; version=x\\r\\n\\r\\n",
    line + "Accept: text/plain; version=" + "9" * 5000 + "\\r\\n\\r\\n",
    line + "Accept: application/openmetrics-text; version=1.0.0-\\xe9\\r\\n\\r\\n",
    line + "Accept-Encoding: gzip\\r\\nExpect: 100-continue\\r\\n\\r\\n", "PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n",
    "POST /metrics HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 1000000\\r\\n\\r\\n" + "x" * 1000000,
    "GET /../etc/passwd HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n", "GET http://other/ HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n",
    "GET /metrics HTTP/1.1\\r\\nUpgrade: websocket\\r\\nConnection: upgrade\\r\\nHost: x\\r\\n\\r\\n" + "x" * 100000,
]
for text in odd * 3:
    with socket.create_connection(("127.0.0.1", 61678), 10) as peer:
        try:
            peer.sendall(text.encode("latin-1"))
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(65536):
                pass
        except OSError:
            pass
print("done", flush=True)
"""
    async with box(tmp_path, prefix) as (daemon, _):
        await daemon.ready()
        await daemon.seen("metrics.serving")
        before = len(daemon.log.read_text())
        async with nobody(daemon.node.netns, program) as odd:
            assert await line(odd) == "done"
        await daemon.address("a")
        said = daemon.log.read_text()[before:]
        assert {json.loads(each)["event"] for each in said.splitlines()} <= {"attachment.granted"}, said


def reader(path: Path) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"unix:{path}", options=[("grpc.use_local_subchannel_pool", 1)])


async def test_followers_of_the_reading_group_hold_up_nobody(tmp_path: Path, prefix: str) -> None:
    group = grp.getgrgid(65534).gr_name
    read = tmp_path / "read.sock"
    async with box(tmp_path, prefix, POOL_WARM_IPS=ADDS, API_READ_GROUP=group, API_READ_SOCKET=read) as (daemon, _):
        daemon.python = FEW
        await daemon.ready()
        before = descriptors(daemon)
        channels = [reader(read) for _ in range(60)]
        stubs = [introspection_pb2_grpc.IntrospectionStub(channel) for channel in channels]
        following = [asyncio.ensure_future(_follow(stub)) for stub in stubs for _ in range(10)]
        await adds(daemon, "read")
        assert descriptors(daemon) < before + LIMIT // 4
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        for channel in channels:
            await channel.close()
        assert "Traceback" not in daemon.log.read_text()


async def test_audits_of_the_reading_group_leave_ec2_alone(tmp_path: Path, prefix: str) -> None:
    group = grp.getgrgid(65534).gr_name
    read = tmp_path / "read.sock"
    async with box(tmp_path, prefix, API_READ_GROUP=group, API_READ_SOCKET=read) as (daemon, vpc):
        await daemon.ready()
        asked = await calls(vpc, "DescribeNetworkInterfaces")
        async with reader(read) as channel:
            stub = introspection_pb2_grpc.IntrospectionStub(channel)
            outcomes = [await _audit(stub) for _ in range(40)]
        assert outcomes[0] is grpc.StatusCode.OK
        assert set(outcomes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert await calls(vpc, "DescribeNetworkInterfaces") - asked < 10


async def _follow(stub: introspection_pb2_grpc.IntrospectionStub) -> None:
    try:
        async for _ in stub.WatchEvents(pb.WatchEventsRequest(follow=True, last=1000)):
            pass
    except grpc.aio.AioRpcError:
        pass


async def _audit(stub: introspection_pb2_grpc.IntrospectionStub) -> grpc.StatusCode:
    try:
        await stub.Audit(pb.AuditRequest(), timeout=20)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_a_thousand_adds_may_wait(tmp_path: Path, prefix: str) -> None:
    """On a node that is full: each with a connection of its own, until its time is over."""
    async with box(tmp_path, prefix, type="t3.nano", POOL_WARM_IPS=0, POOL_ALLOCATE_WAIT=15) as (daemon, _):
        await daemon.ready()
        program = """
import asyncio, json, sys
import grpc
from ipamd.api.v1 import ipam_pb2, ipam_pb2_grpc
async def add(number):
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel("unix:" + sys.argv[1], options=options) as channel:
        request = ipam_pb2.AllocateRequest(
            attachment=ipam_pb2.Attachment(container_id=f"c{number}", ifname="eth0", netns="/x"), deadline_ms=10000
        )
        try:
            await ipam_pb2_grpc.IpamStub(channel).Allocate(request, timeout=60)
            return "OK"
        except grpc.aio.AioRpcError as error:
            return error.code().name
async def main():
    found = await asyncio.gather(*map(add, range(1000)))
    print(json.dumps({name: found.count(name) for name in set(found)}))
asyncio.run(main())
"""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, str(daemon.node.socket)),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        outcomes = json.loads(out)
        assert sum(outcomes.values()) == 1000 and outcomes["OK"] >= 1
        assert set(outcomes) <= {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}, outcomes


async def test_huge_words_of_a_caller_are_kept_nowhere(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        await daemon.ready()
        huge = "x" * (3 << 20)
        calls = [
            cni_call("a", config=CONFIG[:-1] + b',"prevResult":"' + b"x" * 900_000 + b'"}'),
            ipam_pb2.CniCall(container_id="a", ifname="eth0", netns="/x", args=huge, config=CONFIG),
            ipam_pb2.CniCall(container_id="a", ifname="eth0", netns=huge, config=CONFIG),
            ipam_pb2.CniCall(container_id=huge, ifname="eth0", netns="/x", config=CONFIG),
            ipam_pb2.CniCall(container_id="a", ifname=huge, netns="/x", config=CONFIG),
        ]
        await _refused(daemon, calls * 4)  # what the first of them need stays with the process
        before, said = resident(daemon), daemon.log.stat().st_size
        await _refused(daemon, calls * 80)
        assert resident(daemon) < before + (24 << 20)
        assert daemon.log.stat().st_size < said + (2 << 20)
        assert await daemon.address("b")


async def _refused(daemon: Daemon, calls: list[ipam_pb2.CniCall]) -> None:
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await daemon.ipam.Allocate(ipam_pb2.AllocateRequest(cni=call), timeout=20)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert len(refused.value.details() or "") < 1100


def resident(daemon: Daemon) -> int:
    assert daemon.process is not None
    pages = Path(f"/proc/{daemon.process.pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()
