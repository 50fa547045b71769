"""A pod that is cut off is known to be, however that was found out and for as long as it lasts."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network

from ipamd.api.standing import attachment_info
from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.ctl.attention import concerns
from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import Limits, Use
from ipamd.pool.trouble import Trouble, troubles
from tests.unit.story import Story, observed, warm

IP = "10.0.0.10"


def holding(**more: float) -> Story:
    """A pod has the only address."""
    story = Story(warm(0, **more), Limits(2, 2))
    story.start(observed("eni-0", 0, IP))
    story.ask("a")
    story.take(do.Note)
    return story


def found(story: Story) -> list[Trouble]:
    return list(troubles(story.pool))


def attention(story: Story) -> list[str]:
    told = [
        pb.AttachmentTrouble(kind=t.kind, attachment=attachment_info(t.attachment, t), cause=t.cause)
        for t in found(story)
    ]
    return concerns(pb.Node(ready=True, attachment_troubles=told), (), 0.0)


def inspect(story: Story, *missing: str, shown: tuple[str, ...] = ()) -> None:
    story.feed(on.Inspected((observed("eni-0", 0, *shown),), frozenset(missing)))


def test_what_an_operator_finds_is_known_at_once() -> None:
    story = holding()
    assert not found(story) and not attention(story)
    inspect(story, IP)
    (trouble,) = found(story)
    assert (trouble.kind, trouble.cause, trouble.since) == ("lost", f"EC2 has taken {IP} from eni-0", story.now)
    (note,) = [note for note in story.take(do.Note) if note.event == "address.missing"]
    assert note.level == "error"
    who = "/a"  # a pod without a namespace
    assert attention(story) == [
        f"1 pod is cut off: {who} (EC2 has taken {IP} from eni-0): delete it, the successor gets another address."
    ]


def test_one_look_without_an_address_is_no_proof() -> None:
    story = holding()
    inspect(story)
    assert not found(story)


def test_it_ends_when_the_pod_is_deleted() -> None:
    story = holding()
    inspect(story, IP)
    story.give_back("a")
    assert not found(story) and not story.pool.inventory.lost


def test_it_ends_when_ec2_shows_the_address_again() -> None:
    story = holding()
    inspect(story, IP)
    inspect(story, shown=(IP,))
    assert not found(story)
    assert "address.found_again" in [note.event for note in story.take(do.Note)]
    assert story.pool.inventory.addresses[IP].state.value == "assigned"


def test_it_is_known_after_a_restart() -> None:
    (held,) = holding().pool.inventory.attachments.values()
    story = Story(warm(0), Limits(2, 2))
    story.start(observed("eni-0", 0), attachments=(held,))
    (trouble,) = found(story)
    assert (trouble.kind, trouble.cause) == ("lost", f"EC2 shows {IP} on no ENI of this node")
    story = Story(warm(0), Limits(2, 2))
    thief = replace(observed("eni-1", 1, owned=True), primary_ip=IP)
    story.start(observed("eni-0", 0), thief, attachments=(held,))
    assert [t.cause for t in found(story)] == [f"EC2 has given {IP} to eni-1 as its own address"]


def test_a_detached_eni_cuts_its_pods_off_until_it_is_back() -> None:
    story = Story(warm(0), Limits(2, 2))
    story.start(observed("eni-0", 0), observed("eni-1", 1, IP, owned=True))
    story.take(do.SetDeleteOnTermination)
    story.ask("a")
    story.feed(on.DeviceGone("eni-1"))
    assert [(t.kind, t.cause) for t in found(story)] == [("detached", f"eni-1, which has {IP}, is configuring")]
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-1", None, IP, owned=True)))
    assert [t.cause for t in found(story)] == [f"eni-1, which has {IP}, is attaching"]
    story.feed(on.EniAttached(story.one(do.AttachEni).op, "att-2"))
    story.feed(on.LinkReady(story.one(do.ConfigureLink).op, "eth1", IPv4Network("10.0.0.0/24")))
    assert not found(story)


def test_an_eni_that_was_deleted_cuts_its_pods_off_for_good() -> None:
    story = Story(warm(0), Limits(2, 2))
    story.start(observed("eni-0", 0), observed("eni-1", 1, IP, owned=True))
    story.take(do.SetDeleteOnTermination)
    story.ask("a")
    story.feed(on.DeviceGone("eni-1"))
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, None))
    assert [t.cause for t in found(story)] == ["eni-1 does not exist any more"]


def test_an_eni_on_another_instance_cuts_its_pods_off() -> None:
    story = Story(warm(0), Limits(2, 2))
    story.start(observed("eni-0", 0), observed("eni-1", 1, IP, owned=True))
    story.take(do.SetDeleteOnTermination)
    story.ask("a")
    story.feed(on.DeviceGone("eni-1"))
    elsewhere = observed("eni-1", 1, IP, owned=False)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, elsewhere))
    assert [t.cause for t in found(story)] == ["eni-1 is attached to another instance"]


def test_a_restart_of_a_healthy_node_cuts_nobody_off() -> None:
    (held,) = holding().pool.inventory.attachments.values()
    story = Story(warm(0), Limits(2, 2))
    story.feed(on.Started((observed("eni-0", 0, IP),), attachments=(held,)))
    assert not found(story)


def test_an_address_that_leads_elsewhere_is_told_as_contested() -> None:
    story = holding()
    story.feed(on.UseSeen(IPv4Network(IP), Use("route", f"route {IP} dev eni3f", "eni3f")))
    (trouble,) = found(story)
    assert trouble.kind == "contested" and not trouble.cut_off
    assert attention(story)[0].startswith(f"1 pod is in doubt: /a ({IP} is led elsewhere as well: route {IP} dev")


def test_of_many_pods_the_first_are_named() -> None:
    told = [
        pb.AttachmentTrouble(
            kind="lost", attachment=pb.AttachmentInfo(pod_namespace="shop", pod_name=f"web-{n}"), cause=f"cause {n}"
        )
        for n in range(5)
    ]
    (line,) = concerns(pb.Node(ready=True, attachment_troubles=told), (), 0.0)
    assert line.startswith(
        "5 pods are cut off: shop/web-0 (cause 0), shop/web-1 (cause 1), shop/web-2 (cause 2) and 2 "
    )
