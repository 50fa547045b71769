"""What an audit keeps and gives up of what the pool has learnt, and the pods on an ENI that it finds."""

from __future__ import annotations

from ipamd.pool import effects as do
from ipamd.pool.model import CloudErrorKind, Limits
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
