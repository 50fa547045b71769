"""The pool's decisions, told as short stories. The invariants are tests/property/test_pool_machine.py's."""

from __future__ import annotations

import pytest

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import (
    AddressState,
    Attachment,
    AttachmentKey,
    CloudErrorKind,
    CloudFailure,
    Cooling,
    CreatedEni,
    DropCooling,
    DropIntent,
    EniState,
    Intent,
    Limits,
    ObservedEni,
    Reason,
    Targets,
)
from ipamd.pool.outlook import unready_reason
from tests.unit.story import Story, addresses, full_node, observed, warm


def test_a_fresh_node_fills_its_pool_with_one_call() -> None:
    story = Story(warm(5))
    story.start()
    ask = story.one(do.AssignAddresses)
    assert (ask.eni_id, ask.count) == ("eni-0", 5)
    story.feed(on.AddressesAssigned(ask.op, addresses(5)))
    assert story.pool.counts().free == 5
    assert not story.take(do.AssignAddresses) and not story.take(do.CreateEni)
    assert story.pool.can_serve()


def test_a_grant_comes_from_the_warm_pool_after_its_record() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, *addresses(2)))
    story.take(do.Write)
    story.ask("a")
    kinds = [type(effect) for effect in story.effects if isinstance(effect, (do.Write, do.Grant))]
    assert kinds == [do.Write, do.Grant]
    assert story.one(do.Grant).attachment.address == "10.0.0.10"


def test_the_same_attachment_gets_the_same_address() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, *addresses(2)))
    story.ask("a")
    first = story.one(do.Grant)
    story.ask("a")
    assert story.one(do.Grant).attachment == first.attachment


def test_whoever_waits_longest_is_served_first() -> None:
    story = Story(warm(0))
    story.start()
    story.ask("a", "b", "c")
    ask = story.take(do.AssignAddresses)[0]
    story.feed(on.AddressesAssigned(ask.op, addresses(1)))
    assert [grant.request for grant in story.take(do.Grant)] == ["a"]


def test_requests_that_come_together_share_one_call() -> None:
    story = Story(warm(0, coalesce=0.05))
    story.start()
    story.ask("a", "b", "c")
    assert not story.take(do.AssignAddresses)
    assert story.take(do.Wake)[-1].at == pytest.approx(1000.05)
    story.pass_time(0.05)
    assert story.one(do.AssignAddresses).count == 3


def test_a_burst_fills_the_eni_and_creates_what_is_missing_at_once() -> None:
    story = Story(warm(0, coalesce=0.05))
    story.start()
    story.ask(*(f"p{n}" for n in range(25)))
    story.pass_time(0.05)
    assert story.one(do.AssignAddresses).count == 9
    assert [create.count for create in story.take(do.CreateEni)] == [9, 7]
    indexes = [eni.device_index for eni in story.pool.inventory.enis.values()]
    assert sorted(indexes) == [0, 1, 2]


def test_a_new_eni_is_created_attached_marked_and_configured_before_it_serves() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, *addresses(9)))
    story.ask(*(f"p{n}" for n in range(10)))
    assert len(story.take(do.Grant)) == 9
    create = story.one(do.CreateEni)
    assert create.count == 1
    story.feed(on.EniCreated(create.op, CreatedEni("eni-1", "02:1", "subnet-1", "10.0.0.5", ("10.0.0.50",))))
    attach = story.one(do.AttachEni)
    assert attach.device_index == 1
    story.feed(on.EniAttached(attach.op, "attach-1"))
    assert story.one(do.SetDeleteOnTermination).attachment_id == "attach-1"
    link = story.one(do.ConfigureLink)
    assert not story.take(do.Grant), "the address is not there yet"
    story.feed(on.LinkReady(link.op, "eth1"))
    assert story.one(do.Grant).attachment.address == "10.0.0.50"


def test_a_released_address_cools_before_it_is_used_again() -> None:
    story = Story(warm(0, cooldown=30.0, allocate_wait=60.0), Limits(1, 2))
    story.start(observed("eni-0", 0, "10.0.0.10"))
    story.ask("a")
    story.give_back("a")
    assert story.one(do.Released).attachment is not None
    story.take(do.Grant)
    story.ask("b", wait=60)
    assert not story.take(do.Grant) and not story.take(do.Refuse), "it can wait: 60 s are left to the deadline"
    story.pass_time(29.9)
    assert not story.take(do.Grant)
    story.pass_time(0.1)
    assert story.one(do.Grant).attachment.address == "10.0.0.10"


def test_a_release_ends_the_wait_of_its_attachment() -> None:
    story = Story(warm(0))
    story.start()
    story.ask("a", "b")
    story.give_back("a")
    refuse = story.one(do.Refuse)
    assert (refuse.request, refuse.refusal.reason) == ("a", Reason.RELEASED)
    asked = story.take(do.AssignAddresses)
    story.feed(on.AddressesAssigned(asked[0].op, addresses(1)))
    assert story.one(do.Grant).request == "b"


def test_a_node_does_not_offer_itself_while_its_first_addresses_are_on_their_way() -> None:
    story = Story(warm(5))
    story.start()
    ask = story.one(do.AssignAddresses)
    assert not story.pool.can_serve()
    story.feed(on.AddressesAssigned(ask.op, addresses(5)))
    assert story.pool.can_serve()


def test_releasing_what_is_not_held_is_a_success() -> None:
    story = Story(warm(0))
    story.start()
    story.give_back("a")
    assert story.one(do.Released).attachment is None


def test_grants_pack_the_fullest_eni_so_that_others_drain() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, *addresses(2)), observed("eni-1", 1, *addresses(2, 20), owned=True))
    story.ask("a")
    first = story.one(do.Grant).attachment.eni_id
    story.ask("b")
    assert story.one(do.Grant).attachment.eni_id == first


def test_minimum_ips_counts_what_is_in_use() -> None:
    story = Story(warm(0, minimum_ips=6))
    story.start(observed("eni-0", 0, *addresses(2)))
    story.ask("a")
    assert story.one(do.AssignAddresses).count == 4


def test_max_pods_bounds_growth() -> None:
    story = Story(Targets(warm_ips=8, max_pods=4, coalesce=0))
    story.start()
    assert story.one(do.AssignAddresses).count == 4


def test_a_full_node_refuses_at_once_and_says_what_the_limit_is() -> None:
    story = full_node()
    story.ask("c")
    refusal = story.one(do.Refuse).refusal
    assert refusal.reason is Reason.ENI_LIMIT
    assert "1 ENIs with 2" in refusal.message and refusal.retry_after == 30.0
    assert dict(refusal.numbers)["assigned"] == 2


def test_a_cooling_address_that_comes_too_late_refuses_with_the_time_to_wait() -> None:
    story = full_node(cooldown=100.0, reuse_cooling_after=100.0)
    story.give_back("a")
    story.ask("c")
    refusal = story.one(do.Refuse).refusal
    assert refusal.reason is Reason.ALL_COOLING and refusal.retry_after == pytest.approx(100.0)


def test_max_pods_has_a_reason_of_its_own() -> None:
    story = Story(Targets(warm_ips=0, max_pods=1, coalesce=0))
    story.start(observed("eni-0", 0, *addresses(2)))
    story.ask("a", "b")
    assert story.one(do.Refuse).refusal.reason is Reason.POD_LIMIT


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (CloudErrorKind.NOT_AUTHORIZED, Reason.NOT_AUTHORIZED),
        (CloudErrorKind.SUBNET_FULL, Reason.SUBNET_EXHAUSTED),
    ],
)
def test_a_lasting_error_refuses_whoever_waits(kind: CloudErrorKind, reason: Reason) -> None:
    story = Story(warm(0))
    story.start()
    story.ask("a")
    story.fail(story.one(do.AssignAddresses), kind)
    if kind is CloudErrorKind.NOT_AUTHORIZED:  # another ENI may still be created, which is another action
        story.fail(story.one(do.CreateEni), kind, "CreateNetworkInterface")
    else:
        story.read_subnets(**{"subnet-1": 0})
    refusal = story.one(do.Refuse).refusal
    assert refusal.reason is reason
    assert ("EC2's words" in refusal.message or "subnet-1" in refusal.message) and refusal.retry_after is not None


def test_a_bad_security_group_is_named() -> None:
    story = Story(warm(0), Limits(2, 2))
    story.start(observed("eni-0", 0, "10.0.0.10"))
    story.ask("a", "b")
    story.fail(story.one(do.CreateEni), CloudErrorKind.SECURITY_GROUP_INVALID, "CreateNetworkInterface")
    assert story.one(do.Refuse).refusal.reason is Reason.SECURITY_GROUP_INVALID


def test_throttling_makes_wait_and_is_named_at_the_deadline() -> None:
    story = Story(warm(0))
    story.start()
    story.ask("a", wait=0.5)
    story.fail(story.one(do.AssignAddresses), CloudErrorKind.THROTTLED)
    assert not story.take(do.Refuse)
    while not (refusals := story.take(do.Refuse)):
        story.pass_time(0.1)
        for effect in story.take(do.AssignAddresses):
            story.fail(effect, CloudErrorKind.THROTTLED)
    assert story.now == pytest.approx(1000.5)
    assert refusals[0].refusal.reason is Reason.THROTTLED


def test_a_time_out_is_not_blamed_on_a_call_that_brings_no_addresses() -> None:
    story = Story(warm(0))
    attach = created_eni(story)
    story.feed(on.EniAttached(attach.op, "attach-eni-1"))
    story.fail(story.one(do.SetDeleteOnTermination), CloudErrorKind.NOT_AUTHORIZED, "ModifyNetworkInterfaceAttribute")
    story.pass_time(30.0)
    assert story.take(do.Refuse)[-1].refusal.reason is Reason.TIMEOUT


def test_a_time_out_names_a_failure_whose_next_try_is_under_way() -> None:
    story = Story(warm(0))
    story.start()
    story.ask("a", wait=10.0)
    story.fail(story.one(do.AssignAddresses), CloudErrorKind.TRANSIENT)
    story.pass_time(9.0)
    assert story.take(do.AssignAddresses)
    story.pass_time(1.0)
    assert story.one(do.Refuse).refusal.reason is Reason.CLOUD_UNAVAILABLE


def test_failures_that_come_together_are_one_step_of_the_back_off() -> None:
    story = Story(warm(0))
    story.start(observed(), observed("eni-1", 1, owned=True), observed("eni-2", 2, owned=True))
    story.ask(*(f"pod-{n}" for n in range(27)))
    for ask in story.take(do.AssignAddresses):
        story.fail(ask, CloudErrorKind.THROTTLED)
        story.now += 0.001
    (backoff,) = story.pool.backoffs.all_active(story.now)
    assert backoff.attempts == 1 and backoff.until - story.now <= 1.0


def test_ec2s_words_are_cut_to_what_fits_into_an_answer() -> None:
    story = Story(warm(0))
    story.start()
    story.ask("a")
    effect = story.one(do.AssignAddresses)
    words = "Encoded authorization failure message: " + "x" * 5000
    story.feed(on.OperationFailed(effect.op, CloudFailure(CloudErrorKind.NOT_AUTHORIZED, effect.action, "No", words)))
    effect = story.one(do.CreateEni)
    story.feed(on.OperationFailed(effect.op, CloudFailure(CloudErrorKind.NOT_AUTHORIZED, effect.action, "No", words)))
    refusal = story.one(do.Refuse).refusal
    assert "Encoded authorization" in refusal.message and len(refusal.message) < 1000


def test_at_the_pod_limit_neither_cooling_nor_ec2_is_blamed() -> None:
    story = Story(warm(0, max_pods=2))
    story.start(observed("eni-0", 0, *addresses(3)))
    story.ask("a", "b")
    story.give_back("a")
    story.ask("c", "d")
    assert story.one(do.Refuse).refusal.reason is Reason.POD_LIMIT


def test_a_free_address_beyond_the_pod_limit_does_not_make_the_node_ready() -> None:
    story = Story(warm(0, max_pods=1))
    story.start(observed("eni-0", 0, *addresses(2)))
    assert unready_reason(story.pool, story.now) is None
    story.ask("a")
    refusal = unready_reason(story.pool, story.now)
    assert refusal is not None and refusal.reason is Reason.POD_LIMIT


def test_a_node_that_keeps_nothing_warm_can_serve_once_its_enis_are_ready() -> None:
    story = Story(warm(0))
    story.feed(on.Started((observed(),)))
    assert not story.pool.can_serve()
    story.feed(on.LinkReady(story.one(do.ConfigureLink).op, "eth0"))
    assert story.pool.can_serve()


def test_a_time_out_without_error_is_called_one() -> None:
    story = Story(warm(0))
    story.start()
    story.ask("a", wait=2.0)
    story.pass_time(2.0)
    assert story.one(do.Refuse).refusal.reason is Reason.TIMEOUT


def test_before_the_inventory_is_known_requests_wait() -> None:
    story = Story(warm(0))
    story.ask("a", wait=2.0)
    assert (reason := unready_reason(story.pool, story.now)) and reason.reason is Reason.NOT_READY
    story.pass_time(2.0)
    assert story.one(do.Refuse).refusal.reason is Reason.NOT_READY


def test_a_stopping_daemon_refuses() -> None:
    story = Story(warm(0))
    story.start()
    story.ask("a")
    story.feed(on.DrainRequested())
    assert story.one(do.Refuse).refusal.reason is Reason.DRAINING


def test_a_stopping_daemon_does_not_wake_for_growth_that_will_not_come() -> None:
    story = Story(warm(0, coalesce=0.05))
    story.start()
    story.ask("a")
    story.feed(on.DrainRequested())
    story.pass_time(0.1)
    assert story.take(do.Wake)[-1].at is None


def test_one_full_subnet_does_not_stop_the_other() -> None:
    story = Story(warm(0), Limits(3, 2), ("subnet-1", "subnet-2"))
    story.start(observed("eni-0", 0, "10.0.0.10"))
    story.ask("a", "b")
    story.read_subnets(**{"subnet-1": 1000, "subnet-2": 0})
    create = story.one(do.CreateEni)
    assert create.subnet_id == "subnet-1"
    story.fail(create, CloudErrorKind.SUBNET_FULL, "CreateNetworkInterface")
    assert story.one(do.CreateEni).subnet_id == "subnet-2"
    assert story.one(do.DescribeSubnets).subnet_ids == ("subnet-1",)
    assert not story.take(do.Refuse)


def test_new_enis_are_spread_over_subnets_by_their_free_addresses() -> None:
    story = Story(warm(0), Limits(400, 3), ("subnet-1", "subnet-2", "subnet-3"))
    story.start(observed("eni-0", 0, *addresses(2)))
    story.ask(*(f"{n}" for n in range(602)))
    assert not story.take(do.CreateEni)  # where to is not known yet
    story.read_subnets(**{"subnet-1": 9000, "subnet-2": 3000, "subnet-3": 0})
    chosen = [effect.subnet_id for effect in story.take(do.CreateEni)]
    assert len(chosen) == 300 and chosen.count("subnet-3") == 0
    assert 50 < chosen.count("subnet-2") < 100


def test_a_subnet_with_room_for_the_whole_eni_is_preferred() -> None:
    """An ENI that gets only the last few addresses takes a slot of the instance all the same."""
    for seed in range(20):
        story = Story(warm(0), Limits(3, 10), ("subnet-1", "subnet-2"))
        story.pool.subnets._random.seed(seed)
        story.start(observed("eni-0", 0, *addresses(9)))
        story.ask(*(f"{n}" for n in range(9)))
        assert len(story.take(do.Grant)) == 9
        story.ask("a")
        story.read_subnets(**{"subnet-1": 1, "subnet-2": 3})
        assert story.one(do.CreateEni).subnet_id == "subnet-2"


def test_subnets_that_may_not_be_read_are_used_in_order() -> None:
    story = Story(warm(0), Limits(3, 3), ("subnet-1", "subnet-2"))
    story.start(observed("eni-0", 0, *addresses(2)))
    story.ask("a", "b", "c")
    story.fail(story.one(do.DescribeSubnets), CloudErrorKind.NOT_AUTHORIZED, "DescribeSubnets")
    assert story.one(do.CreateEni).subnet_id == "subnet-1"
    assert not story.take(do.Refuse)


def fill_up(story: Story, left: int, readable: bool) -> list[int]:
    """EC2 gives all that is asked for or nothing; returns what was asked for, call by call."""
    asked = []
    for _ in range(20):
        story.pass_time(0.02)
        for ask in story.take(do.AssignAddresses):
            asked.append(ask.count)
            if ask.count > left:
                story.fail(ask, CloudErrorKind.SUBNET_FULL)
            else:
                story.feed(on.AddressesAssigned(ask.op, addresses(ask.count, 10 + left)))
                left -= ask.count
        for look in story.take(do.DescribeSubnets):
            if readable:
                story.feed(on.SubnetsObserved(look.op, (("subnet-1", left),)))
            else:
                story.fail(look, CloudErrorKind.NOT_AUTHORIZED, "DescribeSubnets")
    assert left == 0
    return asked


@pytest.mark.parametrize(("readable", "calls"), [(True, [5, 3, 2]), (False, [5, 2, 3, 1, 2, 1])])
def test_the_last_addresses_of_a_subnet_are_used(readable: bool, calls: list[int]) -> None:
    story = Story(warm(0, coalesce=0.01))
    story.start()
    story.ask("a", "b", "c", "d", "e")
    assert fill_up(story, 3, readable) == calls
    assert len(story.take(do.Grant)) == 3
    assert {refuse.refusal.reason for refuse in story.take(do.Refuse)} == {Reason.SUBNET_EXHAUSTED}
    assert not story.take(do.CreateEni)


def test_a_full_subnet_is_read_and_not_asked_until_it_has_room() -> None:
    story = Story(warm(3))
    story.start()
    story.fail(story.one(do.AssignAddresses), CloudErrorKind.SUBNET_FULL)
    story.read_subnets(**{"subnet-1": 0})
    for _ in range(3):
        story.pass_time(story.pool.backoffs.all_active(story.now)[0].until - story.now)
        assert not story.take(do.AssignAddresses)
        story.read_subnets(**{"subnet-1": 0})
    story.pass_time(story.pool.backoffs.all_active(story.now)[0].until - story.now)
    story.read_subnets(**{"subnet-1": 2})
    assert story.one(do.AssignAddresses).count == 2


def test_after_a_time_out_the_eni_is_read_before_anything_is_asked_again() -> None:
    story = Story(warm(2))
    story.start()
    story.fail(story.one(do.AssignAddresses), CloudErrorKind.UNKNOWN_OUTCOME)
    assert not story.take(do.AssignAddresses)
    look = story.one(do.DescribeEni)
    story.feed(on.EniObserved(look.op, observed("eni-0", 0, *addresses(2))))
    assert story.pool.counts().free == 2
    story.pass_time(60)
    assert not story.take(do.AssignAddresses)


def test_a_creation_of_unknown_outcome_is_repeated_with_its_token() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, *addresses(9)))
    story.ask(*(f"p{n}" for n in range(10)))
    first = story.one(do.CreateEni)
    story.fail(first, CloudErrorKind.UNKNOWN_OUTCOME, "CreateNetworkInterface")
    story.pass_time(1.0)
    again = story.one(do.CreateEni)
    assert (again.token, again.count) == (first.token, first.count)


def test_an_eni_that_can_not_be_attached_is_deleted() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, *addresses(9)))
    story.ask(*(f"p{n}" for n in range(10)))
    create = story.one(do.CreateEni)
    story.feed(on.EniCreated(create.op, CreatedEni("eni-1", "02:1", "subnet-1", "10.0.0.5", ("10.0.0.50",))))
    story.fail(story.one(do.AttachEni), CloudErrorKind.ATTACHMENT_LIMIT, "AttachNetworkInterface")
    story.feed(on.OperationDone(story.one(do.DeleteEni).op))
    assert set(story.pool.inventory.enis) == {"eni-0"}


def created_eni(story: Story) -> do.AttachEni:
    """Ask for one address on a node whose primary ENI is full, up to the attachment of the second."""
    story.start(observed("eni-0", 0, *addresses(9)))
    story.ask(*(f"pod-{n}" for n in range(10)))
    create = story.one(do.CreateEni)
    story.feed(on.EniCreated(create.op, CreatedEni("eni-1", "02:eni-1", "subnet-1", "10.0.0.5", addresses(1, 50))))
    return story.one(do.AttachEni)


def test_a_device_index_that_somebody_else_took_is_not_tried_for_ever() -> None:
    story = Story(warm(0))
    first = created_eni(story)
    story.fail(first, CloudErrorKind.INCORRECT_STATE, "AttachNetworkInterface")
    story.pass_time(1.0)
    read = story.one(do.DescribeEni)
    story.feed(on.EniObserved(read.op, observed("eni-1", None, "10.0.0.50", owned=True)))
    second = story.one(do.AttachEni)
    assert second.device_index != first.device_index
    story.fail(second, CloudErrorKind.INCORRECT_STATE, "AttachNetworkInterface")
    story.pass_time(2.0)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-1", None, "10.0.0.50", owned=True)))
    assert story.one(do.AttachEni).device_index not in (0, first.device_index, second.device_index)


def test_a_new_eni_that_ec2_does_not_know_yet_is_waited_for() -> None:
    story = Story(warm(0))
    story.fail(created_eni(story), CloudErrorKind.NOT_FOUND, "AttachNetworkInterface")
    story.pass_time(1.0)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, None))
    story.pass_time(1.0)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-1", None, "10.0.0.50", owned=True)))
    assert story.one(do.AttachEni).eni_id == "eni-1"
    assert not story.take(do.DeleteEni)


def test_a_new_eni_that_ec2_never_gets_to_know_is_given_up() -> None:
    story = Story(warm(0))
    story.fail(created_eni(story), CloudErrorKind.NOT_FOUND, "AttachNetworkInterface")
    reads = 0
    while "eni-1" in story.pool.inventory.enis:
        story.pass_time(1.0)
        for read in story.take(do.DescribeEni):
            story.feed(on.EniObserved(read.op, None))
            reads += 1
    assert 60 <= story.now - 1000 < 120 and reads < 20


def test_an_eni_that_turns_out_to_be_attached_is_used_and_not_deleted_for_ever() -> None:
    """The attachment was not to be seen yet when this process started."""
    story = Story(warm(0))
    story.start(observed(), observed("eni-1", None, "10.0.0.50", owned=True))
    story.fail(story.one(do.DeleteEni), CloudErrorKind.INCORRECT_STATE, "DeleteNetworkInterface")
    story.pass_time(1.0)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-1", 1, "10.0.0.50", owned=True)))
    story.feed(on.LinkReady(story.one(do.ConfigureLink).op, "eth1"))
    assert story.pool.counts().free == 1


def test_an_eni_without_its_link_is_read_and_attached_again_if_somebody_detached_it() -> None:
    story = Story(warm(0))
    story.feed(on.Started((observed(), observed("eni-1", 1, "10.0.0.50", owned=True))))
    second = next(effect for effect in story.take(do.ConfigureLink) if effect.eni_id == "eni-1")
    story.feed(on.LinkFailed(second.op, "no link"))
    story.pass_time(5.0)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-1", 1, "10.0.0.50", owned=True)))
    story.feed(on.LinkFailed(story.one(do.ConfigureLink).op, "no link"))
    story.pass_time(5.0)
    assert not story.take(do.DescribeEni), "each pause is longer than the one before"
    story.pass_time(5.0)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-1", None, "10.0.0.50", owned=True)))
    attach = story.one(do.AttachEni)
    story.feed(on.EniAttached(attach.op, "attach-eni-1"))
    story.feed(on.LinkReady(story.one(do.ConfigureLink).op, "eth1"))
    assert story.pool.counts().free == 1


def test_a_doubt_about_an_enis_addresses_outlives_another_calls_clear_failure() -> None:
    story = Story(warm(0))
    story.start()
    story.ask("a")
    story.ask("b")
    first, second = story.take(do.AssignAddresses)
    story.fail(first, CloudErrorKind.UNKNOWN_OUTCOME)
    assert not story.take(do.DescribeEni), (
        "what the other call brings could not be told from what this one has brought"
    )
    story.fail(second, CloudErrorKind.THROTTLED)
    read = story.one(do.DescribeEni)
    story.fail(read, CloudErrorKind.THROTTLED, "DescribeNetworkInterfaces")
    story.pass_time(2.0)
    assert story.one(do.DescribeEni).eni_id == "eni-0"
    assert not story.take(do.AssignAddresses)


def test_an_eni_that_is_gone_takes_its_records_along() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0), observed("eni-1", 1, "10.0.0.50", owned=True))
    story.ask("a")
    story.give_back("a")
    story.ask(*(f"pod-{n}" for n in range(10)))
    for ask in story.take(do.AssignAddresses):
        kind = CloudErrorKind.NOT_FOUND if ask.eni_id == "eni-1" else CloudErrorKind.TRANSIENT
        story.fail(ask, kind)
    story.take(do.Write)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, None))
    assert [write.record for write in story.take(do.Write)][:2] == [
        DropIntent("attach eni-1"),
        DropCooling("10.0.0.50"),
    ]


def test_what_the_ledger_can_not_record_is_not_granted() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, *addresses(1)))
    story.ask("a")
    grant = story.one(do.Grant)
    story.feed(on.GrantsUnrecorded((grant,), "no space left on device"))
    refusal = story.one(do.Refuse).refusal
    assert refusal.reason is Reason.LEDGER_UNWRITABLE and "no space left" in refusal.message
    assert story.pool.counts().free == 1


def held(name: str, address: str, eni: str = "eni-0", since: float = 900.0) -> Attachment:
    return Attachment(AttachmentKey("net", name, "eth0"), address, eni, since)


def test_a_restart_keeps_what_is_held_and_what_cools() -> None:
    story = Story(warm(0))
    story.start(
        observed("eni-0", 0, *addresses(3)),
        attachments=(held("a", "10.0.0.10"),),
        cooling=(Cooling("10.0.0.11", 990.0), Cooling("10.0.0.99", 990.0)),
    )
    counts = story.pool.counts()
    assert (counts.assigned, counts.cooling, counts.free) == (1, 1, 1)
    story.ask("b")
    assert story.one(do.Grant).attachment.address == "10.0.0.12"


def test_an_address_that_leads_to_a_pod_is_not_granted_though_the_ledger_lost_it() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, *addresses(1)), routed=(("10.0.0.10", "ipmabc"),))
    assert story.pool.counts().free == 0
    recovered = AttachmentKey("", "ipmabc", "")
    story.feed(on.ReleaseRequested("del", AttachmentKey("net", "a", "eth0"), recovered))
    assert story.one(do.Released).attachment is not None
    assert story.pool.counts().cooling == 1


def test_foreign_enis_are_counted_but_left_alone() -> None:
    story = Story(warm(20))
    story.start(observed(), observed("eni-9", 1, *addresses(2, 90), owned=False))
    assert story.pool.inventory.enis["eni-9"].state is EniState.FOREIGN
    assert story.one(do.AssignAddresses).eni_id == "eni-0"
    story.one(do.CreateEni)  # one slot of three is left
    assert not {"10.0.0.90", "10.0.0.91"} & set(story.pool.inventory.addresses)


def test_an_eni_cut_off_between_creation_and_attachment_is_attached() -> None:
    story = Story(warm(0))
    intent = Intent("attach eni-1", "AttachNetworkInterface", 990.0, eni_id="eni-1", device_index=1)
    story.start(observed(), observed("eni-1", None, *addresses(3), owned=True), intents=(intent,))
    assert story.one(do.AttachEni).eni_id == "eni-1"


def test_an_eni_that_nobody_remembers_is_deleted() -> None:
    story = Story(warm(0))
    story.start(observed(), observed("eni-1", None, *addresses(3), owned=True))
    assert story.one(do.DeleteEni).eni_id == "eni-1"


def test_a_detached_eni_whose_addresses_pods_have_is_attached_again_and_not_deleted() -> None:
    story = Story(warm(0))
    story.start(
        observed(),
        observed("eni-1", None, "10.0.0.50", owned=True),
        observed("eni-2", None, "10.0.0.60", owned=True),
        observed("eni-3", 1, "10.0.0.70", owned=True),
        attachments=(held("a", "10.0.0.50", "eni-1"),),
        routed=(("10.0.0.60", "veth-b"),),
    )
    assert not story.take(do.DeleteEni)
    attached = story.take(do.AttachEni)
    assert {effect.eni_id for effect in attached} == {"eni-1", "eni-2"}
    assert sorted(effect.device_index for effect in attached) == [2, 3]


def test_an_eni_whose_addresses_pods_have_is_not_deleted_when_it_can_not_be_attached() -> None:
    story = Story(warm(0))
    lost = observed("eni-1", None, "10.0.0.50", owned=True)
    story.start(observed(), lost, attachments=(held("a", "10.0.0.50", "eni-1"),))
    story.fail(story.one(do.AttachEni), CloudErrorKind.NOT_AUTHORIZED, "AttachNetworkInterface")
    story.pass_time(10.0)
    assert not story.take(do.DeleteEni)
    assert story.one(do.AttachEni).eni_id == "eni-1"


def test_a_release_in_the_future_does_not_cool_longer_than_any_other() -> None:
    """The clock was set back between two runs."""
    story = Story(warm(0))
    story.start(observed("eni-0", 0, "10.0.0.10"), cooling=(Cooling("10.0.0.10", 90000.0),))
    story.pass_time(30.0)
    assert story.pool.counts().free == 1


def test_a_creation_cut_off_is_resumed_and_its_eni_not_deleted() -> None:
    story = Story(warm(0))
    intent = Intent("token-x", "CreateNetworkInterface", 990.0, subnet_id="subnet-1", count=3)
    story.start(observed(), observed("eni-1", None, *addresses(3), owned=True), intents=(intent,))
    create = story.one(do.CreateEni)
    assert create.token == "token-x" and not story.take(do.DeleteEni)
    story.feed(on.EniCreated(create.op, CreatedEni("eni-1", "02:1", "subnet-1", "10.0.0.5", addresses(3))))
    assert story.one(do.AttachEni).eni_id == "eni-1"
    assert not story.take(do.DeleteEni)


def test_collecting_releases_what_the_runtime_forgot_but_nothing_young() -> None:
    story = Story(warm(0))
    story.start(
        observed("eni-0", 0, *addresses(3)),
        attachments=(
            held("old", "10.0.0.10"),
            held("kept", "10.0.0.11"),
            held("young", "10.0.0.12", since=990.0),
        ),
    )
    story.feed(on.CollectRequested("gc", "net", frozenset({("kept", "eth0")})))
    assert [a.key.container_id for a in story.one(do.Collected).attachments] == ["old"]


# Giving back


def idle(*enis: ObservedEni, **targets: float) -> Story:
    story = Story(warm(1, slack=1, release_delay=60.0, **targets))
    story.start(*enis)
    return story


def test_an_excess_is_given_back_only_after_it_lasted() -> None:
    story = idle(observed("eni-0", 0, *addresses(6)))
    story.pass_time(59.9)
    assert not story.take(do.DescribeEni)
    story.pass_time(0.1)
    look = story.one(do.DescribeEni)
    assert not story.take(do.UnassignAddresses), "first a fresh read"
    story.feed(on.EniObserved(look.op, observed("eni-0", 0, *addresses(6))))
    give = story.one(do.UnassignAddresses)
    assert len(give.addresses) == 4, "one warm and one of slack stay"
    story.feed(on.OperationDone(give.op))
    counts = story.pool.counts()
    assert (counts.free, counts.total, counts.releasing) == (2, 2, 0)
    story.pass_time(1000)
    assert not story.take(do.DescribeEni)


def test_only_what_lasted_is_given_back() -> None:
    story = idle(observed("eni-0", 0, *addresses(6)))
    story.ask("a", "b", "c")
    story.pass_time(30)
    for name in "abc":
        story.give_back(name)
    story.pass_time(30)  # cooled, and free again
    look = story.one(do.DescribeEni)
    story.feed(on.EniObserved(look.op, observed("eni-0", 0, *addresses(6))))
    assert len(story.one(do.UnassignAddresses).addresses) == 1


def test_what_is_wanted_again_stays() -> None:
    story = idle(observed("eni-0", 0, *addresses(6)))
    story.pass_time(60)
    look = story.one(do.DescribeEni)
    assert story.pool.counts().releasing == 4
    story.ask("a", "b", "c")
    assert len(story.take(do.Grant)) == 3
    story.feed(on.EniObserved(look.op, observed("eni-0", 0, *addresses(6))))
    assert not story.take(do.UnassignAddresses)
    assert story.pool.counts().releasing == 0


def test_an_idle_eni_goes_whole_and_without_holding_up_growth() -> None:
    second = observed("eni-1", 1, *addresses(3, 30), owned=True)
    story = idle(observed("eni-0", 0, *addresses(2)), second)
    story.pass_time(60)
    look = story.one(do.DescribeEni)
    assert look.eni_id == "eni-1"
    story.feed(on.EniObserved(look.op, second))
    detach = story.one(do.DetachEni)
    assert detach.attachment_id == "attach-eni-1" and set(detach.addresses) == set(second.addresses)
    story.ask("a", "b", "c")  # it is too late for eni-1: the pool grows elsewhere
    assert len(story.take(do.Grant)) == 2
    assert {ask.eni_id for ask in story.take(do.AssignAddresses)} == {"eni-0"}
    story.feed(on.OperationDone(detach.op))
    story.pass_time(3.0)
    delete = story.one(do.DeleteEni)
    story.feed(on.OperationDone(delete.op))
    assert set(story.pool.inventory.enis) == {"eni-0"}


def test_an_eni_with_an_address_of_somebody_else_is_kept() -> None:
    second = observed("eni-1", 1, *addresses(3, 30), owned=True)
    story = idle(observed("eni-0", 0, *addresses(2)), second)
    story.pass_time(60)
    look = story.one(do.DescribeEni)
    shared = observed("eni-1", 1, *addresses(3, 30), "10.0.0.99", owned=True)
    story.feed(on.EniObserved(look.op, shared))
    assert not story.take(do.DetachEni)
    assert "address.foreign" in [note.event for note in story.take(do.Note)]
    assert story.pool.inventory.addresses["10.0.0.99"].state is AddressState.FOREIGN
    assert story.pool.inventory.enis["eni-1"].room == 5


def test_an_address_that_a_route_leads_to_is_not_given_back() -> None:
    story = idle(observed("eni-0", 0, *addresses(6)))
    story.pass_time(60)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-0", 0, *addresses(6))))
    story.fail(story.one(do.UnassignAddresses), CloudErrorKind.IN_USE, "UnassignPrivateIpAddresses")
    assert story.pool.counts().free == 6
    story.ask(*(f"p{n}" for n in range(8)))
    assert sum(ask.count for ask in story.take(do.AssignAddresses)) == 3, "growth on that ENI goes on"


def test_minimum_ips_is_never_given_back() -> None:
    story = idle(observed("eni-0", 0, *addresses(6)), minimum_ips=5)
    story.pass_time(60)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-0", 0, *addresses(6))))
    assert len(story.one(do.UnassignAddresses).addresses) == 1


def test_warm_enis_keep_whole_enis_free() -> None:
    story = Story(Targets(warm_enis=1, coalesce=0, slack=0))
    story.start(observed("eni-0", 0, *addresses(9)))
    assert not story.take(do.CreateEni)
    story.ask("a")
    assert story.one(do.CreateEni).count == 1


def test_max_enis_bounds_growth() -> None:
    story = Story(Targets(warm_ips=30, max_enis=2, coalesce=0))
    story.start()
    assert story.one(do.AssignAddresses).count == 9
    assert [create.count for create in story.take(do.CreateEni)] == [9]


def test_an_address_that_ec2_moves_to_another_eni_moves_in_our_books_too() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, *addresses(2)), observed("eni-1", 1, owned=True))
    story.ask("a")
    held = story.one(do.Grant).attachment.address
    story.ask("b", "c")
    ask = story.one(do.AssignAddresses)
    story.feed(on.AddressesAssigned(ask.op, (held,)))
    assert [a.address for a in story.pool.inventory.attachments.values()].count(held) == 1


# Asking for more than is missing


def test_a_call_that_is_made_anyway_asks_for_half_the_slack_more() -> None:
    story = Story(warm(5, slack=8))
    story.start()
    assert story.one(do.AssignAddresses).count == 9
    story = Story(warm(5, slack=8, max_pods=7))
    story.start()
    assert story.one(do.AssignAddresses).count == 7, "but never more than pods may use"


def test_no_eni_is_created_for_what_only_rides_along() -> None:
    story = Story(warm(5, slack=8))
    story.start(observed("eni-0", 0, *addresses(3)))
    assert story.one(do.AssignAddresses).count == 6, "all that the ENI takes"
    assert not story.take(do.CreateEni)
    story.ask(*"abcdef")
    assert story.one(do.CreateEni).count == 1 + 4


def test_what_rode_along_is_no_excess() -> None:
    story = Story(warm(5, slack=8, release_delay=10.0))
    story.start()
    story.feed(on.AddressesAssigned(story.one(do.AssignAddresses).op, addresses(9)))
    story.pass_time(100)
    assert not story.take(do.DescribeEni)


# Waiting


def test_a_time_out_names_what_it_waited_for() -> None:
    story = Story(warm(0), Limits(2, 2))
    story.start(observed("eni-0", 0, "10.0.0.10"))
    story.ask("a", "b")
    create = story.one(do.CreateEni)
    story.feed(on.EniCreated(create.op, CreatedEni("eni-7", "02:7", "subnet-1", "10.0.0.5", ("10.0.0.30",))))
    story.pass_time(5)
    story.feed(on.EniAttached(story.one(do.AttachEni).op, "attach-7"))
    story.pass_time(25)
    refusal = story.one(do.Refuse).refusal
    assert refusal.reason is Reason.TIMEOUT
    assert refusal.message == "no address came within 30 s: the interface of eni-7 is not there after 25 s"


def test_no_more_wait_than_can_be_served() -> None:
    story = Story(warm(0))
    story.start()
    story.ask(*(f"{n}" for n in range(1000)))
    assert len(story.pool.waiting) == 27 and len(story.take(do.Refuse)) == 973


def test_a_limit_that_was_set_is_named_as_such() -> None:
    story = Story(warm(0, max_enis=1))
    story.start(observed("eni-0", 0, *addresses(9)))
    story.ask(*(f"{n}" for n in range(10)))
    refusal = story.one(do.Refuse).refusal
    assert refusal.reason is Reason.ENI_LIMIT and "pool.max_enis allows no more: 1 ENIs" in refusal.message
