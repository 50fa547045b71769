"""What is said of the pool and of a waiting pod, with numbers that can be checked by hand."""

from __future__ import annotations

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.explain import Explanation, explain_attachment, explain_pool, explain_waiting
from ipamd.pool.model import CloudErrorKind, CloudFailure, Limits
from ipamd.pool.words import span
from tests.unit.story import Story, addresses, full_node, observed, warm


def pool(story: Story) -> Explanation:
    return explain_pool(story.pool, story.now)


def says(lines: list[str], *parts: str) -> bool:
    return any(all(part in line for part in parts) for line in lines)


def test_before_ec2_has_answered() -> None:
    explanation = pool(Story(warm(5)))
    assert explanation.state == "starting" and not explanation.because


def test_at_rest_the_arithmetic_is_told() -> None:
    story = Story(warm(3, minimum_ips=2))
    story.start(observed("eni-0", 0, *addresses(3)))
    explanation = pool(story)
    assert (explanation.state, explanation.headline) == (
        "steady", "The pool is as it should be: 3 addresses are free.",
    )  # fmt: skip
    assert explanation.because == [
        "Wanted: 3 to keep warm (pool.warm_ips). There: 3 free; 0 in use; at least 2 in all (pool.minimum_ips).",
        "Room: 6 more addresses on the ENIs that are there, and 2 more ENIs with 9 each (the instance type allows "
        "3).",
    ]
    assert not explanation.next and not explanation.advice
    assert (explanation.numbers["free"], explanation.numbers["could_still_serve"]) == (3, 27)


def test_while_it_grows_what_was_asked_for_is_named() -> None:
    story = Story(warm(5))
    story.start(observed("eni-0", 0, *addresses(2)))
    story.now += 3
    explanation = pool(story)
    assert (explanation.state, explanation.headline) == ("growing", "3 addresses are on the way.")
    assert explanation.next == [
        "Now, since 3.0 s: EC2 is asked for 3 addresses for eni-0 (AssignPrivateIpAddresses)."
    ]


def test_requests_that_gather_are_told_when_they_go() -> None:
    story = Story(warm(1, coalesce=0.5))
    story.start(observed())
    assert says(pool(story).next, "In 0.5 s EC2 is asked for 1 (pool.coalesce).")


def test_obstacle_has_ec2s_words_its_end_and_a_remedy() -> None:
    story = Story(warm(5))
    story.start(observed("eni-0", 0, *addresses(2)))
    story.fail(story.one(do.AssignAddresses), CloudErrorKind.NOT_AUTHORIZED)
    story.take(do.CreateEni)
    (backoff,) = story.pool.backoffs.all_active(story.now)
    explanation = pool(story)
    left = span(backoff.until - story.now)
    assert says(
        explanation.because, "AssignPrivateIpAddresses failed, NOT_AUTHORIZED: EC2's words", f"another {left}"
    )
    assert says(explanation.advice, "ipamctl iam-policy")


def test_known_cause_of_a_failure_replaces_general_advice() -> None:
    story = Story(warm(2))
    story.start()
    failure = CloudFailure(
        CloudErrorKind.NOT_AUTHORIZED, "AssignPrivateIpAddresses", "No", "x", advice="Ask who runs it."
    )
    story.feed(on.OperationFailed(story.one(do.AssignAddresses).op, failure))
    advice = explain_pool(story.pool, story.now).advice
    assert "Ask who runs it." in advice and not says(advice, "ipamctl iam-policy")


def test_full_subnet_blocks_and_says_how_many_pods_still_fit() -> None:
    story = Story(warm(9))
    story.start(observed("eni-0", 0, *addresses(8)))
    story.fail(story.one(do.AssignAddresses), CloudErrorKind.SUBNET_FULL)
    story.read_subnets(**{"subnet-1": 0})
    explanation = pool(story)
    assert explanation.state == "blocked"
    assert explanation.headline == "1 address is missing, and EC2 gives none at present; 8 are free."
    assert says(explanation.because, "Subnet subnet-1 showed no free addresses")
    assert says(explanation.advice, "ec2.subnets")


def test_full_node_suggests_larger_type_and_names_next_address() -> None:
    story = full_node(cooldown=30.0)
    explanation = pool(story)
    assert explanation.state == "blocked" and "takes no more: 1 ENI with 2" in explanation.headline
    assert says(explanation.advice, "larger instance type")
    story.give_back("a")
    story.now += 10
    assert says(pool(story).next, "In 20 s the first cooling address is free again.")


def test_an_early_reuse_is_told() -> None:
    story = full_node(cooldown=30.0, reuse_cooling_after=10.0)
    story.give_back("a")
    assert says(pool(story).next, "In 30 s the first cooling address is free again, in 10 s if pods wait for it.")


def test_an_excess_is_told_with_its_time() -> None:
    story = Story(warm(1, release_delay=7200.0))
    story.start(observed("eni-0", 0, *addresses(5)))
    story.now += 600
    explanation = pool(story)
    assert explanation.state == "shrinking"
    assert explanation.next == ["In 110 min 4 addresses go back to EC2, if nobody needs them until then."]


def test_somebody_elses_enis_are_named() -> None:
    story = Story(warm(0))
    story.start(observed(), observed("eni-other", 1))
    assert says(pool(story).because, "Somebody else's ENIs", "eni-other")


def test_a_drained_node_says_how_long_and_how_to_end_it() -> None:
    story = Story(warm(5))
    story.start(observed())
    story.feed(on.NodeDrained())
    story.now += 180
    explanation = pool(story)
    assert explanation.state == "drained" and "3 min ago" in explanation.headline
    assert explanation.advice == ["ipamctl undrain ends it."]


def test_second_waiting_pod_sees_its_place_and_its_prospect() -> None:
    story = Story(warm(0), Limits(2, 2))
    story.start()
    story.ask("first", "second", wait=20.0)
    assert story.pool.counts().pending == 2
    story.now += 2
    first, second = (
        explain_waiting(story.pool, waiting, f"Pod {name}", story.now)
        for name, waiting in zip(("one", "two"), story.pool.waiting.values(), strict=True)
    )
    assert first.headline == "Pod one has waited 2.0 s for an address."
    assert second.because[0] == "It is number 2 of 2 in the queue, which is served in order."
    assert says(second.because, "2 addresses are on the way: one is for it.")
    assert second.next[-1] == "If none has come in 18 s, it is refused, and the runtime tries again."
    story.fail(story.one(do.AssignAddresses), CloudErrorKind.THROTTLED)
    late = explain_waiting(story.pool, list(story.pool.waiting.values())[1], "Pod two", story.now)
    assert says(late.because, "No address that is on the way is for it yet.")
    assert says(late.because, "AssignPrivateIpAddresses failed") and says(late.advice, "CloudTrail")


def test_attachment_names_its_eni_and_an_address_taken_by_ec2() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, *addresses(1)))
    story.ask("a")
    held = story.one(do.Grant).attachment
    explanation = explain_attachment(story.pool, held, "Pod a", story.now + 90)
    assert explanation.headline == "Pod a has 10.0.0.10, for 90 s."
    assert explanation.because == [
        "It is one of eni-0, the primary ENI (link eth0).",
        "EC2 last showed it there 90 s ago; ipamctl audit looks now.",
    ]
    story.feed(on.Inspected((observed("eni-0", 0),), frozenset({"10.0.0.10"})))
    cut_off = explain_attachment(story.pool, held, "Pod a", story.now + 60)
    assert cut_off.state == "cut_off" and cut_off.advice
    assert cut_off.headline == "Pod a is cut off: EC2 has taken 10.0.0.10 from eni-0, found 60 s ago."


def test_times_in_words() -> None:
    found = [span(seconds) for seconds in (-1, 0.04, 9.94, 9.96, 119, 120, 7140, 7200, 9000, 172800, 259200)]
    assert found == ["0.0 s", "0.0 s", "9.9 s", "10 s", "119 s", "2 min", "119 min", "2 h", "2 h 30 min", "2 days",
                     "3 days"]  # fmt: skip


def test_a_call_names_the_requests_that_it_was_made_for() -> None:
    story = Story(warm(0), Limits(2, 11))
    story.start()
    story.take(do.Note)
    story.ask(*(f"r{number}" for number in range(7)))
    first, *more = story.take(do.AssignAddresses)
    story.feed(on.AddressesAssigned(first.op, addresses(first.count)))
    (note,) = [note for note in story.take(do.Note) if note.event == "addresses.assigned"]
    assert dict(note.fields)["requests"] == "r0"
    story.fail(more[-1], CloudErrorKind.THROTTLED)
    (note,) = [note for note in story.take(do.Note) if note.event == "ec2.failed"]
    assert dict(note.fields)["requests"] == "r0 r1 r2 r3 r4 and 2 more"
    story = Story(warm(3))
    story.start()
    story.fail(story.one(do.AssignAddresses), CloudErrorKind.THROTTLED)
    (note,) = [note for note in story.take(do.Note) if note.event == "ec2.failed"]
    assert "requests" not in dict(note.fields)
