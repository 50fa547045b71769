"""`ipamd simulate policy` on traces that are small enough to be reckoned by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from ipamd.pool.model import Targets
from ipamd.sim.policy.figures import figures, percentile
from ipamd.sim.policy.plot import thinned
from ipamd.sim.policy.replay import Outcome, Sample, Wait, replay
from ipamd.sim.virtual.ec2 import Latencies
from ipamd.workload.trace import TraceEvent

# An m5.large has 3 ENIs with 9 addresses for pods each. Nothing here takes as long as a cooldown, or comes back.
TYPE = "m5.large"
CREATE, ATTACH, LINK, ASSIGN, COALESCE = 1.0, 2.0, 0.5, 0.3, 0.05
LATENCIES = Latencies(create=CREATE, attach=ATTACH, link=LINK, assign=ASSIGN)


def played(events: list[TraceEvent], seconds: float, **targets: Any) -> Outcome:
    return replay(events, seconds, TYPE, Targets(**{"slack": 0, **targets}), LATENCIES, seed=1)


def adds(t: float, *ids: str) -> list[TraceEvent]:
    return [TraceEvent(t, "add", id) for id in ids]


def dels(t: float, *ids: str) -> list[TraceEvent]:
    return [TraceEvent(t, "del", id) for id in ids]


def test_a_node_with_two_warm_addresses() -> None:
    """Two pods get them at once, the third waits for one call; so do the two that should be warm again."""
    outcome = played([*adds(10.0, "a", "b", "c"), *dels(40.0, "a")], 100.0, warm_ips=2, coalesce=0.0)
    assert [(wait.t, round(wait.seconds, 6)) for wait in outcome.waits] == [(10, 0), (10, 0), (10, ASSIGN)]
    assert (outcome.adds, outcome.withdrawn, outcome.unserved, outcome.delayed) == (3, 0, 0, 0)
    assert not outcome.refusals
    # Each of the three leaves one free address less: each is a call for one more, as nothing gathers them.
    assert outcome.calls == Counter(AssignPrivateIpAddresses=3)
    found = figures(outcome)
    # Held: 2 until 10.3, then 5. In use: 2 from 10, 3 from 10.3, 2 from 40. All on the primary ENI.
    held = 2 * 10.3 + 5 * 89.7
    used = 2 * 0.3 + 3 * 29.7 + 2 * 60
    cooling = 1 * 30  # from 40 to 70
    assert found.addresses.used_mean == pytest.approx(used / 100)
    assert found.addresses.free_mean == pytest.approx((held - used - cooling) / 100)
    assert found.addresses.idle_hours == pytest.approx((held - used) / 3600)
    assert (found.addresses.used_peak, found.addresses.free_peak, found.addresses.cooling_peak) == (3, 3, 1)
    assert (found.addresses.enis_peak, found.addresses.enis_mean) == (1, 1)
    assert (found.calls.total, found.calls.per_hour) == (3, pytest.approx(3 * 36))
    waits = found.waits
    assert (waits.asked, waits.served, waits.waited, waits.share) == (3, 3, 1, pytest.approx(1 / 3))
    assert (waits.p50, waits.p95, waits.max) == (0, pytest.approx(ASSIGN), pytest.approx(ASSIGN))


def test_pods_present_at_the_start_neither_wait_nor_cost_calls() -> None:
    outcome = played([*adds(0.0, "a", "b"), *dels(0.0, "b"), *adds(0.0, "b"), *adds(5.0, "c")], 10.0, warm_ips=1)
    assert outcome.adds == 1
    assert outcome.samples[0] == Sample(0.0, used=2, free=1, cooling=0, held=3, enis=1)
    assert outcome.waits == (Wait(5.0, 0.0),)


def test_a_pod_that_needs_a_new_eni_waits_for_all_of_it() -> None:
    nine = [f"old-{number}" for number in range(9)]
    outcome = played([*adds(0.0, *nine), *adds(5.0, "new")], 60.0, warm_ips=0)
    expected = COALESCE + CREATE + ATTACH + LINK
    assert [wait.seconds for wait in outcome.waits] == [pytest.approx(expected)]
    assert outcome.calls == Counter(
        CreateNetworkInterface=1, AttachNetworkInterface=1, ModifyNetworkInterfaceAttribute=1
    )
    assert figures(outcome).addresses.enis_peak == 2
    # Its own address lies in the subnet, too, from the creation on.
    assert figures(outcome).addresses.idle_hours * 3600 == pytest.approx(
        2 * (ATTACH + LINK) + 1 * (60 - 5 - expected)
    )


def test_refused_pod_comes_back_until_the_full_node_has_room() -> None:
    pods = [f"old-{number}" for number in range(27)]
    events = [*adds(0.0, *pods), *adds(100.0, "late"), *dels(112.0, "old-3"), *adds(125.0, "never", "gone")]
    more = {"reuse_cooling_after": 30.0, "allocate_wait": 25.0}
    outcome = played([*events, *dels(128.0, "gone")], 160.0, **more)
    # At 100 and 110 nothing can come in time; at 120 the address that cools from 112 on will be there at 142.
    assert outcome.waits == (Wait(100.0, pytest.approx(42.0)),)
    assert (outcome.adds, outcome.withdrawn, outcome.unserved) == (3, 1, 1)
    waits = figures(outcome).waits
    assert waits.share == 1.0
    assert sum(outcome.refusals.values()) >= 3 and "RELEASED" not in outcome.refusals


def test_a_pod_on_a_full_node_waits_for_another_to_end() -> None:
    pods = [f"old-{number}" for number in range(27)]
    events = [*adds(0.0, *pods), *adds(100.0, "late"), *dels(112.0, "old-3")]
    outcome = played(events, 160.0, reuse_cooling_after=5.0)
    assert outcome.waits == (Wait(100.0, pytest.approx(17.0)),) and not outcome.refusals


def test_an_id_may_come_back() -> None:
    events = [*adds(1.0, "a"), *dels(2.0, "a"), *adds(2.0, "a"), *dels(2.0, "a"), *adds(3.0, "a")]
    outcome = played(events, 10.0, warm_ips=3)
    assert [wait.t for wait in outcome.waits] == [1.0, 2.0, 3.0]
    assert outcome.withdrawn == outcome.unserved == 0


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert [percentile([7.0], share) for share in (0.5, 1.0)] == [7, 7]
    assert percentile([], 0.5) == 0


def test_a_thinned_picture_keeps_peaks_and_what_lasts() -> None:
    def sample(t: float, used: int) -> Sample:
        return Sample(t, used, 0, 0, 0, 1)

    busy = [sample(number / 100, 9 if number == 7777 else number % 3) for number in range(10_000)]
    kept = thinned(busy, 100.0)
    assert len(kept) <= 1500
    assert sample(77.77, 9) in kept and kept[0] == busy[0] and kept[-1] == busy[-1]
    assert kept == sorted(kept, key=lambda each: each.t)
    assert thinned(busy[:100], 100.0) == busy[:100]
