"""What makes a node of no use to its pods, and what does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import Attachment, AttachmentKey, CloudErrorKind, Limits, Reason, Targets
from ipamd.pool.outlook import would_refuse
from ipamd.pool.serving import NotServing, not_serving
from tests.unit.story import Story, addresses, full_node, observed, warm

NOTHING_WARM = warm(0)
POD = Attachment(AttachmentKey("net", "a", "eth0"), "10.0.0.10", "eni-0", 900.0)


def obstacle(story: Story, served: bool = False, broken: str = "") -> NotServing | None:
    return not_serving(story.pool, served, broken, story.now)


def cooling_node() -> Story:
    story = full_node(cooldown=600.0, reuse_cooling_after=600.0)
    story.give_back("a")
    story.give_back("b")
    return story


def refusing_node(kind: CloudErrorKind, targets: Targets = NOTHING_WARM) -> Story:
    story = Story(targets)
    story.start()
    if targets is NOTHING_WARM:
        story.ask("a")
    story.fail(story.one(do.AssignAddresses), kind)
    for effect in story.take(do.CreateEni):  # for want of another way
        story.fail(effect, kind, "CreateNetworkInterface")
    if kind is CloudErrorKind.SUBNET_FULL:
        story.read_subnets(**{"subnet-1": 0})
    return story


def drained_node() -> Story:
    story = full_node()
    story.feed(on.NodeDrained())
    return story


def stopping_node() -> Story:
    story = full_node()
    story.feed(on.StopRequested())
    return story


STATES: dict[Reason, Callable[[], Story]] = {
    Reason.ENI_LIMIT: full_node,
    Reason.ALL_COOLING: cooling_node,
    Reason.THROTTLED: lambda: refusing_node(CloudErrorKind.THROTTLED),
    Reason.SUBNET_EXHAUSTED: lambda: refusing_node(CloudErrorKind.SUBNET_FULL),
    Reason.CLOUD_UNAVAILABLE: lambda: refusing_node(CloudErrorKind.TRANSIENT),
    Reason.NOT_AUTHORIZED: lambda: refusing_node(CloudErrorKind.NOT_AUTHORIZED),
    Reason.DRAINED: drained_node,
    Reason.DRAINING: stopping_node,
}


@pytest.mark.parametrize("reason", STATES)
def test_a_node_that_has_served_serves_although_adds_are_refused(reason: Reason) -> None:
    story = STATES[reason]()
    refusal = would_refuse(story.pool, story.now)
    if reason not in (Reason.THROTTLED, Reason.CLOUD_UNAVAILABLE):  # those come back soon, and an ADD waits
        assert refusal is not None and refusal.reason is reason
    assert obstacle(story, served=True) is None


def test_a_ledger_that_takes_no_records_refuses_adds_alone() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, *addresses(2)))
    refusal = would_refuse(story.pool, story.now, "no space left on device")
    assert refusal is not None and refusal.reason is Reason.LEDGER_UNWRITABLE
    assert "no space left" in refusal.message
    assert obstacle(story) is None
    assert would_refuse(full_node().pool, story.now, "no space left") is not None


def test_a_node_without_an_address_since_its_boot_says_why() -> None:
    story = refusing_node(CloudErrorKind.NOT_AUTHORIZED, warm(2))
    found = obstacle(story)
    assert found is not None and found.reason == "NOT_READY" and "NOT_AUTHORIZED" in found.message


def test_a_node_with_a_pod_has_served_whatever_else_says_so() -> None:
    """The record of it may be lost, and an ENI that never comes keeps the pool from settling."""
    story = Story(warm(4), Limits(2, 2))
    story.start(observed("eni-0", 0, "10.0.0.10"), observed("eni-1", 1, owned=True), attachments=(POD,))
    assert not story.pool.can_serve() and obstacle(story) is None


def test_a_node_whose_first_addresses_come_is_not_ready_yet() -> None:
    story = Story(warm(2))
    story.start()
    found = obstacle(story)
    assert found is not None and found.reason == "NOT_READY" and "on their way" in found.message
    effect = story.one(do.AssignAddresses)
    story.feed(on.AddressesAssigned(effect.op, addresses(2)))
    assert obstacle(story) is None


def test_a_daemon_that_has_not_learnt_its_enis_is_not_ready() -> None:
    found = obstacle(Story(warm(0)), served=True)
    assert found is not None and found.reason == "NOT_READY"


def test_a_kernel_that_carries_no_pod_makes_the_node_not_ready() -> None:
    found = obstacle(full_node(), served=True, broken="rule 500: Operation not permitted")
    assert found is not None and found.reason == "NETWORK_BROKEN"
    assert str(found).startswith("NETWORK_BROKEN: ") and "rule 500" in found.message
