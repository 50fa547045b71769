"""The profiles: traces that their seed alone decides, whose pods come before they go, and no more than were asked."""

from __future__ import annotations

from itertools import pairwise

import pytest

from ipamd.sim.policy.profiles import PROFILES, made_up
from ipamd.workload import trace
from ipamd.workload.trace import TraceEvent

HOUR = 3600.0
EACH = pytest.mark.parametrize("name", PROFILES)


def made(name: str, seed: int = 1, pods: int = 20, hours: float = 24.0) -> list[TraceEvent]:
    return made_up(name, seed=seed, seconds=hours * HOUR, pods=pods)


def most_at_a_time(events: list[TraceEvent]) -> int:
    there = most = 0
    for event in events:
        there += 1 if event.event == "add" else -1
        most = max(most, there)
    return most


@EACH
def test_the_seed_decides_all_of_it(name: str) -> None:
    assert made(name) == made(name)
    assert made(name) != made(name, seed=2)


@EACH
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pods", [1, 7, 100])
def test_each_is_a_trace_that_could_have_been_recorded(name: str, seed: int, pods: int) -> None:
    events = made(name, seed, pods)
    lines = [event.line() for event in events]
    assert [(e.event, e.id) for e in trace.checked(lines, name)] == [(e.event, e.id) for e in events]
    ids = [event.id for event in events if event.event == "add"]
    assert len(ids) == len(set(ids)) > pods  # a pod that ended never comes back, and more come than fit at a time
    surge = {"batch": 0}.get(name, (pods + 3) // 4)
    assert pods * 0.4 <= most_at_a_time(events) <= pods + surge


def test_service_profile_peaks_in_the_afternoon_and_redeploys() -> None:
    events = made("web", pods=100, hours=48.0)

    def there(at: float) -> int:
        return sum(1 if event.event == "add" else -1 for event in events if event.t <= at)

    assert 30 <= there(28 * HOUR - 1) <= 60 < 85 <= there(40 * HOUR - 1) <= 125
    eight = {event.id for event in events if event.event == "add" and event.t <= 8 * HOUR}
    gone = {event.id for event in events if event.event == "del" and event.t <= 16 * HOUR}
    assert eight <= gone


def test_jobs_come_in_bursts() -> None:
    times = [event.t for event in made("batch") if event.event == "add"]
    close = sum(later - earlier < 5.0 for earlier, later in pairwise(times))
    assert close > 0.8 * len(times) and times[-1] > 20 * HOUR


def test_a_deployment_replaces_all_pods_and_then_all_is_quiet() -> None:
    events = made("deploy", pods=8)
    starts = [event.t for event in events if event.event == "add" and event.t > 0]
    rolls = [t for before, t in zip([0.0, *starts], starts, strict=False) if t - before > HOUR]
    assert 3 <= len(rolls) <= 6
    assert len(starts) == 8 * len(rolls)
    assert most_at_a_time(events) == 10
