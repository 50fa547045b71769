"""How far a start is, in words, and what callers get meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from ipamd.api.starting import StartingAdministration, StartingIntrospection, StartingIpam
from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.api.v1 import ipam_pb2
from ipamd.cloud.port import CloudError
from ipamd.pool.model import Attachment, AttachmentKey, CloudErrorKind, CloudFailure, Owner, Reason
from ipamd.process import start as module
from ipamd.process.service_manager import ServiceManager
from ipamd.process.start import LONGEST_ERROR, Phase, Start
from ipamd.settings import Settings
from ipamd.telemetry.conditions import Conditions
from ipamd.telemetry.history import History

CONFIG = b'{"cniVersion":"1.1.0","name":"ipamd","type":"ipamd-cni"}'


class Refusal(Exception):
    """What a call was ended with."""

    def __init__(self, code: grpc.StatusCode, text: str, trailing: dict[str, Any]) -> None:
        super().__init__(text)
        self.code, self.text, self.trailing = code, text, trailing


class Context:
    async def abort(self, code: grpc.StatusCode, text: str, trailing_metadata: Any = ()) -> None:
        raise Refusal(code, text, dict(trailing_metadata))


CONTEXT: Any = Context()


async def waiting_for(ipam: StartingIpam, number: int) -> None:
    async with asyncio.timeout(20):
        while len(ipam.waiting) < number:  # noqa: ASYNC110
            await asyncio.sleep(0)


class Pool:
    """Answers what is handed over to it, and remembers with which deadline."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    async def Allocate(self, request: ipam_pb2.AllocateRequest, context: Any) -> ipam_pb2.AllocateReply:
        self.asked.append((request.cni.container_id, request.deadline_ms))
        return ipam_pb2.AllocateReply(address=b"\x0a\0\0\x01")


@pytest.fixture
def start() -> Start:
    return Start(ServiceManager({}))


@pytest.fixture
def ipam(start: Start) -> StartingIpam:
    return StartingIpam(start, Counter(), lambda: 30.0, lambda: False)


def call(container: str = "c") -> ipam_pb2.CniCall:
    return ipam_pb2.CniCall(
        container_id=container, ifname="eth0", netns="/run/netns/c", args="K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop",
        config=CONFIG,
    )  # fmt: skip


def add(container: str = "c", milliseconds: int = 0) -> ipam_pb2.AllocateRequest:
    return ipam_pb2.AllocateRequest(cni=call(container), deadline_ms=milliseconds)


async def test_the_words_say_phase_tries_and_the_last_answer(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    failure = CloudFailure(CloudErrorKind.TRANSIENT, "DescribeNetworkInterfaces", "ConnectTimeout", "no answer")
    answers: list[Exception | str] = [CloudError(failure), CloudError(failure), "answer"]

    async def ask() -> str:
        words.append(start.words())
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    words: list[str] = []
    start.enter(Phase.EC2)
    assert await start.until_answered("ec2", ask) == "answer"
    last = "last answer: DescribeNetworkInterfaces: ConnectTimeout: no answer"
    assert words == [
        "asking EC2 for this node's network interfaces for 0 s",
        f"asking EC2 for this node's network interfaces for 0 s, 1 try; {last}",
        f"asking EC2 for this node's network interfaces for 0 s, 2 tries; {last}",
    ]
    start.enter(Phase.HOST)
    assert (start.tries, start.error) == (0, "")
    start.waits_for_address()
    assert start.words() == "waiting for the first address for a pod for 0 s"


def test_an_answer_of_any_length_is_cut(start: Start) -> None:
    start.failed("x" * 1_000_000)
    assert len(start.error) <= LONGEST_ERROR + 3


async def test_an_add_that_waits_goes_on_in_the_pool_in_its_turn(ipam: StartingIpam) -> None:
    adds = [asyncio.create_task(ipam.Allocate(add(f"c{n}", 20_000), CONTEXT)) for n in range(5)]
    await waiting_for(ipam, 5)
    pool = Pool()
    ipam.hand_over(cast(Any, pool))
    replies = await asyncio.gather(*adds)
    assert [reply.address for reply in replies] == [b"\x0a\0\0\x01"] * 5
    assert [container for container, _ in pool.asked] == [f"c{n}" for n in range(5)]
    assert all(0 < left <= 20_000 for _, left in pool.asked), "what is left of its time, not more"
    assert ipam.waiting == {}
    await ipam.Allocate(add("late"), CONTEXT)
    assert pool.asked[-1][0] == "late"


async def test_an_add_waits_for_the_start_as_long_as_its_caller(start: Start) -> None:
    """Longer than an address is waited for: the daemon's start is not the pool's wait."""
    ipam = StartingIpam(start, Counter(), lambda: 0.01, lambda: False)
    patient = asyncio.create_task(ipam.Allocate(add("patient", 60_000), CONTEXT))
    with pytest.raises(Refusal):
        await ipam.Allocate(add("plain"), CONTEXT)
    assert not patient.done()
    ipam.hand_over(cast(Any, Pool()))
    await patient


async def test_an_add_whose_time_is_up_is_told_the_phase(start: Start, ipam: StartingIpam) -> None:
    start.enter(Phase.EC2)
    start.failed("DescribeNetworkInterfaces: ConnectTimeout: no answer")
    with pytest.raises(Refusal) as refused:
        await ipam.Allocate(add(milliseconds=10), CONTEXT)
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE
    error = refused.value.trailing["ipamd-cni-error"]
    for part in ("asking EC2", "ConnectTimeout", "reason=NOT_READY", '"code": 11'):
        assert part in error
    assert ipam.waiting == {} and ipam._refusals == {Reason.NOT_READY: 1}


async def test_a_del_ends_the_add_that_waits_and_goes_to_the_spool(ipam: StartingIpam) -> None:
    waiting = asyncio.create_task(ipam.Allocate(add("c"), CONTEXT))
    other = asyncio.create_task(ipam.Allocate(add("other"), CONTEXT))
    await waiting_for(ipam, 2)
    with pytest.raises(Refusal) as refused:
        await ipam.Release(ipam_pb2.ReleaseRequest(cni=call("c")), CONTEXT)
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE, "the plugin leaves it in the spool"
    with pytest.raises(Refusal) as ended:
        await waiting
    assert ended.value.code is grpc.StatusCode.ABORTED
    assert not other.done()
    ipam.close()
    with pytest.raises(Refusal) as stopped:
        await other
    assert "ipamd-cni-error" not in stopped.value.trailing, "the plugin asks the successor"


async def test_a_caller_that_hangs_up_waits_no_more(ipam: StartingIpam) -> None:
    waiting = asyncio.create_task(ipam.Allocate(add(), CONTEXT))
    await waiting_for(ipam, 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ipam.waiting == {}
    ipam.hand_over(cast(Any, Pool()))


@pytest.mark.parametrize("method", ["Check", "Collect"])
@pytest.mark.parametrize("by_cni", [True, False])
async def test_what_asks_the_pool_is_told_that_it_is_early(ipam: StartingIpam, method: str, by_cni: bool) -> None:
    plain = ipam_pb2.Attachment(container_id="c", ifname="eth0", netns="/n")
    requests = {
        "Check": ipam_pb2.CheckRequest(cni=call()) if by_cni else ipam_pb2.CheckRequest(attachment=plain),
        "Collect": ipam_pb2.CollectRequest(cni=call()) if by_cni else ipam_pb2.CollectRequest(valid={}),
    }
    with pytest.raises(Refusal) as refused:
        await getattr(ipam, method)(requests[method], CONTEXT)
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE and "the daemon is starting" in refused.value.text
    assert ("ipamd-cni-error" in refused.value.trailing) is by_cni


@pytest.mark.parametrize("method", ["Allocate", "Release", "Check", "Collect", "Ready"])
async def test_what_makes_no_sense_is_refused_at_once(ipam: StartingIpam, method: str) -> None:
    nonsense = ipam_pb2.CniCall(container_id="c", ifname="eth0", config=b"{")
    request = getattr(ipam_pb2, f"{method}Request")(cni=nonsense)
    with pytest.raises(Refusal) as refused:
        await getattr(ipam, method)(request, CONTEXT)
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT and ipam.waiting == {}


@pytest.mark.parametrize("served", [False, True])
async def test_a_restart_is_not_told_as_a_node_that_is_not_ready(start: Start, served: bool) -> None:
    ipam = StartingIpam(start, Counter(), lambda: 30.0, lambda: served)
    request = ipam_pb2.ReadyRequest(cni=call())
    if served:
        assert (await ipam.Ready(request, CONTEXT)).request_id
    else:
        with pytest.raises(Refusal) as refused:
            await ipam.Ready(request, CONTEXT)
        assert '"code": 50' in refused.value.trailing["ipamd-cni-error"]


HELD = Attachment(AttachmentKey("ipamd", "old", "eth0"), "10.0.0.7", "eni-1", 0.0, Owner("/n", "db", "shop", "u"))


def introspection(start: Start, ipam: StartingIpam) -> StartingIntrospection:
    ledger = SimpleNamespace(contents=lambda: SimpleNamespace(attachments=(HELD,)))
    live = SimpleNamespace(loaded=SimpleNamespace(settings=Settings()))
    return StartingIntrospection(
        cast(Any, live), History(), Conditions(), start, cast(Any, ledger), ipam, began=1.0
    )  # fmt: skip


async def test_the_node_shows_its_start_and_its_records(start: Start, ipam: StartingIpam) -> None:
    start.failed("imds: timeout")
    node = await introspection(start, ipam).GetNode(pb.GetNodeRequest(), CONTEXT)
    assert (node.start.phase, node.start.tries, node.start.last_error) == ("metadata", 1, "imds: timeout")
    assert (node.ready, node.counts.assigned, node.instance_id) == (False, 1, "")
    assert "asking the instance metadata service" in node.not_ready_reason


async def test_it_explains_the_pool_a_waiting_pod_and_one_on_record(start: Start, ipam: StartingIpam) -> None:
    shown = introspection(start, ipam)
    start.enter(Phase.EC2)
    start.failed("ConnectTimeout")
    waiting = asyncio.create_task(ipam.Allocate(add(), CONTEXT))
    await waiting_for(ipam, 1)
    pool = await shown.Explain(pb.ExplainRequest(pool=pb.PoolSubject()), CONTEXT)
    assert (
        pool.state == "starting"
        and "ConnectTimeout" in pool.headline
        and pool.because == ["1 pod waits for it to be ready."]
    )
    pod = await shown.Explain(pb.ExplainRequest(pod="shop/web"), CONTEXT)
    assert pod.state == "waiting" and "asking EC2" in pod.because[0] and pod.advice
    held = await shown.Explain(pb.ExplainRequest(pod="db"), CONTEXT)
    assert held.state == "attached" and "10.0.0.7" in held.headline
    with pytest.raises(Refusal) as unknown:
        await shown.Explain(pb.ExplainRequest(pod="nobody"), CONTEXT)
    assert unknown.value.code is grpc.StatusCode.NOT_FOUND and "starting" in unknown.value.text
    listed = await shown.ListWaiting(pb.ListWaitingRequest(), CONTEXT)
    assert [w.pod_name for w in listed.waiting] == ["web"]
    waiting.cancel()


@pytest.mark.parametrize("method", ["ListEnis", "ListAddresses", "Audit"])
async def test_what_needs_the_pool_is_told_that_it_starts(start: Start, ipam: StartingIpam, method: str) -> None:
    with pytest.raises(Refusal) as refused:
        await getattr(introspection(start, ipam), method)(None, CONTEXT)
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE and "the daemon is starting" in refused.value.text


@pytest.mark.parametrize("method", ["ReleaseAttachment", "CollectVanished", "Drain", "Undrain"])
async def test_operators_are_told_that_it_starts(start: Start, method: str) -> None:
    with pytest.raises(Refusal) as refused:
        await getattr(StartingAdministration(start), method)(None, CONTEXT)
    assert "the daemon is starting" in refused.value.text
