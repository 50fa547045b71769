"""OpenTelemetry traces: of the calls for pods, and of the operations on EC2 and the host that they wait for.

Off unless `tracing.endpoint` is set, and the packages are imported only then (`pip install 'ipamd[otel]'`). One
operation serves many pods: its span has links to the spans of those that waited when it began.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

import ipamd

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import SpanContext


class TracingUnavailable(Exception):
    """The packages are missing; the message says which to install."""


class Tracer(Protocol):
    def request(self, method: str, request_id: str) -> AbstractContextManager[Facts]:
        """The span of one call; it ends with the block."""

    def operation(self, action: str, requests: Iterable[str]) -> AbstractContextManager[None]:
        """The span of one operation, on behalf of these requests. What the block raises is recorded."""


class Facts(Protocol):
    def set_attribute(self, key: str, value: str) -> object: ...


class _Nothing:
    def set_attribute(self, key: str, value: str) -> None:
        pass


class NoTraces:
    def request(self, method: str, request_id: str) -> AbstractContextManager[Facts]:
        return nullcontext(_NOTHING)

    def operation(self, action: str, requests: Iterable[str]) -> AbstractContextManager[None]:
        return nullcontext()


_NOTHING = _Nothing()


class Traces:
    """`processor` takes the spans that have ended; `host` are the attributes of the machine, as `host.id`."""

    def __init__(self, processor: SpanProcessor, host: Mapping[str, str]) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        attributes = {"service.name": "ipamd", "service.version": ipamd.__version__, **host}
        self._provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("ipamd")
        self._open: dict[str, SpanContext] = {}

    @contextmanager
    def request(self, method: str, request_id: str) -> Iterator[Facts]:
        from opentelemetry.trace import SpanKind

        with self._tracer.start_as_current_span(method, kind=SpanKind.SERVER) as span:
            span.set_attribute("ipamd.request_id", request_id)
            self._open[request_id] = span.get_span_context()
            try:
                yield span
            finally:
                del self._open[request_id]

    @contextmanager
    def operation(self, action: str, requests: Iterable[str]) -> Iterator[None]:
        from opentelemetry.context import Context
        from opentelemetry.trace import Link, SpanKind

        links = [Link(self._open[request]) for request in requests if request in self._open]
        # A context of its own: it belongs to no single one of the requests.
        with self._tracer.start_as_current_span(action, Context(), kind=SpanKind.CLIENT, links=links):
            yield

    def close(self) -> None:
        """Hand over what has ended. It may take as long as the collector does: not for the event loop."""
        self._provider.shutdown()


def to_collector(endpoint: str, host: Mapping[str, str]) -> Traces:
    """`endpoint` takes OTLP over HTTP, as http://127.0.0.1:4318; `host` as for `Traces`. Spans go out from a thread
    of their own; what a collector does not take is lost. Raises `TracingUnavailable`."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as missing:
        raise TracingUnavailable(
            f"tracing.endpoint is set, and the package {missing.name} is missing: pip install 'ipamd[otel]'"
        ) from None
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=5)
    return Traces(BatchSpanProcessor(exporter), host)
