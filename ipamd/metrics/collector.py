"""The daemon's state in Prometheus' words, read when somebody scrapes.

No label has a pod's name or an address: cardinality does not grow with the number of pods.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector

import ipamd
from ipamd.cloud.port import Priority
from ipamd.metrics.catalogue import ALERTED, METRICS
from ipamd.metrics.sources import Sources, Standing
from ipamd.pool.model import Reason
from ipamd.pool.queue import WaitsFor
from ipamd.process.start import Phase
from ipamd.telemetry.conditions import KINDS
from ipamd.telemetry.histogram import Histogram

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily | InfoMetricFamily

_KINDS = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily, "histogram": HistogramMetricFamily}


class DaemonCollector(Collector):
    """For the thread of the event loop alone. `pool` returns None until there is a pool; its metrics are left out
    then."""

    def __init__(self, standing: Standing, pool: Callable[[], Sources | None]) -> None:
        self._of = standing
        self._pool = pool

    def collect(self) -> Iterator[Family]:
        sources = self._pool()
        if sources is None:
            yield _single("ipamd_ready", 0)
        else:
            yield from _PoolFamilies(sources).collect()
        start = self._of.start
        yield _single("ipamd_started", start.phase is None)
        yield _family("ipamd_start_phase", (((phase.value,), phase is start.phase) for phase in Phase))
        yield _single("ipamd_start_tries", start.tries)
        refusals = self._of.refusals
        yield _family("ipamd_refusals_total", (((str(reason),), refusals[reason]) for reason in Reason))
        yield _histograms("ipamd_rpc_seconds", self._of.calls.times)
        yield _histograms("ipamd_ledger_commit_seconds", {(): self._of.ledger.commit_times})
        yield _family("ipamd_events_total", (dict.fromkeys(ALERTED, 0) | self._of.history.counts).items())
        active = {condition.name for condition in self._of.conditions.active()}
        yield _family("ipamd_condition", (((name,), name in active) for name in KINDS))


class _PoolFamilies:
    def __init__(self, sources: Sources) -> None:
        self._of = sources

    def collect(self) -> Iterator[Family]:
        yield from self._pool()
        yield from self._waits()
        yield from self._ec2()
        yield from self._host()
        yield from self._daemon()

    def _pool(self) -> Iterator[Family]:
        view, now = self._of.runner.view, self._of.runner.clock()
        pool, enis = view.summary(now), view.enis()
        counts = pool.counts
        states = ("free", "assigned", "cooling", "releasing")
        yield _family("ipamd_addresses", (((state,), getattr(counts, state)) for state in states))
        yield _single("ipamd_addresses_pending", counts.pending)
        yield _single("ipamd_addresses_foreign", sum(eni.foreign for eni in enis))
        yield _single("ipamd_addresses_max", pool.max_pods)
        yield _single("ipamd_addresses_wanted_free", pool.headroom)
        yield _single("ipamd_addresses_room", pool.room)
        yield _single("ipamd_prefixes_foreign", sum(len(eni.prefixes) for eni in enis))
        yield _family("ipamd_enis", (((state.value,), count) for state, count in pool.by_state))
        yield _single("ipamd_enis_max", pool.max_enis)
        known = ((subnet.id, subnet.available) for subnet in view.subnets())
        yield _family("ipamd_subnet_available_addresses", (((s,), free) for s, free in known if free is not None))
        oldest = now if pool.oldest_cooling is None else pool.oldest_cooling
        yield _single("ipamd_cooling_oldest_seconds", now - oldest)
        yield _single("ipamd_cooling_reused_early_total", pool.reused_early)
        yield _single("ipamd_attachments", pool.attachments)
        found = view.troubles()
        yield _single("ipamd_attachments_stranded", sum(trouble.cut_off for trouble in found))
        yield _single("ipamd_attachments_contested", sum(not trouble.cut_off for trouble in found))
        yield _single("ipamd_addresses_withheld", len(pool.withheld))
        yield _single("ipamd_ready", self._of.serving.obstacle() is None)
        refusal = self._of.runner.would_refuse()
        reported = None if refusal is None else refusal.reason
        yield _family("ipamd_would_refuse", (((str(reason),), reason is reported) for reason in Reason))
        yield _single("ipamd_drained", pool.drained is not None)
        reasons = Counter(str(backoff.policy.reason) for backoff in pool.backoffs)
        yield _family("ipamd_backoffs", (((reason,), count) for reason, count in reasons.items()))

    def _waits(self) -> Iterator[Family]:
        now = self._of.runner.clock()
        queue = self._of.runner.view.waiting(now)
        oldest = min((waiting.since for waiting in queue), default=now)
        yield _single("ipamd_waiting", len(queue))
        yield _single("ipamd_waiting_oldest_seconds", now - oldest)
        counts = Counter(waiting.waits_for for waiting in queue)
        yield _family("ipamd_waiting_for", (((str(what),), counts[what]) for what in WaitsFor))
        since = {what: min((w.since for w in queue if w.waits_for is what), default=now) for what in WaitsFor}
        yield _family("ipamd_waiting_for_oldest_seconds", (((str(what),), now - at) for what, at in since.items()))
        yield _histograms("ipamd_time_to_address_seconds", {(): self._of.service.first_tries.waits})

    def _ec2(self) -> Iterator[Family]:
        yield _histograms("ipamd_ec2_call_seconds", self._of.cloud.calls)
        buckets = self._of.budget.view()
        yield _family("ipamd_ec2_throttled_total", (((b.action,), b.throttled) for b in buckets))
        yield _family("ipamd_ec2_budget_rate", (((b.action,), b.rate) for b in buckets))
        each = [
            (bucket, priority, (bucket.action, priority.name.lower())) for bucket in buckets for priority in Priority
        ]
        yield _family("ipamd_ec2_budget_waiting", ((labels, b.waiting[p]) for b, p, labels in each))
        yield _family("ipamd_ec2_budget_calls_total", ((labels, b.waits[p].count) for b, p, labels in each))
        yield _family("ipamd_ec2_budget_delayed_total", ((labels, b.waits[p].delayed) for b, p, labels in each))
        yield _family("ipamd_ec2_budget_wait_seconds_total", ((labels, b.waits[p].total) for b, p, labels in each))

    def _host(self) -> Iterator[Family]:
        health = self._of.reconciler.health()
        yield _single("ipamd_host_repairs_total", health.repairs)
        yield _single("ipamd_host_disputes", len(health.disputes))
        yield _single("ipamd_host_in_order", not health.error)

    def _daemon(self) -> Iterator[Family]:
        yield _single("ipamd_ledger_writable", self._of.runner.unrecorded is None)
        yield _histograms("ipamd_loop_lag_seconds", {(): self._of.runner.lag})
        yield _single("ipamd_started_timestamp_seconds", self._of.started)
        values = (
            ipamd.__version__,
            self._of.identity.instance_id,
            self._of.identity.instance_type,
            self._of.identity.availability_zone,
        )
        metric = METRICS["ipamd_build_info"]
        yield InfoMetricFamily("ipamd_build", metric.meaning, value=dict(zip(metric.labels, values, strict=True)))


def _single(name: str, value: float) -> Family:
    return _family(name, (((), value),))


def _family(name: str, samples: Iterable[tuple[tuple[str, ...], float]]) -> Family:
    metric = METRICS[name]
    family: Any = _KINDS[metric.kind](metric.name, metric.meaning, labels=metric.labels)
    for labels, value in samples:
        family.add_metric(labels, float(value))
    found: Family = family
    return found


def _histograms(name: str, samples: Mapping[Any, Histogram]) -> Family:
    metric = METRICS[name]
    family = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    for labels, histogram in samples.items():
        buckets, below = [], 0
        for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
            below += count
            buckets.append((bound, below))
        family.add_metric(labels, buckets, histogram.total)
    return family
