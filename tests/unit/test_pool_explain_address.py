"""What an address is, for each place that it can have on a node."""

from __future__ import annotations

from ipamd.pool import effects as do
from ipamd.pool.explain_address import explain_address
from tests.unit.story import Story, addresses, observed, warm


def node() -> Story:
    story = Story(warm(3, cooldown=30))
    story.start(observed("eni-0", 0, *addresses(3)))
    return story


def said(story: Story, ip: str) -> tuple[str, str]:
    explanation = explain_address(story.pool, ip, story.now)
    assert explanation is not None
    return explanation.state, " ".join([explanation.headline, *explanation.because])


def test_a_free_address_may_be_the_next_pods() -> None:
    story = node()
    story.now += 7
    state, text = said(story, addresses(1)[0])
    assert state == "free" and "the next pod may get it" in text
    assert "on eni-0, the primary ENI" in text and "free for 7.0 s" in text


def test_a_cooling_address_says_when_it_is_free() -> None:
    story = node()
    story.ask("web")
    ip = story.one(do.Grant).attachment.address
    story.give_back("web")
    story.now += 12
    assert said(story, ip)[0] == "cooling" and "it is free in 18 s" in said(story, ip)[1]


def test_the_own_address_of_an_eni_is_the_hosts() -> None:
    story = node()
    own = next(iter(story.pool.inventory.enis.values())).primary_ip
    assert said(story, own)[0] == "own" and "no pod ever gets it" in said(story, own)[1]


def test_an_address_of_another_node_is_unknown() -> None:
    assert explain_address(node().pool, "192.0.2.1", 0.0) is None
