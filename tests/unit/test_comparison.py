"""What an operator's audit calls a mismatch, and what it passes over because it is in the middle of a change."""

from __future__ import annotations

from dataclasses import replace

from ipamd.host.veth import host_link
from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import Attachment, AttachmentKey, ObservedEni, Use, Uses
from ipamd.pool.view import View
from ipamd.shell.comparison import Mismatch, compare
from tests.unit.story import Story, addresses, observed, warm


class Node:
    """Three addresses; a pod has one of them for a minute, and all three witnesses agree."""

    def __init__(self) -> None:
        self.story = Story(warm(2))
        self.story.start(observed("eni-0", 0, *addresses(3)))
        self.story.ask("a")
        self.held = self.story.one(do.Grant).attachment
        self.story.now += 60
        self.ec2: tuple[ObservedEni, ...] = (observed("eni-0", 0, *addresses(3)),)
        self.ledger: tuple[Attachment, ...] = (self.held,)
        self.routes = {self.held.address: host_link(self.held.key)}
        self.not_forwarding: frozenset[str] = frozenset()

    def mismatches(self) -> list[Mismatch]:
        routed = tuple(self.routes.items())
        seen = on.Audited(0, self.ec2, (), routed, not_forwarding=self.not_forwarding)
        return list(compare(View(self.story.pool), self.ledger, seen, self.story.now).mismatches)

    def found(self) -> list[tuple[str, str]]:
        return [(mismatch.kind, mismatch.subject) for mismatch in self.mismatches()]


def test_all_agree() -> None:
    node = Node()
    assert not node.found()
    seen = on.Audited(0, node.ec2, (), tuple(node.routes.items()))
    compared = compare(View(node.story.pool), node.ledger, seen, node.story.now)
    assert (compared.enis, compared.addresses, compared.attachments, compared.routes) == (1, 3, 1, 1)


def test_ec2_took_addresses_away() -> None:
    node = Node()
    node.ec2 = (observed("eni-0", 0, *addresses(3)[1:]),)
    (mismatch,) = node.mismatches()
    assert (mismatch.kind, mismatch.subject, mismatch.ledger) == ("address_missing", node.held.address, "assigned")
    assert "cut off" in mismatch.meaning and mismatch.remedy == "delete the pod"


def test_links_that_do_not_forward() -> None:
    node = Node()
    eni = node.story.pool.inventory.enis["eni-0"]
    node.not_forwarding = frozenset({host_link(node.held.key), eni.link, "docker0"})
    assert node.found() == [("not_forwarded", node.held.address), ("not_forwarded", "eni-0")]
    assert {mismatch.kernel for mismatch in node.mismatches()} == {
        f"net.ipv4.conf.{link}.forwarding = 0" for link in (host_link(node.held.key), eni.link)
    }


def test_ec2_has_more() -> None:
    node = Node()
    node.ec2 = (
        observed("eni-0", 0, *addresses(4)),
        observed("eni-1", 1, owned=True),
        observed("eni-2", None, owned=True),
        observed("eni-3", 3),
    )
    assert node.found() == [("eni_unknown", "eni-1"), ("eni_leaked", "eni-2"), ("address_unknown", "10.0.0.13")]


def test_a_pod_of_a_detached_eni_is_stranded() -> None:
    """Also before EC2 is seen to lack it: what the daemon knows to be broken is no agreement."""
    node = Node()
    node.story.feed(on.DeviceGone("eni-0"))
    (mismatch,) = node.mismatches()
    assert (mismatch.kind, mismatch.subject) == ("attachment_stranded", node.held.address)
    assert "is configuring" in mismatch.ec2 and mismatch.remedy.startswith("the daemon attaches the ENI again")


def test_an_eni_is_gone() -> None:
    node = Node()
    node.ec2 = ()
    assert node.found() == [("eni_missing", "eni-0")]


def test_the_ledger_differs_from_memory() -> None:
    node = Node()
    node.ledger = ()
    assert node.found() == [("record_differs", node.held.address), ("route_of_nobody", node.held.address)]
    node = Node()
    node.ledger = (node.held, replace(node.held, key=AttachmentKey("net", "b", "eth0"), address="10.0.0.11"))
    assert node.found() == [("record_differs", "10.0.0.11"), ("route_missing", "10.0.0.11")]


def test_routes() -> None:
    node = Node()
    node.routes = {}
    assert node.found() == [("route_missing", node.held.address)]
    node.routes = {node.held.address: "eth7", "10.0.0.99": "ipm1"}
    (wrong, nobodys) = node.mismatches()
    assert (wrong.kind, wrong.kernel) == ("route_differs", f"leads to eth7, not {host_link(node.held.key)}")
    assert (nobodys.kind, nobodys.subject) == ("route_of_nobody", "10.0.0.99")


def test_an_address_on_the_host_itself() -> None:
    node = Node()
    use = Use("address", "address 10.0.0.11 dev eth0", "eth0")
    node.story.feed(on.UsesRead(Uses({"10.0.0.11": use}), ()))
    assert node.found() == [("address_on_host", "10.0.0.11")]


def test_what_is_in_the_middle_of_a_change_is_passed_over() -> None:
    node = Node()
    node.routes = {}
    node.story.now = node.held.since + 5  # its ADD is about to plumb it
    assert not node.found()
    node = Node()
    node.story.give_back("a")
    node.ledger = ()
    assert not node.found()  # its DEL's route is about to go
    node.story.now += 11
    assert node.found() == [("route_of_nobody", node.held.address)]
    node = Node()
    node.story.ask("b", "c", "d")  # more are being asked for
    node.ledger = tuple(node.story.pool.inventory.attachments.values())
    node.ec2 = (observed("eni-0", 0, *addresses(9)),)
    assert not node.found()
