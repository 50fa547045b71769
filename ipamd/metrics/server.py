"""A small HTTP server: /metrics for Prometheus, /healthz and /readyz for kubelet's probes and load balancers.

It is there from the settings on, as it is wanted most while the daemon can't start. It is never worth the daemon's
end: if its port is taken, that is a condition, and the port is tried again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from ipamd.metrics.collector import DaemonCollector
from ipamd.process.supervision import Unserved

log = structlog.get_logger("ipamd.metrics")


@asynccontextmanager
async def serving(listen: str, collector: DaemonCollector, obstacle: Callable[[], str]) -> AsyncIterator[None]:
    """`listen` is "address:port", or "[address]:port" for IPv6. `obstacle`: why the node is not ready; empty: it is.
    Raises `Unserved`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    ProcessCollector(registry=registry)
    host, _, port = listen.rpartition(":")
    application = web.Application()
    application.add_routes(
        [
            web.get("/metrics", _Metrics(registry)),
            web.get("/healthz", _alive),
            web.get("/readyz", _Ready(obstacle)),
        ]
    )
    running = web.AppRunner(application, access_log=None, handle_signals=False)
    await running.setup()
    try:
        try:
            await web.TCPSite(running, host.strip("[]"), int(port), shutdown_timeout=0.1).start()
            log.info("metrics.serving", listen=listen)
        except OSError as error:
            reason = error.strerror or str(error)
            text = f"Metrics are not served at {listen}: {reason}. Free that port, or set metrics.listen."
            raise Unserved(text, listen=listen, error=reason) from None
        yield
    finally:
        await running.cleanup()


class _Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    async def __call__(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})


async def _alive(request: web.Request) -> web.Response:
    """That it answers is the news: the loop turns. A pool that has failed ends the process."""
    return web.Response(text="alive\n")


class _Ready:
    def __init__(self, obstacle: Callable[[], str]) -> None:
        self._obstacle = obstacle

    async def __call__(self, request: web.Request) -> web.Response:
        """Whether the daemon can do its work: also on a full node, where no rollout of ipamd should hang."""
        if obstacle := self._obstacle():
            return web.Response(status=503, text=f"{obstacle}\n")
        return web.Response(text="ready\n")
