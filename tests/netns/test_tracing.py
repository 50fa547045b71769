"""A real daemon's spans, as a collector gets them: OTLP over HTTP, read with OpenTelemetry's own messages."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ipamd.api.v1 import ipam_pb2
from ipamd.sim.runtimes.process import Child, inside
from tests.netns.boxed import box, cni_call

pytestmark = pytest.mark.netns

# Keeps the body of each POST in a file of its own.
COLLECTOR = """
import gzip, itertools, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
numbers = itertools.count()
class Keep(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        assert self.path == "/v1/traces"
        open(f"{sys.argv[1]}/{next(numbers)}", "wb").write(body)
        self.send_response(200)
        self.end_headers()
HTTPServer(("127.0.0.1", 4318), Keep).serve_forever()
"""


async def test_a_pods_wait_and_the_calls_for_it_reach_a_collector(tmp_path: Path, prefix: str) -> None:
    bodies = tmp_path / "bodies"
    bodies.mkdir()
    settings = {"POOL_WARM_IPS": 0, "TRACING_ENDPOINT": "http://127.0.0.1:4318"}
    async with box(tmp_path / "box", prefix, **settings) as (daemon, _):
        collector = await Child.start(
            inside(daemon.node.netns, sys.executable, "-c", COLLECTOR, str(bodies)), tmp_path / "collector.log", {}
        )
        try:
            await daemon.ready()
            await daemon.ipam.Allocate(ipam_pb2.AllocateRequest(cni=cni_call("web")), timeout=10)
            await daemon.stop()  # hands over what has ended
        finally:
            await collector.stop(5)
    spans = [
        span
        for body in await asyncio.to_thread(lambda: [file.read_bytes() for file in bodies.iterdir()])
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    [allocate] = [span for span in spans if span.name == "Allocate"]
    facts = {fact.key: fact.value.string_value for fact in allocate.attributes}
    assert (facts["k8s.namespace.name"], facts["k8s.pod.name"]) == ("shop", "web") and facts["ipamd.address"]
    linked = [s.name for s in spans if any(link.span_id == allocate.span_id for link in s.links)]
    assert linked == ["AssignPrivateIpAddresses"]


async def test_a_collector_that_is_not_there_costs_nobody_anything(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, TRACING_ENDPOINT="http://127.0.0.1:4318") as (daemon, _):
        await daemon.ready()
        assert await daemon.address("a")
