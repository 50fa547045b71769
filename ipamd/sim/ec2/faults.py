"""Faults on demand and the record of all calls: how a test makes the cloud misbehave, and sees what was asked."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from aiohttp import web

from ipamd.sim.ec2.wire import service_model

ANY: Final = "*"
IMDS: Final = "imds"
NO_ANSWER: Final = "timeout"

_EC2_CODE: Final = re.compile(r"[A-Z][A-Za-z]+(\.[A-Z][A-Za-z]+)?")
_HTTP_STATUS: Final = re.compile(r"[45]\d\d")
_LONGEST: Final = 3600.0
_HANG_UP_CHECK: Final = 0.1  # seconds; aiohttp doesn't tell a handler that the client has gone


class NoAnswer(Exception):
    """The connection is gone: nothing can be answered any more."""


class FaultError(ValueError):
    """What was asked for is no fault; the message says what to write."""


@dataclass(slots=True)
class Fault:
    """What befalls the next `times` calls of `action` (None: all until it is cleared).

    `action` is EC2's name of a call, `ANY` for all of them, or `IMDS` for metadata reads and tokens.
    `error` is the code of EC2's error; for IMDS an HTTP status; `NO_ANSWER`: the connection is dropped after
    `delay` without an answer, or left open until the client hangs up when there is no delay; empty: none.
    `delay` in seconds comes before the call takes effect, unless `after_effect`: then the call takes effect, and
    only its answer is late or replaced by the error.
    """

    action: str
    error: str = ""
    times: int | None = None
    delay: float | None = None
    after_effect: bool = False

    @classmethod
    def parse(cls, document: object) -> Fault:
        """From the JSON of the control API: action, error, times, delay_s, after_effect. Raises `FaultError`."""
        if not isinstance(document, Mapping):
            raise FaultError('expected an object like {"action": "CreateNetworkInterface", "error": "InternalError"}')
        if unknown := sorted(set(document) - {"action", "error", "times", "delay_s", "after_effect"}):
            raise FaultError(f"unknown keys: {', '.join(unknown)}")
        action, error = document.get("action"), document.get("error", "")
        if not isinstance(action, str) or action not in (ANY, IMDS, *service_model().operation_names):
            raise FaultError(f'action: expected the name of an EC2 call, "{ANY}" or "{IMDS}", got {action!r}')
        code = _HTTP_STATUS if action == IMDS else _EC2_CODE
        if not isinstance(error, str) or not (error in ("", NO_ANSWER) or code.fullmatch(error)):
            what = 'an HTTP status like "503"' if action == IMDS else "an EC2 error code like RequestLimitExceeded"
            raise FaultError(f'error: expected {what}, or "{NO_ANSWER}", got {error!r}')
        times, delay = document.get("times"), document.get("delay_s")
        if times is not None and (type(times) is not int or times < 1):
            raise FaultError(f"times: expected a number of calls, at least 1, got {times!r}")
        if delay is not None and (type(delay) not in (int, float) or not 0 <= delay <= _LONGEST):
            raise FaultError(f"delay_s: expected seconds, 0 to {_LONGEST:.0f}, got {delay!r}")
        after = document.get("after_effect", False)
        if type(after) is not bool:
            raise FaultError(f"after_effect: expected true or false, got {after!r}")
        if not error and delay is None:
            raise FaultError("a fault needs an error, a delay_s, or both")
        return cls(action, error, times, delay, after)


class Faults:
    """Those in force, in the order in which they were asked for."""

    def __init__(self) -> None:
        self._active: list[Fault] = []

    def add(self, fault: Fault) -> None:
        self._active.append(fault)

    def clear(self) -> None:
        self._active.clear()

    def take(self, action: str) -> Fault | None:
        """The first fault that is for this call, used up by one."""
        for fault in self._active:
            if fault.action == action or (fault.action == ANY and action != IMDS):
                if fault.times is not None:
                    fault.times -= 1
                    if not fault.times:
                        self._active.remove(fault)
                return fault
        return None


async def suffer(fault: Fault, request: web.Request) -> str:
    """Let a fault's time pass; returns its error, which is for the caller to answer with. Raises `NoAnswer`."""
    if fault.error != NO_ANSWER:
        await asyncio.sleep(fault.delay or 0)
        return fault.error
    end = None if fault.delay is None else time.monotonic() + fault.delay
    while (transport := request.transport) is not None and not transport.is_closing():
        left = _HANG_UP_CHECK if end is None else end - time.monotonic()
        if left <= 0:
            transport.abort()
            break
        await asyncio.sleep(min(left, _HANG_UP_CHECK))
    raise NoAnswer


@dataclass(frozen=True, slots=True)
class Call:
    """An EC2 call that is over. `time` is when it came (seconds since the epoch); `outcome` is "ok", an EC2 error
    code or "timeout"; `instance` is None when its credentials are not known."""

    time: float
    instance: str | None
    action: str
    outcome: str


class CallLog:
    def __init__(self) -> None:
        self._calls: list[Call] = []

    def record(self, came: float, instance: str | None, action: str, outcome: str) -> None:
        self._calls.append(Call(came, instance, action, outcome))

    def clear(self) -> None:
        self._calls.clear()

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(call) for call in self._calls]
