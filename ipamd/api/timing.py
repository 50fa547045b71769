"""How long each call took, by method and outcome."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc

from ipamd.telemetry.histogram import MILLISECONDS, SECONDS, Histogram

Behaviour = Callable[[Any, Any], Awaitable[Any]]

# An Allocate may wait for EC2; its bounds have to reach that far.
_BOUNDS = tuple(sorted({*MILLISECONDS, *SECONDS}))


class CallTimes(grpc.aio.ServerInterceptor):
    """`times`: (method as "Ipam/Allocate", gRPC's name of the status) -> seconds. Streams are not timed: they last as
    long as somebody looks."""

    def __init__(self) -> None:
        self.times: defaultdict[tuple[str, str], Histogram] = defaultdict(partial(Histogram, _BOUNDS))
        self._timed: dict[grpc.RpcMethodHandler[Any, Any], grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        # The server is asked for each call: which methods it has is what authorises its caller.
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        timed = self._timed.get(handler)
        if timed is None:
            timed = self._timed[handler] = grpc.unary_unary_rpc_method_handler(
                self._around(_short(handler_call_details.method), handler.unary_unary),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return timed

    def _around(self, method: str, behaviour: Behaviour) -> Behaviour:
        async def timed(request: Any, context: Any) -> Any:
            started = time.monotonic()
            answer = behaviour(request, context)
            del request
            try:
                return await answer
            except grpc.aio.AbortError as error:
                # The context keeps it, and with its traceback it would keep megabytes that were asked with, until
                # the collector of cycles comes round to them.
                error.__traceback__ = error.__context__ = None
                raise
            finally:
                code = context.code()
                name = code.name if isinstance(code, grpc.StatusCode) else "OK"
                self.times[method, name].observe(time.monotonic() - started)

        return timed


def _short(method: str) -> str:
    """Without the leading slash and the package: /ipamd.v1.Ipam/Allocate."""
    service, _, name = method.rpartition("/")
    return f"{service.rpartition('.')[2]}/{name}"
