"""Which calls the network policy agent gets, and in which order: with an agent that behaves as AWS's does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from ipamd.host import HostError
from ipamd.host.veth import host_link
from ipamd.policy import enforcement
from ipamd.policy.agent import AgentFailed
from ipamd.policy.enforcement import MOST_GONE, NOT_ENFORCED, Enforcement, Mode
from ipamd.policy.errors import NotEnforced
from ipamd.policy.pods import Pod, pod_of
from ipamd.pool.model import Attachment, AttachmentKey, Owner
from ipamd.telemetry.conditions import Conditions

WEB = Pod("shop", "web-0")


class Agent:
    """`links` are the host's by their further names; `filters` the link that each pod is filtered at."""

    socket = Path("/run/aws-node/npa.sock")

    def __init__(self, links: dict[str, str]) -> None:
        self.links = links
        self.filters: dict[Pod, str] = {}
        self.told: list[str] = []
        self.failure: AgentFailed | None = None
        self.going = asyncio.Event()
        self.going.set()
        self.asked = asyncio.Event()

    async def _answer(self, what: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.told.append(what)
        self.asked.set()
        await self.going.wait()

    async def enforce(self, pod: Pod, mode: str) -> None:
        await self._answer(f"enforce {pod} {mode}")
        self.filters.setdefault(pod, self.links[pod.link])

    async def forget(self, pod: Pod) -> None:
        await self._answer(f"forget {pod}")
        self.filters.pop(pod, None)

    async def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    async def close(self) -> None:
        """It holds nothing."""


class Stage:
    def __init__(self, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
        self.links: dict[str, str] = {}
        self.agent = Agent(self.links)
        self.conditions = Conditions()
        self.enforcement = Enforcement(mode, cast(Any, self.agent), self.conditions)
        monkeypatch.setattr(enforcement, "give", self.give)

    def give(self, link: str, name: str) -> None:
        self.links[name] = link

    async def told(self) -> None:
        await asyncio.gather(*self.enforcement._telling)

    @property
    def wrong(self) -> str:
        return next((each.text for each in self.conditions.active() if each.name == NOT_ENFORCED), "")


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage("standard", monkeypatch)


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage("strict", monkeypatch)


def away() -> AgentFailed:
    return AgentFailed("/run/aws-node/npa.sock: No such file or directory", away=True)


def attachment(container: str, pod: Pod = WEB, since: float = 0.0, ifname: str = "eth0") -> Attachment:
    owner = Owner(pod_name=pod.name, pod_namespace=pod.namespace)
    return Attachment(AttachmentKey("ipamd", container, ifname), "10.0.0.7", "eni-1", since, owner)


def test_the_links_name_is_the_agents() -> None:
    """The pair is that of the agent's own test (pkg/utils/utils_test.go)."""
    assert Pod("bar", "foo").link == "eni9cfdfc6963c"


@pytest.mark.parametrize(
    "other",
    [
        attachment("c", ifname="net1"),
        attachment("c", Pod("shop", "")),
        attachment("c", Pod("", "web-0")),
    ],
)
async def test_what_is_no_pods_own_interface_is_not_told(strict: Stage, other: Attachment) -> None:
    assert pod_of(other) is None and not strict.enforcement.concerns(other)
    await strict.enforcement.enforce(other, 1.0)
    strict.enforcement.dropped(other.key)
    await strict.told()
    assert strict.agent.told == []


async def test_a_pod_is_announced_and_ended(stage: Stage) -> None:
    first = attachment("c1")
    await stage.enforcement.enforce(first, 5.0)
    assert stage.agent.filters == {WEB: host_link(first.key)}
    stage.enforcement.dropped(first.key)
    await stage.told()
    assert stage.agent.told == ["forget shop/web-0", "enforce shop/web-0 standard", "forget shop/web-0"]
    assert stage.agent.filters == {}


async def test_a_pod_that_comes_back_is_filtered_anew(stage: Stage) -> None:
    """Also where the agent never heard of the end of the first."""
    first, second = attachment("c1"), attachment("c2")
    await stage.enforcement.enforce(first, 5.0)
    await stage.enforcement.enforce(second, 5.0)
    assert stage.agent.filters == {WEB: host_link(second.key)}


async def test_a_late_end_leaves_the_pod_of_that_name(stage: Stage) -> None:
    first, second = attachment("c1"), attachment("c2")
    await stage.enforcement.enforce(first, 5.0)
    await stage.enforcement.enforce(second, 5.0)
    stage.enforcement.dropped(first.key)
    await stage.told()
    assert stage.agent.filters == {WEB: host_link(second.key)}


async def test_an_end_under_way_does_not_undo_the_next_start(stage: Stage) -> None:
    first, second = attachment("c1"), attachment("c2")
    await stage.enforcement.enforce(first, 5.0)
    stage.agent.going.clear()
    stage.agent.asked.clear()
    stage.enforcement.dropped(first.key)
    await stage.agent.asked.wait()
    start = asyncio.create_task(stage.enforcement.enforce(second, 5.0))
    await asyncio.sleep(0)
    stage.agent.going.set()
    await start
    await stage.told()
    assert stage.agent.filters == {WEB: host_link(second.key)}


async def test_standard_goes_on_without_an_agent(stage: Stage) -> None:
    stage.agent.failure = away()
    await stage.enforcement.enforce(attachment("c1"), 5.0)
    assert "No such file" in stage.wrong and "start all the same" in stage.wrong
    stage.agent.failure = None
    await stage.enforcement.look()
    assert WEB in stage.agent.filters and not stage.wrong


async def test_standard_waits_for_a_silent_agent_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enforcement, "STANDARD_WAIT", 0.01)
    monkeypatch.setattr(enforcement, "ONE_POD", 0.05)
    stage.agent.going.clear()
    await stage.enforcement.enforce(attachment("c1"), 5.0)
    await stage.told()
    assert "no answer within" in stage.wrong
    await stage.enforcement.enforce(attachment("c2", Pod("shop", "web-1")), 5.0)
    assert stage.agent.told == ["forget shop/web-0"] and not stage.enforcement._telling


async def test_a_slow_agent_ends_what_nobody_waits_for(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enforcement, "STANDARD_WAIT", 0.01)
    stage.agent.going.clear()
    await stage.enforcement.enforce(attachment("c1"), 5.0)
    stage.agent.going.set()
    await stage.told()
    assert WEB in stage.agent.filters and not stage.wrong


async def test_strict_fails_without_an_agent(strict: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enforcement, "PAUSE", 0.01)
    strict.agent.failure = away()
    with pytest.raises(NotEnforced, match=r"shop/web-0 are not in force.*No such file"):
        await strict.enforcement.enforce(attachment("c1"), 0.05)
    assert "does not start" in strict.wrong


async def test_strict_waits_for_an_agent_that_starts(strict: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enforcement, "PAUSE", 0.01)
    strict.agent.failure = away()
    start = asyncio.create_task(strict.enforcement.enforce(attachment("c1"), 60.0))
    while not strict.wrong:  # noqa: ASYNC110
        await asyncio.sleep(0)
    strict.agent.failure = None
    await start
    assert WEB in strict.agent.filters and not strict.wrong


async def test_strict_gives_up_when_the_pod_is_gone(strict: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enforcement, "PAUSE", 0.01)
    strict.agent.failure = away()
    first = attachment("c1")
    start = asyncio.create_task(strict.enforcement.enforce(first, 60.0))
    while not strict.wrong:  # noqa: ASYNC110
        await asyncio.sleep(0)
    strict.enforcement.dropped(first.key)
    with pytest.raises(NotEnforced):
        await start


async def test_one_pod_that_is_refused_holds_up_no_other(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def give(link: str, name: str) -> None:
        if name == WEB.link:
            raise HostError("no such link")
        stage.links[name] = link

    other = Pod("shop", "web-1")
    monkeypatch.setattr(enforcement, "give", give)
    await stage.enforcement.enforce(attachment("c1"), 5.0)
    assert "no such link" in stage.wrong
    await stage.enforcement.enforce(attachment("c2", other), 5.0)
    await stage.enforcement.look()
    assert set(stage.agent.filters) == {other} and stage.wrong


async def test_ends_that_came_without_a_daemon_are_told(stage: Stage) -> None:
    """But not of a pod that is there again."""
    other = Pod("shop", "web-1")
    held, gone = [attachment("c3", since=2.0)], [attachment("c1", since=1.0), attachment("c2", other)]
    stage.agent.filters = {WEB: "kept", other: "left"}
    stage.enforcement.restore(held, gone)
    await stage.enforcement.look()
    assert stage.agent.filters == {WEB: "kept"} and stage.agent.told == ["forget shop/web-1"]


async def test_pods_that_run_get_the_links_name(stage: Stage) -> None:
    first = attachment("c1")
    stage.enforcement.restore([first], [])
    await stage.enforcement.name_links()
    assert stage.links == {WEB.link: host_link(first.key)}


async def test_what_an_absent_agent_is_owed_is_bounded(stage: Stage) -> None:
    stage.agent.failure = away()
    await stage.enforcement.look()
    for number in range(MOST_GONE + 50):
        each = attachment(f"c{number}", Pod("jobs", f"job-{number}"))
        await stage.enforcement.enforce(each, 5.0)
        stage.enforcement.dropped(each.key)
    assert len(stage.enforcement._owed) == MOST_GONE
    assert not stage.enforcement._pods and not stage.enforcement._holders
