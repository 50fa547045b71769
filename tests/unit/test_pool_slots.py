"""Slots that others fill, and figures of the type's table that EC2 contradicts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.explain import Explanation, explain_pool
from ipamd.pool.model import (
    CloudErrorKind,
    CloudFailure,
    CreatedEni,
    EniState,
    LearntLimit,
    Limits,
    ObservedEni,
    Reason,
)
from ipamd.pool.outlook import would_refuse
from tests.unit.story import Story, addresses, observed, warm
from tests.unit.test_pool_audit import Audited

P5 = Limits(2, 50)  # network card 0 of a p5.48xlarge
TAKEN = ("10.0.1.0/28", "10.0.1.16/28", "10.0.1.32/28", "10.0.1.48/28")


def on_card(card: int, index: int = 1, name: str = "") -> ObservedEni:
    return replace(observed(name or f"eni-card-{card}", index), network_card=card, primary=False)


def with_prefixes(eni: ObservedEni, *prefixes: str) -> ObservedEni:
    return replace(eni, prefixes=prefixes)


def explained(story: Story) -> Explanation:
    return explain_pool(story.pool, story.now)


def pods(count: int) -> list[str]:
    return [f"p{n}" for n in range(count)]


def refuse(story: Story) -> do.AssignAddresses:
    """EC2 says PrivateIpAddressLimitExceeded."""
    effect = story.one(do.AssignAddresses)
    story.fail(effect, CloudErrorKind.ENI_ADDRESS_LIMIT)
    return effect


def show(story: Story, eni: ObservedEni) -> None:
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, eni))


# Network cards


def test_enis_of_other_cards_take_no_slot_and_no_device_index() -> None:
    story = Story(warm(0), P5)
    story.start(observed("eni-0", 0, *addresses(49)), *(on_card(card) for card in range(1, 8)))
    assert (story.pool.attached(), story.pool.eni_slots(), story.pool.max_pods) == (1, 1, 98)
    story.ask(*pods(50))
    story.feed(
        on.EniCreated(
            story.one(do.CreateEni).op, CreatedEni("eni-1", "02:1", "subnet-1", "10.0.0.5", addresses(1, 70))
        )
    )
    assert story.one(do.AttachEni).device_index == 1
    assert not story.take(do.Refuse)


def test_an_eni_of_another_card_is_shown_with_its_card() -> None:
    story = Audited(warm(0), P5)
    story.start(observed())
    story.show(observed(), on_card(3))
    assert story.pool.inventory.enis["eni-card-3"].card == 3
    (note,) = [note for note in story.take(do.Note) if note.event == "eni.foreign"]
    assert dict(note.fields)["network_card"] == 3
    text = " ".join(explained(story).because)
    assert "1 ENI is on other network cards (3)" in text and "hold slots" not in text


def test_a_pool_with_more_enis_than_its_limit_promises_nothing() -> None:
    """Seven of somebody else on card 0 of a type that takes two: 49 free, 60 wanted."""
    foreign = [replace(observed(f"eni-{n}", n), primary=False) for n in range(1, 8)]
    story = Story(warm(60), P5)
    story.start(observed("eni-0", 0, *addresses(49)), *foreign)
    assert (story.pool.deficit(), story.pool.max_pods, story.pool.allowance(story.pool.counts())) == (0, 49, 0)
    said = explained(story)
    assert said.headline.startswith("The pool holds all that it may: 49 addresses are free")
    assert "no more ENIs with 49 each (the instance type allows 2, and there are 8)" in " ".join(said.because)
    assert all(number >= 0 for number in said.numbers.values())


# Prefixes


def test_prefixes_take_slots_and_the_primary_fills_the_rest() -> None:
    story = Story(warm(9))
    story.start(with_prefixes(observed(), *TAKEN))
    assert story.one(do.AssignAddresses).count == 5
    assert story.one(do.CreateEni).count == 4
    assert story.pool.max_pods == 5 + 9 + 9


def test_prefixes_are_told_with_what_gives_them_back() -> None:
    story = Story(warm(0))
    story.start(with_prefixes(observed(), *TAKEN))
    said = " ".join(explained(story).because)
    assert "4 /28 prefixes on eni-0 (10.0.1.0/28, " in said and "--ipv4-prefixes" in said


def test_a_full_node_names_the_prefixes_among_the_causes() -> None:
    story = Audited(warm(0), Limits(1, 6))
    story.start(with_prefixes(observed("eni-0", 0, *addresses(1)), *TAKEN))
    story.ask("a")
    story.pass_time(400)  # what others have was looked at long ago
    story.ask("b")
    story.show(with_prefixes(observed("eni-0", 0, *addresses(1)), *TAKEN))
    refusal = story.one(do.Refuse).refusal
    assert refusal.reason is Reason.ENI_LIMIT
    assert refusal.message.endswith("; not for pods: 4 /28 prefixes on our ENIs")


def test_a_prefix_given_up_is_room_again_after_an_audit() -> None:
    story = Audited(warm(5), Limits(1, 6))
    story.start(with_prefixes(observed(), *TAKEN))
    assert story.one(do.AssignAddresses).count == 1
    story.feed(on.AddressesAssigned(story.pool.under_way()[0].effect.op, addresses(1)))
    story.show(observed("eni-0", 0, *addresses(1)))
    assert story.one(do.AssignAddresses).count == 4
    assert "eni.prefixes" in story.notes()


def test_a_pod_that_waits_for_a_prefix_to_go_gets_its_slot() -> None:
    """Nobody tells the node: it looks while pods wait."""
    story = Audited(warm(0), Limits(1, 2))
    story.start(with_prefixes(observed(), TAKEN[0]))
    story.ask("a")
    story.show(observed())
    story.feed(on.AddressesAssigned(story.one(do.AssignAddresses).op, addresses(1)))
    assert story.one(do.Grant).request == "a"


def test_an_idle_eni_with_a_prefix_is_not_given_back() -> None:
    story = Story(warm(0, release_delay=10.0))
    spare = with_prefixes(observed("eni-1", 1, *addresses(3), owned=True), TAKEN[0])
    story.start(observed(), replace(spare, primary=False))
    story.pass_time(10)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, replace(spare, primary=False)))
    assert len(story.one(do.UnassignAddresses).addresses) == 3
    assert not story.take(do.DetachEni)


def test_an_eni_that_got_a_prefix_while_it_was_to_go_stays() -> None:
    story = Story(warm(0, release_delay=10.0))
    spare = replace(observed("eni-1", 1, *addresses(3), owned=True), primary=False)
    story.start(observed(), spare)
    story.pass_time(10)
    assert story.pool.inventory.enis["eni-1"].state is EniState.DRAINING
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, with_prefixes(spare, TAKEN[0])))
    assert not story.take(do.DetachEni)
    assert story.pool.inventory.enis["eni-1"].prefixes == TAKEN[:1]


# Refusals


@pytest.mark.parametrize("hidden", range(10))
def test_a_limit_that_nothing_shows_is_learnt_by_halving(hidden: int) -> None:
    """EC2 refuses more than 9 - hidden addresses, and shows no cause."""
    story = Story(warm(9), Limits(1, 10))
    story.start()
    held, refused = 0, 0
    while asked := story.take(do.AssignAddresses):
        count = asked[0].count
        if held + count > 9 - hidden:
            refused += 1
            story.fail(asked[0], CloudErrorKind.ENI_ADDRESS_LIMIT)
            show(story, observed("eni-0", 0, *addresses(held)))
        else:
            story.feed(on.AddressesAssigned(asked[0].op, addresses(count, first=10 + held)))
            held += count
    assert held == 9 - hidden and refused <= 4
    assert story.pool.max_pods == held and story.pool.deficit() == 0
    story.pass_time(300)
    assert not story.take(do.AssignAddresses), "the same again"


def test_a_refusal_that_a_reading_explains_teaches_no_limit() -> None:
    story = Story(warm(9), Limits(1, 10))
    story.start()
    assert refuse(story).count == 9
    show(story, with_prefixes(observed(), *TAKEN))
    assert story.one(do.AssignAddresses).count == 5
    assert story.pool.inventory.enis["eni-0"].withheld == 0


def test_a_learnt_limit_of_an_eni_is_tried_again_after_an_audit() -> None:
    story = Audited(warm(1), Limits(1, 10))
    story.start()
    refuse(story)
    show(story, observed())
    assert story.pool.max_pods == 0
    story.show(observed())
    assert story.one(do.AssignAddresses).count == 1


def test_a_pod_refused_for_a_learnt_limit_is_told_of_that_limit() -> None:
    story = Story(warm(0), Limits(1, 2))
    story.start()
    story.ask("a")
    story.fail(story.one(do.AssignAddresses), CloudErrorKind.ENI_ADDRESS_LIMIT)
    show(story, observed())
    refusal = would_refuse(story.pool, story.now)
    assert refusal is not None and refusal.reason is Reason.ADDRESS_LIMIT
    assert refusal.message.endswith("; not for pods: 1 slot of our ENIs that EC2 refuses")


def test_what_an_eni_can_not_have_comes_from_another_one() -> None:
    story = Story(warm(9), Limits(2, 10))
    story.start()
    refuse(story)
    show(story, observed())
    assert story.one(do.AssignAddresses).count == 4
    while effects := [o.effect for o in story.pool.under_way() if isinstance(o.effect, do.AssignAddresses)]:
        story.effects.clear()
        story.fail(effects[0], CloudErrorKind.ENI_ADDRESS_LIMIT)
        show(story, observed())
    creating = [o.effect.count for o in story.pool.under_way() if isinstance(o.effect, do.CreateEni)]
    assert creating and story.pool.max_pods == 9


def test_an_eni_refused_for_its_addresses_comes_again_with_fewer() -> None:
    """The table says nine; the instance takes four."""
    story = Story(warm(0, coalesce=0.05))
    story.start(observed("eni-0", 0, *addresses(9)))
    story.ask(*pods(18))
    story.pass_time(0.05)
    create = story.one(do.CreateEni)
    assert create.count == 9
    new = CreatedEni("eni-1", "02:1", "subnet-1", "10.0.0.5", addresses(9, first=100))
    story.feed(on.EniCreated(create.op, new))
    story.fail(story.one(do.AttachEni), CloudErrorKind.ENI_ADDRESS_LIMIT, "AttachNetworkInterface")
    story.feed(on.OperationDone(story.one(do.DeleteEni).op))
    story.pass_time(0.05)
    assert [effect.count for effect in story.take(do.CreateEni)] == [4, 4]


# The table


def test_free_addresses_are_granted_whatever_the_table_says() -> None:
    """m5.large's ENIs, while the metadata say t3.nano: two ENIs with one address each."""
    second = replace(observed("eni-1", 1, *addresses(7, first=30), owned=True), primary=False)
    story = Story(warm(0), Limits(2, 2))
    story.start(observed("eni-0", 0, *addresses(9)), second)
    story.ask(*pods(16))
    assert len(story.take(do.Grant)) == 16 and not story.take(do.Refuse)
    story.ask("one too many")
    refusal = story.one(do.Refuse).refusal
    assert refusal.reason is Reason.ENI_LIMIT and refusal.message.startswith("all 16 addresses are in use")
    assert dict(refusal.numbers)["max_pods"] == 16


def test_more_pods_than_setting_allows_are_counted_as_they_are() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, *addresses(9)))
    story.ask(*pods(6))
    story.feed(on.TargetsChanged(warm(0, max_pods=4)))
    story.ask("late", wait=20.0)
    story.pass_time(20.0)
    refusal = story.one(do.Refuse).refusal
    assert refusal.reason is Reason.POD_LIMIT
    assert refusal.message.startswith("6 addresses are in use, more than pool.max_pods allows (4); ")


def test_a_learnt_limit_that_reality_exceeds_is_forgotten() -> None:
    story = Audited(warm(0), Limits(4, 3))
    story.start(observed("eni-0", 0, *addresses(2)), limit=LearntLimit(1, story.now))
    another = replace(observed("eni-1", 1), primary=False)
    story.show(observed("eni-0", 0, *addresses(2)), another)
    assert story.pool.max_enis == 4


def test_ec2s_sentence_keeps_a_single_full_stop() -> None:
    story = Story(warm(5))
    story.start()
    effect = story.one(do.AssignAddresses)
    failure = do.AssignAddresses.action
    words = "This error was asked for by a fault."
    story.feed(on.OperationFailed(effect.op, CloudFailure(CloudErrorKind.INVALID, failure, "Code", words)))
    said = explained(story)
    assert ".." not in " ".join([said.headline, *said.because, *said.advice])
