"""Between two holders of an address: the kernel forgets its flows, and who waits, or doesn't, for that."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import (
    AttachmentKey,
    CloudErrorKind,
    Cooling,
    DropCooling,
    Reason,
    Targets,
    Use,
)
from ipamd.pool.reuse import PAUSE, TRIES
from tests.unit.story import Story, addresses, full_node, observed, warm

A, B = addresses(2)


class Slow(Story):
    """The kernel forgets flows when it is asked to."""

    def __init__(self, targets: Targets, *held: str) -> None:
        super().__init__(targets)
        self.forgets = False
        self.start(observed("eni-0", 0, *held))

    def forgotten(self, *expected: str) -> None:
        """Exactly these have been asked for, and are forgotten."""
        effect = self.one(do.ForgetFlows)
        assert effect.addresses == expected
        self.feed(on.OperationDone(effect.op))

    def hold(self, *names: str) -> None:
        self.ask(*names)
        assert len(self.take(do.Grant)) == len(names)

    @property
    def free_and_cooling(self) -> tuple[int, int]:
        counts = self.pool.counts()
        return counts.free, counts.cooling


def released(*held: str, **targets: float) -> Slow:
    """All of these were in use, and are released in one moment; the kernel has forgotten them once."""
    story = Slow(warm(0, **targets), *held)
    story.hold(*held)
    for name in held:
        story.give_back(name)
    while found := story.take(do.ForgetFlows):
        story.feed(on.OperationDone(found[0].op))
        story.pass_time(PAUSE)
    story.effects = story.take(do.Wake)
    story.written()
    return story


# On release


def test_a_release_is_answered_before_its_flows_are_forgotten() -> None:
    story = Slow(warm(0), A)
    story.hold("a")
    story.effects.clear()
    story.give_back("a")
    kinds = [type(effect) for effect in story.effects if not isinstance(effect, do.Wake)]
    assert kinds == [do.Released, do.ForgetFlows]
    story.forgotten(A)
    assert story.free_and_cooling == (0, 1), "that does not end its cooldown"


def test_a_burst_of_releases_takes_two_walks() -> None:
    held = addresses(9)
    story = Slow(warm(0), *held)
    story.hold(*held)
    for name in held:
        story.give_back(name)
    story.forgotten(held[0])
    assert not story.take(do.ForgetFlows), "not one after the other either"
    story.wake()
    assert story.now == pytest.approx(1000 + PAUSE)
    story.forgotten(*held[1:])
    story.pass_time(5)
    assert not story.take(do.ForgetFlows)


def test_releases_wait_for_the_pause_also_while_pods_wait() -> None:
    """Whom these flushes don't help."""
    story = Slow(warm(0, reuse_cooling_after=20.0), *addresses(9))
    story.hold(*addresses(9))
    story.feed(on.TargetsChanged(warm(0, max_enis=1, reuse_cooling_after=20.0)))
    story.give_back(A)
    story.forgotten(A)
    story.ask("waits")
    assert not story.take(do.Refuse)
    story.give_back(B)
    assert not story.take(do.ForgetFlows)
    story.pass_time(PAUSE)
    story.forgotten(B)


@pytest.mark.parametrize("becomes", ["the host's", "a pod's"])
def test_what_turns_out_to_be_in_use_is_not_flushed(becomes: str) -> None:
    story = Slow(warm(0), A, B)
    story.hold("a", "b")
    story.give_back("a")
    story.give_back("b")
    story.forgotten(A)
    if becomes == "a pod's":
        story.pool._find_routed(B, "veth-b", story.now)
    else:
        use = Use("address", f"address {B} dev eth0", "eth0")
        story.feed(on.UseSeen(IPv4Network(B), use))
    story.pass_time(PAUSE)
    assert not story.take(do.ForgetFlows)


def test_what_nothing_cools_wakes_nobody() -> None:
    story = released(A, B)
    story.pass_time(30)
    story.forgotten(A, B)
    story.pass_time(0)
    attachments_are_sought = 60.0
    assert story.free_and_cooling == (2, 0)
    story.pass_time(attachments_are_sought)
    at = story.take(do.Wake)[-1].at
    assert at == story.pool.audit_at


def test_flows_of_an_address_taken_by_ec2_are_forgotten_too() -> None:
    story = Slow(warm(0), A)
    story.hold("a")
    for _ in range(2):
        story.pass_time(4000)
        story.feed(on.Audited(story.one(do.Audit).op, (observed("eni-0", 0),), (), ()))
    assert A not in story.pool.inventory.addresses
    story.give_back("a")
    story.forgotten(A)


# At the end of the cooldown


def test_cooled_address_is_free_after_its_second_flush() -> None:
    story = released(A)
    story.wake()
    assert story.now == 1030.0
    assert story.free_and_cooling == (0, 1) and not story.written()
    story.forgotten(A)
    assert story.free_and_cooling == (1, 0)
    assert story.written() == [DropCooling(A)]


def test_cooldowns_that_end_in_the_same_moment_share_a_walk() -> None:
    story = Slow(warm(0), *addresses(3))
    story.hold("a", "b", "c")
    story.give_back("a")
    story.now += 0.02
    story.give_back("b")
    story.now += 0.03
    story.give_back("c")
    story.forgotten(A)
    story.pass_time(PAUSE)
    story.forgotten(*addresses(2, 11))
    story.pass_time(30 - PAUSE - 0.05)
    story.forgotten(A)
    story.pass_time(0.06)
    assert not story.take(do.ForgetFlows)
    story.wake()
    assert story.now == pytest.approx(1030 + PAUSE)
    story.forgotten(*addresses(2, 11))


def test_flush_of_before_end_of_cooldown_does_not_count() -> None:
    """It was asked for at the release, and took that long."""
    story = Slow(warm(0, cooldown=5.0), A)
    story.hold("a")
    story.give_back("a")
    early = story.one(do.ForgetFlows)
    story.pass_time(6)
    assert not story.take(do.ForgetFlows), "one at a time"
    story.feed(on.OperationDone(early.op))
    assert story.free_and_cooling == (0, 1)
    story.forgotten(A)
    assert story.free_and_cooling == (1, 0)


def test_without_a_cooldown_one_flush_does_for_both() -> None:
    story = Slow(warm(0, cooldown=0.0), A)
    story.hold("a")
    story.give_back("a")
    story.forgotten(A)
    assert story.free_and_cooling == (1, 0)
    story.pass_time(1)
    assert not story.take(do.ForgetFlows)


def test_what_is_about_to_come_back_is_not_asked_of_ec2() -> None:
    story = released(A, B)
    story.pass_time(30)
    flush = story.one(do.ForgetFlows)
    story.feed(on.TargetsChanged(warm(2)))
    assert story.pool.deficit() == 0 and story.pool.can_serve()
    story.feed(on.OperationDone(flush.op))
    assert story.pool.deficit() == 0 and story.free_and_cooling == (2, 0)
    assert not story.take(do.AssignAddresses)


def test_pending_flush_counts_as_supply_before_asking_ec2() -> None:
    story = Slow(warm(0), A, B)
    story.hold("a", "b")
    story.give_back("a")
    story.forgotten(A)
    story.pass_time(29.99)
    story.give_back("b")
    flush = story.one(do.ForgetFlows)
    story.pass_time(0.01)
    story.feed(on.TargetsChanged(warm(1)))
    assert not story.take(do.AssignAddresses)
    story.feed(on.OperationDone(flush.op))
    story.pass_time(PAUSE)
    story.forgotten(A)
    assert story.free_and_cooling == (1, 1) and not story.take(do.AssignAddresses)


def test_pod_waiting_for_a_cooled_address_skips_the_pause() -> None:
    story = Slow(warm(0), A, B)
    story.hold("a", "b")
    story.give_back("a")
    story.forgotten(A)
    story.pass_time(29.95)
    story.give_back("b")
    story.forgotten(B)
    story.pass_time(0.05)
    assert not story.take(do.ForgetFlows)
    story.ask("c")
    story.forgotten(A)
    assert story.one(do.Grant).attachment.address == A
    assert not story.take(do.AssignAddresses)


def test_address_lost_and_found_during_its_flush_starts_afresh() -> None:
    story = released(A)
    story.pass_time(30)
    flush = story.one(do.ForgetFlows)
    inventory = story.pool.inventory
    inventory.lose(inventory.addresses[A])
    story.feed(on.OperationDone(flush.op))
    assert story.free_and_cooling == (0, 0)


def test_a_flush_of_before_the_last_release_frees_nothing() -> None:
    """Somebody turned out to have the address, and gave it back meanwhile."""
    story = released(A)
    story.pass_time(30)
    flush = story.one(do.ForgetFlows)
    story.pool._find_routed(A, "veth-x", story.now)
    story.feed(on.ReleaseRequested("x", AttachmentKey("net", "x", "eth0"), AttachmentKey("", "veth-x", "")))
    story.feed(on.OperationDone(flush.op))
    assert story.free_and_cooling == (0, 1)


def test_request_whose_deadline_is_the_cooldowns_end_is_refused() -> None:
    """The flush that follows would come too late."""
    story = full_node(cooldown=30.0, allocate_wait=60.0)
    story.give_back("a")
    story.ask("c", wait=30.0)
    refusal = story.one(do.Refuse).refusal
    assert (refusal.reason, refusal.retry_after) == (Reason.ALL_COOLING, 30.0)
    story.ask("d", wait=30.1)
    assert not story.take(do.Refuse)


def test_after_a_restart_all_that_cools_is_flushed_anew() -> None:
    story = Slow(warm(0))
    cooling = (Cooling(A, 965.0), Cooling(B, 990.0))
    story.start(observed("eni-0", 0, A, B), cooling=cooling)
    assert story.free_and_cooling == (0, 2), "the first has cooled, but who knows what the kernel remembers of it?"
    assert story.pool.can_serve()
    story.forgotten(A, B)
    assert story.free_and_cooling == (1, 1)
    story.wake()
    story.forgotten(B)
    assert story.now == 1020.0 and story.free_and_cooling == (2, 0)


def test_nothing_is_flushed_any_more_when_the_daemon_stops() -> None:
    story = Slow(warm(0), A, B)
    story.hold("a", "b")
    story.give_back("a")
    story.forgotten(A)
    story.feed(on.StopRequested())
    story.give_back("b")
    assert story.take(do.Wake)[-1].at is None
    story.pass_time(30)
    assert not story.take(do.ForgetFlows)


# Early


def cooling_node(**more: float) -> Story:
    """Both addresses cool, the second for 5 s less."""
    story = full_node(reuse_cooling_after=10.0, **more)
    story.give_back("a")
    story.now += 5
    story.give_back("b")
    story.written()
    story.forgets = False
    return story


def test_cooling_address_is_reused_early_after_its_flush() -> None:
    story = cooling_node()
    story.pass_time(5)
    assert not story.take(do.ForgetFlows), "nobody needs it"
    story.ask("c")
    forget = story.one(do.ForgetFlows)
    assert forget.addresses == (A,) and not story.take(do.Grant)
    story.feed(on.OperationDone(forget.op))
    grant = story.one(do.Grant)
    assert (grant.request, grant.attachment.address) == ("c", A)
    assert DropCooling(A) in story.written()


def test_waiting_pod_is_served_when_oldest_cooled_long_enough() -> None:
    story = cooling_node()
    story.ask("c", "d", "e")
    assert story.one(do.Refuse).request == "e", "there are two addresses"
    assert not story.take(do.ForgetFlows)
    story.pass_time(5)
    first = story.one(do.ForgetFlows)
    story.pass_time(5)
    assert not story.take(do.ForgetFlows), "one at a time"
    story.feed(on.OperationDone(first.op))
    assert story.one(do.Grant).request == "c"
    second = story.one(do.ForgetFlows)
    assert (first.addresses, second.addresses) == ((A,), (B,))
    story.feed(on.OperationDone(second.op))
    assert story.one(do.Grant).request == "d"


def test_address_is_not_free_while_its_flows_are_being_forgotten() -> None:
    """Else its next holder might lose connections of its own."""
    story = cooling_node()
    story.ask("c")
    story.pass_time(5)
    forget = story.one(do.ForgetFlows)
    story.pass_time(20)
    assert story.pool.counts().free == 0 and not story.take(do.Grant)
    story.feed(on.OperationDone(forget.op))
    assert story.one(do.Grant).request == "c"


def test_what_is_reused_is_not_asked_of_ec2() -> None:
    story = Slow(warm(0, reuse_cooling_after=10.0), A)
    story.hold("a")
    story.give_back("a")
    story.forgotten(A)
    story.pass_time(10)
    story.ask("b")
    assert story.take(do.ForgetFlows) and not story.take(do.AssignAddresses)


def test_a_release_is_no_reuse_even_if_that_may_come_at_once() -> None:
    story = Slow(warm(0, reuse_cooling_after=0.0), A)
    story.hold("a")
    story.give_back("a")
    story.forgotten(A)
    assert story.free_and_cooling == (0, 1), "nobody waits"
    story.ask("b")
    story.forgotten(A)
    assert story.one(do.Grant).request == "b"


# Where flows can't be forgotten


def fail_flushes(story: Slow, count: int) -> None:
    """In a row, each when the pool tries again."""
    failed = 0
    while True:
        for effect in story.take(do.ForgetFlows):
            story.fail(effect, CloudErrorKind.TRANSIENT, "conntrack")
            failed += 1
        if failed == count:
            return
        story.wake()


def test_flush_that_failed_is_repeated_and_address_waits_for_it() -> None:
    story = released(A)
    story.pass_time(30)
    fail_flushes(story, TRIES - 1)
    assert story.free_and_cooling == (0, 1) and not story.take(do.Note)
    story.wake()
    assert story.now < 1033
    story.forgotten(A)
    assert story.free_and_cooling == (1, 0) and not story.take(do.Note)


def test_failed_release_flush_is_retried_before_cooldown_ends() -> None:
    story = Slow(warm(0), A)
    story.hold("a")
    story.give_back("a")
    fail_flushes(story, 1)
    story.wake()
    assert story.now < 1001
    story.forgotten(A)


def test_unflushed_address_that_left_is_not_flushed_later() -> None:
    story = released(A, B)
    story.pass_time(30)
    fail_flushes(story, TRIES)
    story.hold("c")
    inventory = story.pool.inventory
    inventory.lose(inventory.addresses[B])
    story.pass_time(15)
    story.give_back("c")
    story.forgotten(A)


def test_cooldown_alone_counts_where_flows_cannot_be_flushed() -> None:
    story = released(A)
    story.pass_time(30)
    fail_flushes(story, TRIES)
    assert story.free_and_cooling == (1, 0)
    note = story.one(do.Note)
    assert (note.event, note.level) == ("conntrack.unusable", "warning")
    assert story.now < 1033, "it does not keep the address for long"


def test_failing_flush_is_reported_once_and_retried_rarely() -> None:
    story = released(A, B)
    story.pass_time(30)
    fail_flushes(story, TRIES)
    story.one(do.Note)
    story.hold("c", "d")
    story.give_back("c")
    story.pass_time(10)
    story.give_back("d")
    tries = 0
    while story.pool.counts().cooling:
        for effect in story.take(do.ForgetFlows):
            tries += 1
            story.fail(effect, CloudErrorKind.TRANSIENT, "conntrack")
        story.wake()
    assert 1 <= tries < 30 and not story.take(do.Note)
    story.pass_time(15)
    story.pass_time(60)
    assert not story.take(do.ForgetFlows), "nothing cools"
    story.hold("e")
    story.give_back("e")
    assert len(story.one(do.ForgetFlows).addresses) == 1


def test_a_kernel_that_forgets_again_is_trusted_again() -> None:
    story = released(A)
    story.pass_time(30)
    fail_flushes(story, TRIES)
    story.take(do.Note)
    story.hold("b")
    story.pass_time(15)
    story.give_back("b")
    story.forgotten(A)
    assert story.one(do.Note).event == "conntrack.usable_again"
    story.pass_time(30)
    assert story.free_and_cooling == (0, 1)
    story.forgotten(A)
    assert story.free_and_cooling == (1, 0)


def test_none_is_used_early_while_flushes_fail() -> None:
    story = cooling_node()
    story.ask("c", wait=30.0)
    story.pass_time(5)
    story.fail(story.one(do.ForgetFlows), CloudErrorKind.INVALID, "conntrack")
    story.ask("d", wait=10.0)
    refusal = story.one(do.Refuse)
    assert (refusal.request, refusal.refusal.reason) == ("d", Reason.ALL_COOLING)
    story.pass_time(10)
    flush = story.one(do.ForgetFlows)
    story.feed(on.OperationDone(flush.op))
    assert story.one(do.Grant).request == "c"


def test_a_burst_that_is_not_forgotten_is_not_lost() -> None:
    held = addresses(9)
    story = Slow(warm(0), *held)
    story.hold(*held)
    for name in held:
        story.give_back(name)
    for _ in range(200):
        for effect in story.take(do.ForgetFlows):
            story.fail(effect, CloudErrorKind.UNKNOWN_OUTCOME, "conntrack")
        story.pass_time(0.5)
    assert story.free_and_cooling == (9, 0)
    assert [note.event for note in story.take(do.Note)].count("conntrack.unusable") == 1
