"""What a new process makes of what the old one left, and what the runtime has forgotten."""

from __future__ import annotations

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import (
    Attachment,
    AttachmentKey,
    CloudErrorKind,
    Cooling,
    CreatedEni,
    EniState,
    Intent,
    PutAttachment,
)
from ipamd.pool.trouble import troubles
from tests.unit.story import Story, addresses, observed, warm


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


def test_address_routed_to_a_pod_is_not_granted_without_a_record() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, *addresses(1)), routed=(("10.0.0.10", "ipmabc"),))
    assert story.pool.counts().free == 0
    recovered = AttachmentKey("", "ipmabc", "")
    story.feed(on.ReleaseRequested("del", AttachmentKey("net", "a", "eth0"), recovered))
    assert story.one(do.Released).attachment is not None
    assert story.pool.counts().cooling == 1


def test_a_pod_whose_record_and_eni_are_gone_is_cut_off() -> None:
    """Its route is all that is left of it."""
    story = Story(warm(0))
    story.start(observed("eni-0", 0, *addresses(1)), routed=(("10.0.0.50", "ipmabc"),))
    (trouble,) = troubles(story.pool)
    assert (trouble.kind, trouble.attachment.key) == ("lost", AttachmentKey("", "ipmabc", ""))
    assert PutAttachment(trouble.attachment) in story.written()
    (pod,) = story.pool.inventory.attachments
    story.feed(on.ReleaseRequested("del", AttachmentKey("net", "a", "eth0"), pod))
    assert not story.pool.inventory.attachments and not list(troubles(story.pool))


def test_two_routes_to_one_link_are_one_pod() -> None:
    story = Story(warm(0))
    routed = tuple((ip, "ipmabc") for ip in ("10.0.0.10", "10.0.0.11", "10.0.0.50", "10.0.0.51"))
    story.start(observed("eni-0", 0, *addresses(2)), routed=routed)
    assert len(story.pool.inventory.attachments) == 1
    story.ask("b")
    assert not story.take(do.Grant)


def test_foreign_enis_are_counted_but_left_alone() -> None:
    story = Story(warm(20))
    story.start(observed(), observed("eni-9", 1, *addresses(2, 90), owned=False))
    assert story.pool.inventory.enis["eni-9"].state is EniState.FOREIGN
    assert story.one(do.AssignAddresses).eni_id == "eni-0"
    story.one(do.CreateEni)  # one slot of three is left
    assert not {"10.0.0.90", "10.0.0.91"} & set(story.pool.inventory.addresses)


def test_eni_cut_off_between_creation_and_attachment_is_attached() -> None:
    story = Story(warm(0))
    intent = Intent("attach eni-1", "AttachNetworkInterface", 990.0, eni_id="eni-1", device_index=1)
    story.start(observed(), observed("eni-1", None, *addresses(3), owned=True), intents=(intent,))
    assert story.one(do.AttachEni).eni_id == "eni-1"


def test_an_eni_that_nobody_remembers_is_deleted() -> None:
    story = Story(warm(0))
    story.start(observed(), observed("eni-1", None, *addresses(3), owned=True))
    assert story.one(do.DeleteEni).eni_id == "eni-1"


def test_detached_eni_with_pod_addresses_is_attached_again() -> None:
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


def test_unattachable_eni_with_pod_addresses_is_not_deleted() -> None:
    story = Story(warm(0))
    lost = observed("eni-1", None, "10.0.0.50", owned=True)
    story.start(observed(), lost, attachments=(held("a", "10.0.0.50", "eni-1"),))
    story.fail(story.one(do.AttachEni), CloudErrorKind.NOT_AUTHORIZED, "AttachNetworkInterface")
    story.pass_time(10.0)
    assert not story.take(do.DeleteEni)
    assert story.one(do.AttachEni).eni_id == "eni-1"


def test_release_in_future_does_not_cool_longer_than_any_other() -> None:
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


def test_collection_releases_forgotten_pods_except_young_ones() -> None:
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
