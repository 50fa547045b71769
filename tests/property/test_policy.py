"""Whatever pods come and go: the figures of `ipamd simulate policy` add up."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ipamd.cloud.limits import limits_of
from ipamd.pool.model import Targets
from ipamd.sim.policy.figures import figures
from ipamd.sim.policy.replay import replay
from ipamd.sim.virtual.ec2 import Latencies
from ipamd.workload.trace import TraceEvent

SECONDS = 400.0


@st.composite
def traces(draw: st.DrawFn) -> list[TraceEvent]:
    """Up to 40 pods on an m5.large, which holds 27; some are there at the beginning, some end."""
    events = []
    times = st.integers(0, 300).map(float)
    for number in range(draw(st.integers(1, 40))):
        came = draw(times | st.just(0.0))
        events.append(TraceEvent(came, "add", f"pod-{number}"))
        if draw(st.booleans()):
            events.append(TraceEvent(came + draw(times), "del", f"pod-{number}"))
    return sorted(events, key=lambda event: event.t)  # stable: what came stands before what went


TARGETS = st.builds(
    Targets,
    warm_ips=st.integers(0, 12),
    warm_enis=st.integers(0, 1),
    minimum_ips=st.integers(0, 20),
    max_pods=st.sampled_from([0, 10]),
    max_enis=st.integers(0, 3),
    slack=st.integers(0, 8),
    release_delay=st.sampled_from([0.0, 60.0, 7200.0]),
    cooldown=st.sampled_from([0.0, 30.0]),
    reuse_cooling_after=st.sampled_from([0.0, 10.0, 60.0]),
    allocate_wait=st.sampled_from([1.0, 30.0]),
)


@settings(max_examples=60, deadline=None)
@given(traces(), TARGETS)
def test_the_figures_add_up(trace: list[TraceEvent], targets: Targets) -> None:
    outcome = replay(trace, SECONDS, "m5.large", targets, Latencies(), seed=1)
    assert outcome == replay(trace, SECONDS, "m5.large", targets, Latencies(), seed=1)
    found = figures(outcome)

    asked = [event for event in trace if event.event == "add" and 0 < event.t <= SECONDS]
    assert found.waits.asked == len(asked)
    assert found.waits.asked == found.waits.served + found.waits.withdrawn + found.waits.unserved
    assert 0 <= found.waits.p50 <= found.waits.p95 <= found.waits.p99 <= found.waits.max <= SECONDS
    assert found.waits.waited <= found.waits.served
    assert 0.0 <= found.waits.share <= 1.0

    limits: Any = limits_of("m5.large")
    most = min(targets.max_pods or limits.max_pods, (targets.max_enis or limits.max_enis) * limits.secondary_per_eni)
    for sample in outcome.samples:
        assert 0 <= sample.used <= most
        assert sample.used + sample.free + sample.cooling <= sample.held
        assert 1 <= sample.enis <= (targets.max_enis or limits.max_enis)
    at_the_end = sum(1 if event.event == "add" else -1 for event in trace if event.t <= SECONDS)
    assert outcome.samples[-1].used <= at_the_end
    assert found.addresses.used_mean <= found.addresses.used_peak
    assert (
        found.addresses.used_mean + found.addresses.free_mean
        <= found.addresses.used_mean + found.addresses.idle_mean + 1e-9
    )
    assert found.calls.total == sum(found.calls.by_action.values()) >= found.calls.delayed
