"""What the log says of an ENI that takes fewer addresses than its type."""

from __future__ import annotations

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import CloudErrorKind
from tests.unit.story import Story, addresses, observed, warm


def test_learnt_limit_of_an_eni_is_what_it_took_last() -> None:
    story = Story(warm(4))
    story.start(observed("eni-0", 0, *addresses(3)))
    assign = story.one(do.AssignAddresses)
    assert assign.count == 1
    story.fail(assign, CloudErrorKind.ENI_ADDRESS_LIMIT)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-0", 0, *addresses(3))))
    (note,) = [note for note in story.take(do.Note) if note.event == "eni.limit_learnt"]
    assert dict(note.fields) == {"eni": "eni-0", "slots": 3, "by_type": 9}
