"""What an audit keeps and gives up of what the pool has learnt, and the pods on an ENI that it finds."""

from __future__ import annotations

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import Attachment, AttachmentKey, CloudErrorKind, Limits, Reason
from tests.unit.story import addresses, observed, warm
from tests.unit.test_pool_audit import Audited, node

DAY = 86400.0
PRIMARY = observed("eni-0", 0, *addresses(1))


def refused_eni() -> Audited:
    """EC2 has refused an ENI for its 8 secondary addresses."""
    story = Audited(warm(0, minimum_ips=16), Limits(3, 9))
    story.now = 30_000 * DAY  # as on a real clock: long after the epoch
    story.start(observed("eni-0", 0, *addresses(8)))
    effect = story.one(do.CreateEni)
    assert effect.count == 8 == story.pool.addresses_of_new_eni
    story.fail(effect, CloudErrorKind.ENI_ADDRESS_LIMIT, "CreateNetworkInterface")
    return story


def test_new_enis_get_half_as_many_addresses_for_a_day() -> None:
    story = refused_eni()
    begun = story.now
    while story.now - begun <= DAY:
        assert story.pool.addresses_of_new_eni == 4
        story.show(observed("eni-0", 0, *addresses(8)))
    assert story.pool.addresses_of_new_eni == 8


def test_pods_on_an_eni_that_an_audit_finds_keep_their_addresses() -> None:
    story = node(PRIMARY)
    found = observed("eni-1", 1, "10.0.0.30", "10.0.0.31", owned=True)
    for _ in range(2):
        story.show(PRIMARY, found, routed={"10.0.0.30": "ipm000000000001"})
    assert (story.states()["10.0.0.30"], story.states()["10.0.0.31"]) == ("assigned", "free")
    (attachment,) = story.pool.inventory.attachments.values()
    assert (attachment.address, attachment.eni_id) == ("10.0.0.30", "eni-1")


def test_unattached_eni_with_a_pods_address_is_not_deleted() -> None:
    """EC2 did not show the ENI when the daemon started, and its pod is on record."""
    pod = Attachment(AttachmentKey("net", "a", "eth0"), "10.0.0.30", "eni-1", 900.0)
    story = Audited(warm(0, slack=20), Limits(3, 10))
    story.start(PRIMARY, attachments=(pod,))
    found = observed("eni-1", None, "10.0.0.30", "10.0.0.31", owned=True)
    while not (asked := story.take(do.AttachEni)):
        story.show(PRIMARY, found)
        assert not story.take(do.DeleteEni)
    assert (asked[0].eni_id, asked[0].device_index) == ("eni-1", 1)
    assert "eni.found_detached" in story.notes() and story.states()["10.0.0.30"] == "assigned"


def test_full_subnet_refuses_at_once_beside_a_foreign_eni() -> None:
    """Another look at the slots can't help: there are slots, and no addresses for them."""
    story = Audited(warm(0), Limits(3, 3))
    story.start(observed("eni-0", 0, *addresses(2)), observed("eni-x", 1))
    story.ask("a", "b", "c")
    story.fail(story.one(do.CreateEni), CloudErrorKind.SUBNET_FULL, "CreateNetworkInterface")
    story.pass_time(3600.0)
    story.ask("d", blocks_releases=True)
    story.read_subnets(**{"subnet-1": 0})
    refusals = {refusal.request: refusal.refusal.reason for refusal in story.take(do.Refuse)}
    assert refusals["d"] is Reason.SUBNET_EXHAUSTED


def test_pod_limit_refuses_at_once_beside_a_foreign_eni() -> None:
    """Slots that others give up would not raise pool.max_pods."""
    story = Audited(warm(0, max_pods=2), Limits(2, 5))
    story.start(observed("eni-0", 0, *addresses(2)), observed("eni-x", 1))
    story.ask("a", "b")
    story.pass_time(3600.0)
    story.ask("c", blocks_releases=True)
    assert story.one(do.Refuse).refusal.reason is Reason.POD_LIMIT


def test_audit_notes_what_subnets_have_left_with_its_time() -> None:
    story = node(PRIMARY)
    story.pass_time(3 * 3600.0)
    story.feed(on.Audited(story.one(do.Audit).op, (PRIMARY,), (), (), (("subnet-1", 42),)))
    subnet = story.pool.subnets["subnet-1"]
    assert (subnet.available, subnet.read_at) == (42, story.now)
