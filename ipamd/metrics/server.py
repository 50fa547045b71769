"""A small HTTP server: /metrics for Prometheus, /healthz and /readyz for kubelet's probes and load balancers.

It comes after all that pods wait for, and is never worth the daemon's end: if its port is taken, the log says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from ipamd.conditions import Conditions
from ipamd.metrics.collector import DaemonCollector
from ipamd.serving import Serving

log = structlog.get_logger("ipamd.metrics")


@asynccontextmanager
async def serving(
    listen: str, collector: DaemonCollector, serving: Serving, conditions: Conditions
) -> AsyncIterator[None]:
    """`listen` is "address:port", or "[address]:port" for IPv6."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    ProcessCollector(registry=registry)
    host, _, port = listen.rpartition(":")
    application = web.Application()
    application.add_routes(
        [
            web.get("/metrics", _Metrics(registry)),
            web.get("/healthz", _alive),
            web.get("/readyz", _Ready(serving)),
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
            conditions.begin(
                "metrics.not_served",
                f"Metrics are not served at {listen}: {reason}. Free that port, or set metrics.listen.",
                listen=listen,
                error=reason,
            )
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
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def __call__(self, request: web.Request) -> web.Response:
        """Whether the daemon can do its work: also on a full node, where no rollout of ipamd should hang."""
        obstacle = self._serving.obstacle()
        if obstacle is None:
            return web.Response(text="ready\n")
        return web.Response(status=503, text=f"{obstacle}\n")
