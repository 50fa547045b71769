"""The service translates and keeps out of the way: what it tells the log waits until the answer has left."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from structlog.testing import capture_logs

from ipamd.api.ipam import IpamService
from ipamd.api.v1 import ipam_pb2
from ipamd.pool.model import Attachment, AttachmentKey, Owner, Targets
from ipamd.pool.serving import NotServing
from ipamd.settings import HostSettings
from ipamd.telemetry.tracing import NoTraces


class Runner:
    """A pool with one ENI, which grants and releases 10.0.0.7 whenever it is asked."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        place = SimpleNamespace(device_index=1, mac="02:00:00:00:00:01")
        self.view = SimpleNamespace(place_of={"eni-1": place}.get, targets=Targets())

    async def allocate(
        self, request: str, key: AttachmentKey, owner: Owner, wait: float, wanted: str = "", **how: bool
    ) -> Attachment:
        self.requests.append(request)
        return Attachment(key, "10.0.0.7", "eni-1", 0.0, owner)

    async def release(self, request: str, key: AttachmentKey, recovered_as: AttachmentKey | None) -> Attachment:
        self.requests.append(request)
        return Attachment(key, "10.0.0.7", "eni-1", 0.0)


ATTACHMENT = ipam_pb2.Attachment(container_id="job-1", ifname="net0", netns="/run/netns/j", pod_name="job")


async def before_grant(key: AttachmentKey) -> None:
    """No DEL is in the spool."""


def service(runner: Runner, obstacle: NotServing | None = None) -> Any:
    network, serving = SimpleNamespace(mtu=lambda mac: 9001), SimpleNamespace(obstacle=lambda: obstacle)
    return IpamService(
        cast(Any, runner), cast(Any, network), HostSettings(), cast(Any, serving), before_grant, Counter(), NoTraces()
    )


async def test_the_log_follows_the_answer() -> None:
    ipam = service(Runner())
    with capture_logs() as lines:
        granted = await ipam.Allocate(ipam_pb2.AllocateRequest(attachment=ATTACHMENT), None)
        assert not lines
        await asyncio.sleep(0)
        released = await ipam.Release(ipam_pb2.ReleaseRequest(attachment=ATTACHMENT), None)
        await asyncio.sleep(0)
    assert granted.address == released.address == b"\x0a\0\0\x07"
    told = [(line["event"], line["ip"], line["request_id"]) for line in lines]
    assert told == [
        ("attachment.granted", "10.0.0.7", granted.request_id),
        ("attachment.released", "10.0.0.7", released.request_id),
    ]


async def test_each_request_has_an_id_of_its_own() -> None:
    runner = Runner()
    ipam = service(runner)
    for _ in range(100):
        await ipam.Release(ipam_pb2.ReleaseRequest(attachment=ATTACHMENT), None)
    assert len(set(runner.requests)) == 100
    await asyncio.sleep(0)


class Aborted(Exception):
    pass


class Context:
    """Remembers how the call was refused."""

    async def abort(self, code: grpc.StatusCode, message: str, trailing_metadata: Any) -> None:
        self.code, self.message, self.metadata = code, message, dict(trailing_metadata)
        raise Aborted


@pytest.mark.parametrize(("reason", "number"), [("NOT_READY", 50), ("NETWORK_BROKEN", 51)])
async def test_ready_answers_with_the_obstacle_and_its_cni_code(reason: Any, number: int) -> None:
    runner: Any = Runner()
    runner.view.counts = lambda: SimpleNamespace(free=3)
    request = ipam_pb2.ReadyRequest(cni=ipam_pb2.CniCall(config=b'{"cniVersion":"1.1.0","name":"ipamd"}'))
    context = Context()
    assert (await service(runner).Ready(request, context)).free == 3
    with pytest.raises(Aborted):
        await service(runner, NotServing(reason, "the kernel's words")).Ready(request, context)
    error = json.loads(context.metadata["ipamd-cni-error"])
    assert (context.code, error["code"]) == (grpc.StatusCode.UNAVAILABLE, number)
    assert error["msg"] == "the kernel's words" and reason in error["details"]
