"""A daemon's socket with answers that the test wrote: what the tests of ipamctl stand on."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from ipamd.api.v1 import administration_pb2 as admin
from ipamd.api.v1 import administration_pb2_grpc, introspection_pb2_grpc
from ipamd.api.v1 import introspection_pb2 as pb

SINCE = Timestamp(seconds=1_800_000_000)  # 2027-01-15T08:00:00Z
UNTIL = Timestamp(seconds=1_800_000_060)
BUDGET = [
    pb.Bucket(
        action="AssignPrivateIpAddresses", rate=0.4, tokens=0.25, waiting=3, throttled=4,
        waits=[
            pb.Waits(priority="pod", waiting=1, count=20, delayed=9, total=7.5, longest=2.125),
            pb.Waits(priority="warm", waiting=2, count=5, delayed=3, total=1.5, longest=1.0),
            pb.Waits(priority="release"),
        ],
    ),
    pb.Bucket(
        action="CreateNetworkInterface", rate=0.5, tokens=19, waits=[pb.Waits(priority="pod", count=1)],
    ),
    pb.Bucket(action="DescribeNetworkInterfaces", rate=0.5, throttled=1),
]  # fmt: skip


def well() -> pb.Node:
    """A node where nothing needs attention."""
    return pb.Node(
        instance_id="i-1", instance_type="m5.large", availability_zone="eu-1a", version="1", started=SINCE,
        counts=pb.Counts(free=5, assigned=3, cooling=2, releasing=0, pending=1, waiting=0, total=10),
        targets=pb.Targets(
            warm_ips=5, minimum_ips=0, max_pods=27, cooldown=30, allocate_wait=30, max_enis=3, slack=8,
            release_delay=7200,
        ),
        slots=pb.Slots(enis=1),
        max_enis=3, addresses_per_eni=9, ready=True, subnets=[pb.Subnet(id="subnet-1", available=180, seen=SINCE)],
    )  # fmt: skip


def ill() -> pb.Node:
    """A node where much does."""
    node = well()
    node.ready, node.not_ready_reason = False, "NOT_AUTHORIZED: no"
    node.counts.waiting = 4
    node.backoffs.add(scope="new ENIs", reason="ENI_LIMIT", message="Attach: no", until=UNTIL)
    node.budget.extend(BUDGET)
    node.subnets.add(id="subnet-2", available=0, seen=SINCE)
    node.subnets.add(id="subnet-3", available=9, seen=SINCE)
    node.subnets.add(id="subnet-4")
    node.denied.add(action="ec2:DeleteNetworkInterface", consequence="ENIs are left behind.")
    node.troubles.extend(
        [event(7, "attachment.refused", "warning", pod="shop/web-9", reason="TIMEOUT", waited_ms=3.5)]
    )
    return node


def event(number: int, name: str, level: str = "info", **fields: Any) -> pb.Event:
    struct = Struct()
    struct.update(fields)
    at = Timestamp(seconds=SINCE.seconds + number, nanos=125_000_000)
    return pb.Event(number=number, at=at, level=level, name=name, fields=struct)


def attachment(n: int, netns: str = "") -> pb.AttachmentInfo:
    return pb.AttachmentInfo(
        network="ipamd", container_id=f"{n:064x}", ifname="eth0", ip=f"10.0.{n // 250}.{n % 250}",
        eni="eni-0", pod_name=f"web-{n}", pod_namespace="shop", pod_uid=f"u{n}", since=SINCE, host_ifname=f"veth{n}",
        netns=netns,
    )  # fmt: skip


class Daemon(introspection_pb2_grpc.IntrospectionServicer, administration_pb2_grpc.AdministrationServicer):
    def __init__(self) -> None:
        self.node = well()
        self.attachments = [attachment(1), attachment(0)]
        self.waiting: list[pb.Waiting] = []
        self.events: list[pb.Event] = []
        self.coming: queue.Queue[pb.Event | None] = queue.Queue()  # None: the daemon stops
        self.explanation = pb.Explanation(state="steady", headline="All is well.")
        self.audit = pb.AuditReply(at=SINCE, enis=2, addresses=10, attachments=2, routes=2)
        self.vanished: list[admin.ReleasedAttachment] = []
        self.error: tuple[grpc.StatusCode, str] | None = None
        self.requests: list[Any] = []

    def _note(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        if self.error is not None:
            context.abort(*self.error)

    def GetNode(self, request: pb.GetNodeRequest, context: grpc.ServicerContext) -> pb.Node:
        self._note(request, context)
        return self.node

    def ListEnis(self, request: pb.ListEnisRequest, context: grpc.ServicerContext) -> pb.ListEnisReply:
        self._note(request, context)
        return pb.ListEnisReply(
            enis=[
                pb.Eni(id="", device_index=1, state="creating", pending=1, capacity=9),
                pb.Eni(
                    id="eni-0", primary=True, state="ready", link="ens5", primary_ip="10.0.0.4", free=5, assigned=3,
                    cooling=2, capacity=9, foreign=1, mac="02:00:00:00:00:01", subnet_id="subnet-1",
                ),
            ]
        )  # fmt: skip

    def ListAddresses(self, request: pb.ListAddressesRequest, context: grpc.ServicerContext) -> pb.ListAddressesReply:
        self._note(request, context)
        states = {"10.0.0.10": "assigned", "10.0.0.9": "free", "10.0.0.100": "cooling"}
        return pb.ListAddressesReply(
            addresses=[pb.Address(ip=ip, eni="eni-0", state=state, since=SINCE) for ip, state in states.items()]
        )

    def ListAttachments(
        self, request: pb.ListAttachmentsRequest, context: grpc.ServicerContext
    ) -> pb.ListAttachmentsReply:
        self._note(request, context)
        return pb.ListAttachmentsReply(attachments=self.attachments)

    def ListWaiting(self, request: pb.ListWaitingRequest, context: grpc.ServicerContext) -> pb.ListWaitingReply:
        self._note(request, context)
        return pb.ListWaitingReply(waiting=self.waiting)

    def GetSettings(self, request: pb.GetSettingsRequest, context: grpc.ServicerContext) -> pb.GetSettingsReply:
        self._note(request, context)
        return pb.GetSettingsReply(
            settings=[
                pb.Setting(key="pool.warm_ips", value="5", origin="default", live=True),
                pb.Setting(key="ec2.tags", value='{"note": "hunter2"}', origin="environment IPAMD_EC2_TAGS"),
            ]
        )

    def WatchEvents(self, request: pb.WatchEventsRequest, context: grpc.ServicerContext) -> Iterator[pb.Event]:
        self._note(request, context)
        yield from self.events[len(self.events) - min(request.last, len(self.events)) :]
        while request.follow and (coming := self.coming.get()) is not None:
            yield coming

    def Explain(self, request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.Explanation:
        self._note(request, context)
        return self.explanation

    def Audit(self, request: pb.AuditRequest, context: grpc.ServicerContext) -> pb.AuditReply:
        self._note(request, context)
        return self.audit

    def ReleaseAttachment(
        self, request: admin.ReleaseAttachmentRequest, context: grpc.ServicerContext
    ) -> admin.ReleasedAttachment:
        self._note(request, context)
        (found,) = (a for a in self.attachments if a.container_id == request.container_id)
        self.attachments.remove(found)
        return admin.ReleasedAttachment(
            network=found.network, container_id=found.container_id, ifname=found.ifname, ip=found.ip,
            pod_name=found.pod_name, pod_namespace=found.pod_namespace,
        )  # fmt: skip

    def CollectVanished(
        self, request: admin.CollectVanishedRequest, context: grpc.ServicerContext
    ) -> admin.CollectVanishedReply:
        self._note(request, context)
        reply = admin.CollectVanishedReply(released=self.vanished)
        if not request.only_look:
            self.vanished = []
        return reply

    def Drain(self, request: admin.DrainRequest, context: grpc.ServicerContext) -> admin.DrainReply:
        self._note(request, context)
        return admin.DrainReply(since=SINCE, attachments=1)

    def Undrain(self, request: admin.UndrainRequest, context: grpc.ServicerContext) -> admin.UndrainReply:
        self._note(request, context)
        return admin.UndrainReply()


@contextlib.contextmanager
def serving(socket: Path, answers: Daemon | None = None) -> Iterator[Daemon]:
    answers = answers or Daemon()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    introspection_pb2_grpc.add_IntrospectionServicer_to_server(answers, server)
    administration_pb2_grpc.add_AdministrationServicer_to_server(answers, server)
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        yield answers
    finally:
        answers.coming.put(None)  # for those that still follow
        server.stop(0).wait()


def ipamctl(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """As a process, which nobody can ask anything; `options` go to `subprocess.run`."""
    command = [sys.executable, "-m", "ipamd.ctl", *map(str, words)]
    environment = {**os.environ, "COLUMNS": "100", **options.pop("environment", {})}
    options = {"stdin": subprocess.DEVNULL, **options}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, **options)


def answer(socket: Path, *words: str, code: int = 0) -> Any:
    done = ipamctl("--socket", socket, "-o", "json", *words)
    assert (done.returncode, done.stderr) == (code, "")
    return json.loads(done.stdout)


# The interpreter and its packages may stand where nobody else may read, below /root for instance: all that a command
# imports is there before the rights go, from a run without a daemon and one with.
_DROPPING = """
import contextlib, io, os, sys, tempfile
from pathlib import Path
from ipamd.ctl.__main__ import main
from tests.unit.ctl_daemon import serving
words, (option, socket) = sys.argv[1:-2], sys.argv[-2:]
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder) / "s"):
        main([*words, option, f"{folder}/s"])
        main([*words, option, f"{folder}/none"])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(main([*words, option, socket]))
"""


def as_nobody(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """`ipamctl` by a user without rights; the last two words are --socket and its path."""
    command = [sys.executable, "-c", _DROPPING, *map(str, words)]
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, cwd=root)
