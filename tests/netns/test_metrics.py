"""A real daemon's metrics, scraped over HTTP and read by Prometheus' own parser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from ipamd.api.v1 import ipam_pb2
from ipamd.metrics.catalogue import METRICS
from ipamd.sim import netns
from tests.netns.boxed import Daemon, add_route, box, cni_call, control

pytestmark = pytest.mark.netns

# In the node's own namespace, where nobody else listens.
HERE = "http://127.0.0.1:61678"
FETCH = (
    "import sys, urllib.request, urllib.error\n"
    "try: r = urllib.request.urlopen(sys.argv[1], timeout=5); code = r.status\n"
    "except urllib.error.HTTPError as e: r, code = e, e.code\n"
    "print(code); sys.stdout.write(r.read().decode())"
)


async def get(daemon: Daemon, path: str) -> tuple[int, str]:
    """Status and body. The port opens beside the rest of the start, possibly after it."""
    await daemon.seen("metrics.serving")
    answer = await netns.command("ip", "netns", "exec", daemon.node.netns, "python3", "-c", FETCH, f"{HERE}{path}")
    code, _, body = answer.partition("\n")
    return int(code), body


async def scrape(daemon: Daemon) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    code, body = await get(daemon, "/metrics")
    assert code == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


def value(samples: dict[Any, float], name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


async def test_a_scrape_tells_what_happened(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_WARM_IPS=3, POOL_COOLDOWN=600, POOL_REUSE_COOLING_AFTER=600) as (
        daemon,
        vpc,
    ):
        await daemon.ready()
        await daemon.settled(free=3)
        for name in ("a", "b"):
            await daemon.ipam.Allocate(ipam_pb2.AllocateRequest(cni=cni_call(name)), timeout=5)
        await daemon.release("b")
        await daemon.ipam.Release(ipam_pb2.ReleaseRequest(cni=cni_call("b")), timeout=5)
        await daemon.settled(free=3)
        samples = await scrape(daemon)
        states = {state: value(samples, "ipamd_addresses", state=state) for state in ("free", "assigned", "cooling")}
        assert states == {"free": 3, "assigned": 1, "cooling": 1}
        assert value(samples, "ipamd_enis", state="ready") == 1 and value(samples, "ipamd_enis_max") == 3
        assert value(samples, "ipamd_addresses_max") == 27 and value(samples, "ipamd_ready") == 1
        assert value(samples, "ipamd_time_to_address_seconds_count") == 2
        assert value(samples, "ipamd_rpc_seconds_count", method="Ipam/Allocate", code="OK") == 2
        assert value(samples, "ipamd_ec2_call_seconds_count", action="AssignPrivateIpAddresses", outcome="ok") >= 1
        assert value(samples, "ipamd_events_total", event="attachment.granted", level="info") == 2
        assert value(samples, "ipamd_events_total", event="attachment.recovered", level="warning") == 0
        assert value(samples, "ipamd_refusals_total", reason="NOT_AUTHORIZED") == 0
        assert value(samples, "ipamd_ledger_commit_seconds_count") >= 3
        assert value(samples, "ipamd_loop_lag_seconds_count") >= 3
        assert 0 < value(samples, "process_resident_memory_bytes") < 200e6
        info = next(dict(labels) for name, labels in samples if name == "ipamd_build_info")
        assert info["instance_id"] == daemon.node.instance_id and set(info) == set(METRICS["ipamd_build_info"].labels)

        denied = ("AssignPrivateIpAddresses", "CreateNetworkInterface")
        await control(vpc, "faults", [{"action": action, "error": "UnauthorizedOperation"} for action in denied])
        for number in range(4):
            late = ipam_pb2.AllocateRequest(cni=cni_call(f"late-{number}"), deadline_ms=2000)
            try:
                await daemon.ipam.Allocate(late, timeout=5)
            except grpc.aio.AioRpcError:
                break
        samples = await scrape(daemon)
        assert value(samples, "ipamd_refusals_total", reason="NOT_AUTHORIZED") == 1
        assert value(samples, "ipamd_backoffs", reason="NOT_AUTHORIZED") >= 1
        assert value(samples, "ipamd_ready") == 1
        assert value(samples, "ipamd_would_refuse", reason="NOT_AUTHORIZED") == 1
        assert value(samples, "ipamd_would_refuse", reason="ENI_LIMIT") == 0
        assert await get(daemon, "/readyz") == (200, "ready\n")
        assert await get(daemon, "/healthz") == (200, "alive\n")
        told = {name for name, _ in samples}
        assert {name for name in METRICS if not any(t.startswith(name) for t in told)} <= {
            "ipamd_subnet_available_addresses",  # nobody had to ask
        }


async def assert_ready_and_refusing(daemon: Daemon, reason: str) -> None:
    """All that probes read says that the daemon works, and a metric has the reason."""
    assert await get(daemon, "/readyz") == (200, "ready\n")
    checked = await health_pb2_grpc.HealthStub(daemon.channel).Check(health_pb2.HealthCheckRequest())
    assert checked.status == health_pb2.HealthCheckResponse.SERVING
    samples = await scrape(daemon)
    assert value(samples, "ipamd_ready") == 1
    assert value(samples, "ipamd_would_refuse", reason=reason) == 1


async def test_a_full_node_is_ready_before_and_after_a_restart(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, type="t3.nano", POOL_WARM_IPS=0) as (daemon, _):
        await daemon.ready()
        for name in ("a", "b"):  # an ENI each
            await add_route(daemon.node, name, await daemon.address(name))
        await assert_ready_and_refusing(daemon, "ENI_LIMIT")
        await daemon.stop()
        await daemon.ready()
        await assert_ready_and_refusing(daemon, "ENI_LIMIT")


async def test_a_node_without_a_free_address_is_ready_after_a_restart(tmp_path: Path, prefix: str) -> None:
    """Nothing is assigned either: what it had was released a moment ago."""
    cooling = {"POOL_COOLDOWN": 600, "POOL_REUSE_COOLING_AFTER": 600}
    async with box(tmp_path, prefix, type="t3.nano", POOL_WARM_IPS=0, **cooling) as (daemon, _):
        await daemon.ready()
        for name in ("a", "b"):
            await daemon.allocate(name)
        for name in ("a", "b"):
            await daemon.release(name)
        daemon.settings["IPAMD_POOL_WARM_IPS"] = "1"
        await daemon.stop()
        await daemon.ready()
        await assert_ready_and_refusing(daemon, "ALL_COOLING")


async def test_a_port_that_is_taken_is_said_and_harms_nobody(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        daemon.settings["IPAMD_METRICS_LISTEN"] = "192.0.2.1:9"  # no address of this node
        await daemon.ready()
        event = await daemon.seen("metrics.not_served")
        assert event["level"] == "error" and event["listen"] == "192.0.2.1:9"
        assert await daemon.address("a")


async def test_nothing_is_served_if_nothing_is_asked_for(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, METRICS_LISTEN="") as (daemon, _):
        await daemon.ready()
        await daemon.address("a")
        assert not daemon.events("metrics.serving", "metrics.not_served")
