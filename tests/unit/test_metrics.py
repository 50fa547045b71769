"""What is measured, and that the pages and the code name the same metrics."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ipamd.api.first_tries import FORGOTTEN_AFTER, REMEMBERED, FirstTries
from ipamd.metrics.catalogue import METRICS, page
from ipamd.pool.model import AttachmentKey, Owner
from ipamd.telemetry.histogram import CALLS, Histogram

ROOT = Path(__file__).resolve().parents[2]


@given(st.lists(st.floats(0, 100)))
def test_each_time_is_counted_where_it_belongs(times: list[float]) -> None:
    histogram = Histogram(CALLS)
    for seconds in times:
        histogram.observe(seconds)
    below = 0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=False):
        below += count
        assert below == sum(seconds <= bound for seconds in times)
    assert histogram.count == len(times) and abs(histogram.total - sum(times)) < 1e-6


def key(container: str, ifname: str = "eth0") -> AttachmentKey:
    return AttachmentKey("ipamd", container, ifname)


def pod(name: str) -> Owner:
    return Owner(pod_name=name, pod_namespace="shop", pod_uid=f"uid-{name}")


def test_pod_with_a_new_sandbox_has_waited_since_its_first_try() -> None:
    tries = FirstTries()
    tries.begun(key("sandbox-1"), pod("web"), 100.0)
    tries.begun(key("sandbox-2"), pod("web"), 130.0)
    tries.granted(key("sandbox-2"), pod("web"), 131.0)
    assert tries.waits.total == 31.0
    tries.begun(key("sandbox-3"), pod("web"), 500.0)  # moved or restarted later: a wait of its own
    tries.granted(key("sandbox-3"), pod("web"), 500.5)
    assert (tries.waits.count, tries.waits.total) == (2, 31.5)


def test_extra_containers_and_interfaces_count_by_themselves() -> None:
    tries = FirstTries()
    tries.begun(key("a"), Owner(), 0.0)
    tries.begun(key("b"), Owner(), 5.0)
    tries.begun(key("b", "eth1"), Owner(), 6.0)
    for name, ifname in (("a", "eth0"), ("b", "eth0"), ("b", "eth1")):
        tries.granted(key(name, ifname), Owner(), 7.0)
    assert (tries.waits.count, tries.waits.total) == (3, 7.0 + 2.0 + 1.0)
    tries.granted(key("a"), Owner(), 9.0)  # never began, or was forgotten
    assert tries.waits.count == 3


def test_what_gave_up_is_forgotten() -> None:
    tries = FirstTries()
    for number in range(2 * REMEMBERED):
        tries.begun(key(f"c{number}"), Owner(), float(number) / 1000)
    assert len(tries._since) == REMEMBERED
    tries.begun(key("late"), Owner(), FORGOTTEN_AFTER + 10)
    assert len(tries._since) == 1


def test_the_page_has_every_metric() -> None:
    assert page() in (ROOT / "docs" / "metrics.md").read_text(), (
        "put ipamd.metrics.catalogue.page() into docs/metrics.md"
    )
    for name, metric in METRICS.items():
        assert name.startswith("ipamd_") and metric.meaning.endswith("."), name
        assert name.endswith("_total") == (metric.kind == "counter"), name
        assert (metric.kind != "histogram") or name.endswith("_seconds")


def test_every_metric_of_the_catalogue_is_exported() -> None:
    sources = [file for file in (ROOT / "ipamd").rglob("*.py") if file.name != "catalogue.py"]
    exporting = "".join(file.read_text() for file in sources)
    assert [name for name in METRICS if f'"{name}"' not in exporting] == []
