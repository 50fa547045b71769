"""What the pool makes of a world that is not as it believed, and of attachments whose container is gone."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import (
    AddressState,
    AttachmentKey,
    CloudErrorKind,
    DropCooling,
    EniState,
    Intent,
    LearntLimit,
    Limits,
    ObservedEni,
    OwnAddresses,
    PutLimit,
    Reason,
)
from ipamd.pool.state import ASSIGN
from tests.unit.story import Story, addresses, observed, warm

LONG = 7200.0  # seconds; no audit is further away


class Audited(Story):
    """Has the findings of an audit, which a test may change."""

    def show(
        self,
        *enis: ObservedEni,
        abandoned: tuple[ObservedEni, ...] = (),
        routed: dict[str, str] | None = None,
    ) -> None:
        """Wait for the next audit and answer it."""
        while not (asked := self.take(do.Audit)):
            at = [wake.at for wake in self.take(do.Wake) if wake.at is not None][-1]
            assert at < self.now + LONG
            self.now = at
            self.feed(on.TimePassed())
        links = tuple((routed or {}).items())
        self.feed(on.Audited(asked[0].op, enis, abandoned, links))

    def notes(self) -> list[str]:
        return [note.event for note in self.take(do.Note)]

    def states(self) -> dict[str, str]:
        return {a.ip: a.state.value for a in self.pool.inventory.addresses.values()}


def node(*enis: ObservedEni, limits: Limits | None = None, **targets: float) -> Audited:
    story = Audited(warm(0, slack=20, **targets), limits or Limits(3, 10))
    story.start(*enis)
    story.take(do.Note)
    return story


PRIMARY = observed("eni-0", 0, *addresses(3))


def test_audit_comes_every_hour_or_so_and_quiet_one_does_nothing() -> None:
    story = node(PRIMARY)
    times = []
    for _ in range(5):
        story.show(PRIMARY)
        times.append(story.now)
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert all(2700 <= gap <= 4500 for gap in gaps) and len(set(gaps)) == len(gaps), "with jitter"
    assert story.notes() == [] and not [e for e in story.effects if isinstance(e, do.RECORDED)]


def test_an_audit_that_failed_is_tried_again_sooner() -> None:
    story = node(PRIMARY)
    story.pass_time(LONG)
    story.fail(story.one(do.Audit), CloudErrorKind.THROTTLED, "DescribeNetworkInterfaces")
    begun = story.now
    story.show(PRIMARY)
    assert 300 <= story.now - begun <= 900


def test_somebody_elses_address_is_shown_and_left_alone() -> None:
    story = node(PRIMARY)
    other = observed("eni-0", 0, *addresses(3), "10.0.0.99")
    story.show(other)
    assert "10.0.0.99" not in story.states(), "one reading may be older than our own news"
    begun = story.now
    story.show(other)
    assert story.now - begun == pytest.approx(60)
    assert story.states()["10.0.0.99"] == "foreign" and story.notes() == ["address.foreign"]
    story.ask("a", "b", "c", "d")
    assert "10.0.0.99" not in {grant.attachment.address for grant in story.take(do.Grant)}
    assert story.pool.inventory.enis["eni-0"].room + story.one(do.AssignAddresses).count == 9 - 4


def test_cooling_address_moved_to_foreign_eni_does_not_come_free() -> None:
    second = observed("eni-1", 1, "10.0.0.30", owned=True)
    story = node(PRIMARY, second, cooldown=10_000.0)
    story.ask("a", "b", "c", "d")
    story.give_back("d")
    assert story.states()["10.0.0.30"] == "cooling"
    for _ in range(2):
        story.show(observed("eni-0", 0, *addresses(3), "10.0.0.30"), observed("eni-1", 1, owned=True))
    assert story.states()["10.0.0.30"] == "foreign"
    assert DropCooling("10.0.0.30") in story.written()
    story.pass_time(20_000.0)
    assert story.states()["10.0.0.30"] == "foreign"


def test_a_foreign_address_is_known_after_a_restart() -> None:
    other = observed("eni-0", 0, *addresses(3), "10.0.0.99", "10.0.0.98")
    story = Audited(warm(0, slack=20))
    story.start(other, own=(OwnAddresses("eni-0", addresses(3), ("10.0.0.99",)),))
    assert story.states()["10.0.0.99"] == story.states()["10.0.0.98"] == "foreign"


def test_lost_assignment_explains_addresses_after_a_restart() -> None:
    intent = Intent("t", ASSIGN, 990.0, eni_id="eni-0", count=2)
    story = Audited(warm(0, slack=20))
    own = (OwnAddresses("eni-0", addresses(1)),)
    story.start(observed("eni-0", 0, *addresses(3)), own=own, intents=(intent,))
    assert set(story.states().values()) == {"free"}


def test_removed_address_is_forgotten_after_two_readings() -> None:
    story = node(PRIMARY)
    story.ask("a")
    holder = story.one(do.Grant).attachment
    story.show(observed("eni-0", 0, "10.0.0.12"))
    assert len(story.states()) == 3
    story.take(do.Note)
    story.show(observed("eni-0", 0, "10.0.0.12"))
    assert story.states() == {"10.0.0.12": "free"}
    lost = [dict(note.fields) | {"level": note.level} for note in story.take(do.Note)]
    assert {(note["ip"], note["level"]) for note in lost} == {("10.0.0.10", "error"), ("10.0.0.11", "warning")}
    assert story.pool.inventory.attachments == {holder.key: holder}, "a running pod keeps its record"
    story.give_back("a")
    assert story.states() == {"10.0.0.12": "free"}, "and nobody gets its address afterwards"


def test_address_that_came_back_in_second_reading_was_never_gone() -> None:
    story = node(PRIMARY)
    story.show(observed("eni-0", 0, "10.0.0.12"))
    story.show(PRIMARY)
    assert len(story.states()) == 3 and story.notes() == []


def test_foreign_eni_takes_a_slot_and_nothing_else() -> None:
    story = node(PRIMARY)
    foreign = observed("eni-x", 1, *addresses(2, 70))
    foreign = replace(foreign, primary=False)
    for _ in range(2):
        story.show(PRIMARY, foreign)
    assert story.pool.inventory.enis["eni-x"].state is EniState.FOREIGN
    assert story.pool.eni_slots() == 1 and "10.0.0.70" not in story.states()
    for _ in range(2):
        story.show(PRIMARY)
    assert "eni-x" not in story.pool.inventory.enis and story.pool.eni_slots() == 2
    assert story.notes() == ["eni.foreign", "eni.foreign_gone"]
    assert not [e for e in story.effects if isinstance(e, do.DeleteEni | do.DetachEni | do.ConfigureLink)]


def test_an_eni_of_ours_that_somebody_detached_is_attached_again() -> None:
    second = observed("eni-1", 1, *addresses(2, 30), owned=True)
    story = node(PRIMARY, second)
    detached = observed("eni-1", None, *addresses(2, 30), owned=True)
    for _ in range(2):
        story.show(PRIMARY, detached)
    look = story.one(do.DescribeEni)
    story.feed(on.EniObserved(look.op, detached))
    attach = story.one(do.AttachEni)
    assert (attach.eni_id, attach.device_index) == ("eni-1", 1)
    assert "eni.found_detached" in story.notes()


def test_an_eni_that_is_gone_is_read_by_itself_and_forgotten() -> None:
    second = observed("eni-1", 1, *addresses(2, 30), owned=True)
    story = node(PRIMARY, second)
    for _ in range(2):
        story.show(PRIMARY)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, None))
    assert set(story.pool.inventory.enis) == {"eni-0"} and "eni.gone" in story.notes()


@pytest.mark.parametrize("age", [599.0, 601.0, None])
def test_leaked_eni_is_deleted_when_old_and_seen_twice(age: float | None) -> None:
    story = node(PRIMARY)
    story.pass_time(LONG)
    created_at = None if age is None else story.now - age
    leaked = replace(observed("eni-9", None, owned=True), created_at=created_at)
    begun = story.now
    story.show(PRIMARY, leaked)
    assert not story.take(do.DeleteEni)
    deleted: list[do.DeleteEni] = []
    while not deleted:
        story.show(PRIMARY, leaked)
        deleted = story.take(do.DeleteEni)
    waited = story.now - begun
    assert waited == pytest.approx(60) if age == 601.0 else waited >= 600
    assert story.notes() == ["eni.leaked"]
    story.feed(on.OperationDone(deleted[0].op))
    assert set(story.pool.inventory.enis) == {"eni-0"}


def test_leftovers_of_a_terminated_instance_are_deleted() -> None:
    story = node(PRIMARY)
    left = replace(observed("eni-9", None), created_at=0.0, primary=False)
    for _ in range(2):
        story.show(PRIMARY, abandoned=(left,))
    assert story.one(do.DeleteEni).eni_id == "eni-9"


def test_an_address_with_a_pods_route_is_recorded_as_that_pods() -> None:
    """Its record was lost, or its route was left behind: either way nobody else may get it."""
    story = node(PRIMARY)
    for _ in range(2):
        story.show(PRIMARY, routed={"10.0.0.11": "veth-x"})
    assert story.states()["10.0.0.11"] == "assigned" and "attachment.recovered" in story.notes()
    story.feed(on.ReleaseRequested("r", AttachmentKey("n", "c", "eth0"), AttachmentKey("", "veth-x", "")))
    assert story.states()["10.0.0.11"] == "cooling"


# Limits that no table knew


def limited_node() -> Audited:
    """EC2 has refused to attach a second ENI to an instance whose type takes four."""
    story = Audited(warm(0), Limits(4, 3))
    story.start(observed("eni-0", 0, *addresses(2)))
    story.ask("a", "b", "c")
    create = story.one(do.CreateEni)
    created = on.CreatedEni("eni-1", "02:1", "subnet-1", "10.0.0.5", ("10.0.0.30",))
    story.feed(on.EniCreated(create.op, created))
    story.fail(story.one(do.AttachEni), CloudErrorKind.ATTACHMENT_LIMIT, "AttachNetworkInterface")
    story.feed(on.OperationDone(story.one(do.DeleteEni).op))
    assert len(story.take(do.Grant)) == 2 and not story.take(do.Refuse), "at first it is asked who holds the slots"
    return story


def test_an_attachment_limit_that_nobody_else_explains_is_learnt() -> None:
    story = limited_node()
    story.show(observed("eni-0", 0, *addresses(2)))
    assert story.one(do.Refuse).refusal.reason is Reason.ENI_LIMIT
    assert story.pool.max_enis == 1 and story.pool.max_pods == 2
    assert PutLimit(LearntLimit(1, story.now)) in story.written()


def test_slots_of_foreign_enis_are_free_again_when_they_go() -> None:
    story = limited_node()
    others = [replace(observed(f"eni-x{n}", n), primary=False) for n in (1, 2, 3)]
    story.show(observed("eni-0", 0, *addresses(2)), *others)
    assert story.pool.learnt_limit is None and story.pool.eni_slots() == 0
    assert story.one(do.Refuse).refusal.reason is Reason.ENI_LIMIT
    story.pass_time(30)
    story.ask("d")
    assert not story.take(do.Refuse)
    story.show(observed("eni-0", 0, *addresses(2)), *others[:2])
    assert story.one(do.CreateEni) and not story.take(do.Refuse)


def test_a_slot_that_an_eni_is_leaving_is_waited_for() -> None:
    second = observed("eni-1", 1, *addresses(2, 30), owned=True)
    story = Audited(warm(0, release_delay=10.0), Limits(2, 3))
    story.start(observed("eni-0", 0, *addresses(2)), second)
    story.ask("a", "b")
    story.pass_time(1)
    story.pass_time(10)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, second))
    story.feed(on.OperationDone(story.one(do.DetachEni).op))
    story.ask("c")
    assert not story.take(do.Refuse) and not story.take(do.CreateEni)
    story.pass_time(3)
    story.feed(on.OperationDone(story.one(do.DeleteEni).op))
    assert story.one(do.CreateEni) and not story.take(do.Refuse)


def test_a_learnt_limit_holds_across_a_restart_and_for_a_day() -> None:
    story = Audited(warm(0), Limits(4, 3))
    enis = observed("eni-0", 0, *addresses(2))
    story.start(enis, limit=LearntLimit(1, story.now))
    story.ask("a", "b", "c")
    refusal = story.one(do.Refuse).refusal
    assert refusal.reason is Reason.ENI_LIMIT and "the instance takes no more: 1 ENI " in refusal.message
    while story.now < 1000.0 + 86400.0:
        story.show(enis)
    story.show(enis)
    assert story.pool.max_enis == 4


# Attachments whose container is gone


def search(story: Story, *gone: str) -> None:
    keys = frozenset(AttachmentKey("net", name, "eth0") for name in gone)
    story.pass_time(60)
    story.feed(on.AttachmentsSought(story.one(do.SeekAttachments).op, keys))


def test_an_attachment_that_was_gone_twice_is_collected() -> None:
    story = node(PRIMARY)
    story.pass_time(60)
    assert not story.take(do.SeekAttachments), "nobody to look for"
    story.ask("a", "b")
    search(story, "a")
    assert len(story.pool.inventory.attachments) == 2
    search(story, "a")
    assert [a.key.container_id for a in story.pool.inventory.attachments.values()] == ["b"]
    assert story.pool.counts().cooling == 1 and "attachment.collected" in story.notes()


def test_an_attachment_that_was_seen_in_between_stays() -> None:
    story = node(PRIMARY)
    story.ask("a")
    for gone in (("a",), (), ("a",), ()):
        search(story, *gone)
    assert len(story.pool.inventory.attachments) == 1


def test_a_new_attachment_of_the_same_name_starts_afresh() -> None:
    story = node(PRIMARY)
    story.ask("a", "b")
    search(story, "a")
    story.give_back("a")
    story.pass_time(10)
    story.ask("a")
    search(story, "a")
    assert len(story.pool.inventory.attachments) == 2, "gone before as well, but that was its predecessor"
    search(story, "a")
    assert len(story.pool.inventory.attachments) == 1


def test_a_search_that_failed_collects_nothing() -> None:
    story = node(PRIMARY)
    story.ask("a")
    search(story, "a")
    story.pass_time(60)
    story.fail(story.one(do.SeekAttachments), CloudErrorKind.TRANSIENT, "netlink")
    assert len(story.pool.inventory.attachments) == 1


def test_rounds_end_when_the_daemon_stops() -> None:
    story = node(PRIMARY)
    story.ask("a")
    story.feed(on.StopRequested())
    assert story.take(do.Wake)[-1].at is None
    story.pass_time(LONG)
    assert not story.take(do.Audit) and not story.take(do.SeekAttachments)


def test_states_of_somebody_elses_are_not_counted() -> None:
    story = node(PRIMARY)
    for _ in range(2):
        story.show(observed("eni-0", 0, *addresses(3), "10.0.0.99"))
    counts = story.pool.counts()
    assert (counts.total, counts.free) == (3, 3)
    assert AddressState.FOREIGN.value in story.states().values()
