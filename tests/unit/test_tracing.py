"""Spans of requests and operations, and how they are linked; off, nothing of the packages is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ipamd.telemetry import tracing
from ipamd.telemetry.tracing import NoTraces, Traces, TracingUnavailable

HOST = {"host.id": "i-1", "cloud.region": "eu-central-1", "cloud.availability_zone": "eu-central-1a"}


def test_an_operation_is_linked_to_the_requests_that_wait_for_it() -> None:
    kept = InMemorySpanExporter()
    traces = Traces(SimpleSpanProcessor(kept), HOST)
    with traces.request("Allocate", "r-1") as facts:
        facts.set_attribute("k8s.pod.name", "web")
        with traces.operation("AssignPrivateIpAddresses", ("r-1", "r-unknown")):
            pass
    with pytest.raises(ZeroDivisionError), traces.operation("CreateNetworkInterface", ("r-1",)):
        raise ZeroDivisionError
    assign, allocate, create = kept.get_finished_spans()
    assert (allocate.name, assign.name) == ("Allocate", "AssignPrivateIpAddresses")
    assert dict(allocate.attributes or {}) == {"ipamd.request_id": "r-1", "k8s.pod.name": "web"}
    assert [link.context for link in assign.links] == [allocate.context]
    assert assign.parent is None, "it belongs to no single request"
    assert not create.links and not create.status.is_ok and create.events[0].name == "exception"
    assert allocate.resource.attributes["host.id"] == "i-1"
    traces.close()


def test_off_costs_no_import() -> None:
    check = (
        "import sys, ipamd.telemetry.tracing, ipamd.shell.assembly; "
        "sys.exit(any(m.startswith('opentelemetry') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
    off = NoTraces()
    with off.request("Allocate", "r-1") as facts, off.operation("CreateNetworkInterface", ()):
        facts.set_attribute("ipamd.address", "10.0.0.7")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(TracingUnavailable, match=r"pip install 'ipamd\[otel\]'"):
        tracing.to_collector("http://127.0.0.1:4318", HOST)
