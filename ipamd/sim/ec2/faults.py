"""Faults on demand and the record of all calls: how a test makes the cloud misbehave, and sees what was asked.

A list of faults is a script: each has its own conditions (a time, a number of calls, chance) and effect.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from aiohttp import web

from ipamd.sim.ec2.wire import service_model

ANY: Final = "*"
IMDS: Final = "imds"
NO_ANSWER: Final = "timeout"
STUCK: Final = "stuck"
HELD: Final = "held"
PARTIAL: Final = "partial"
OMIT: Final = "omit"
ANSWER: Final = "answer"
LACKS: Final = "lacks"
FORBIDDEN: Final = "UnauthorizedOperation"

_EC2_CODE: Final = re.compile(r"[A-Z][A-Za-z]+(\.[A-Z][A-Za-z]+)?")
_HTTP_STATUS: Final = re.compile(r"[45]\d\d")
_LONGEST: Final = 3600.0
_HANG_UP_CHECK: Final = 0.1  # seconds; aiohttp doesn't tell a handler that the client has gone
_KEYS: Final = frozenset(
    {"action", "error", "times", "delay_s", "after_effect", "eni_id"}
    | {"after_s", "for_s", "after_calls", "probability", "seed"}
    | {"message", "element", "path", "status", "content_type", "body"}
)
_ANY_CALL: Final = (NO_ANSWER, HELD, ANSWER)
_TAKES_SPECIAL: Final = {
    STUCK: re.compile("AttachNetworkInterface|DetachNetworkInterface"),
    PARTIAL: re.compile("AssignPrivateIpAddresses|Describe.*"),
    OMIT: re.compile(IMDS),
    LACKS: re.compile(r"[A-Z]\w+"),
}
_MESSAGE: Final = "This error was asked for by a fault."


class NoAnswer(Exception):
    """The connection is gone: nothing can be answered any more."""


class FaultError(ValueError):
    """What was asked for is no fault; the message says what to write."""


class Answered(Exception):
    """This takes the place of the double's own answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer in the place of the one that was due."""

    status: int = 200
    content_type: str = "text/html"
    body: str = ""

    @classmethod
    def parse(cls, document: Mapping[str, object]) -> Answer:
        """Raises `FaultError`."""
        status = document.get("status", 200)
        texts = [document.get(key, default) for key, default in (("content_type", "text/html"), ("body", ""))]
        if type(status) is not int or not 200 <= status <= 599:
            raise FaultError(f"status: expected an HTTP status, 200 to 599, got {status!r}")
        for text in texts:
            if not isinstance(text, str):
                raise FaultError(f"content_type, body: expected a text, got {text!r}")
        return cls(status, *map(str, texts))

    def response(self) -> web.Response:
        return web.Response(status=self.status, text=self.body, headers={"Content-Type": self.content_type})


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done to the next `times` calls of `action` (None: all until it is cleared).

    `action` is EC2's name of a call, `ANY` for all of them, or `IMDS` for metadata reads and tokens.
    `delay` in seconds comes before the call takes effect, unless `after_effect`: then the call takes effect, and
    only its answer is late or replaced by the error.
    `error` is the code of EC2's error; for IMDS an HTTP status; empty: none; or one of these:

    - `NO_ANSWER`: the connection is dropped after `delay` without an answer, or left open until the client hangs up
      when there is no delay.
    - `HELD`: the call, or with `after_effect` its answer, is held up until the faults are cleared. Then it goes on as
      if nothing had been, also when the client has hung up meanwhile: a packet that outlives its sender.
    - `STUCK` (attach and detach): the call succeeds, and the ENI stays attaching or detaching for `delay` longer;
      without it until the faults are cleared or it is detached by force, which never gets stuck.
    - `PARTIAL`: AssignPrivateIpAddresses gives half of the addresses that were asked for. EC2 isn't known to do that,
      but its reply names the addresses because only that may be believed. A page of a Describe call comes empty, with
      the token of the next one: MaxResults is a page's most, and nothing promises its least.
    - `OMIT` (IMDS): metadata has no entry for the ENI `eni`; empty: for none but the primary one
      (aws/amazon-vpc-cni-k8s#1967, #3821).

    - `ANSWER`: the answer is `answer`, as of a proxy, a captive portal, or EC2 in a bad moment. With a
      `path` it strikes only reads of metadata whose path ends with it.
    - `LACKS` (EC2): the call takes effect, and its reply comes without the elements of the name `element`.

    `message` is what EC2 says with a code.

    Only `FORBIDDEN` strikes a call with DryRun: a permission that is not there. It changes nothing, and uses up no
    fault.

    All of these have to be met, in this order, before it strikes: `after` seconds have passed since it was asked
    for, `after_calls` more calls that it is for have come, and then for each call a chance of `probability`, drawn
    from a generator of its own with `seed`. `lasting` seconds after `after` it ends (None: never).
    """

    action: str
    error: str = ""
    times: int | None = None
    delay: float | None = None
    after_effect: bool = False
    after: float = 0.0
    lasting: float | None = None
    after_calls: int = 0
    probability: float = 1.0
    seed: int = 0
    eni: str = ""
    message: str = _MESSAGE
    element: str = ""
    path: str = ""
    answer: Answer | None = None

    def __post_init__(self) -> None:
        """Raises `FaultError` for what does not go together."""
        special = _TAKES_SPECIAL.get(self.error)
        if special and not special.fullmatch(self.action):
            raise FaultError(f'error: "{self.error}" is for {special.pattern.replace("|", " and ")} only')
        if special and self.after_effect:
            raise FaultError(f'after_effect: "{self.error}" is neither before nor after the effect')
        if (self.element != "") != (self.error == LACKS):
            raise FaultError(f'element: goes with the error "{LACKS}", and with no other')
        if (self.answer is not None) != (self.error == ANSWER):
            raise FaultError(f'status, content_type, body: go with the error "{ANSWER}", and with no other')
        if self.path and (self.action != IMDS or self.error != ANSWER):
            raise FaultError(f'path: goes with the action "{IMDS}" and the error "{ANSWER}" only')
        if self.error in (HELD, PARTIAL, OMIT) and self.delay is not None:
            raise FaultError(f'delay_s: "{self.error}" has no time of its own; use a second fault')
        if self.eni and self.error != OMIT:
            raise FaultError(f'eni_id goes with the error "{OMIT}" only')
        if not self.error and self.delay is None:
            raise FaultError("a fault needs an error, a delay_s, or both")

    @classmethod
    def parse(cls, document: object) -> Fault:
        """From the JSON of the control API; `delay`, `after` and `lasting` are `delay_s`, `after_s` and `for_s`
        there, and `eni` is `eni_id`. Raises `FaultError`."""
        if not isinstance(document, Mapping):
            raise FaultError('expected an object like {"action": "CreateNetworkInterface", "error": "InternalError"}')
        if unknown := sorted(set(document) - _KEYS):
            raise FaultError(f"unknown keys: {', '.join(unknown)}")
        action, error = document.get("action"), document.get("error", "")
        if not isinstance(action, str) or action not in (ANY, IMDS, *service_model().operation_names):
            raise FaultError(f'action: expected the name of an EC2 call, "{ANY}" or "{IMDS}", got {action!r}')
        code = _HTTP_STATUS if action == IMDS else _EC2_CODE
        if not isinstance(error, str) or not (error in ("", *_ANY_CALL, *_TAKES_SPECIAL) or code.fullmatch(error)):
            what = 'an HTTP status like "503"' if action == IMDS else "an EC2 error code like RequestLimitExceeded"
            special = ", ".join(f'"{name}"' for name in (*_ANY_CALL, *_TAKES_SPECIAL))
            raise FaultError(f"error: expected {what}, or one of {special}, got {error!r}")
        for key in ("message", "element", "path"):
            if not isinstance(document.get(key, ""), str):
                raise FaultError(f"{key}: expected a text, got {document[key]!r}")
        after_effect, eni = document.get("after_effect", False), document.get("eni_id", "")
        if type(after_effect) is not bool:
            raise FaultError(f"after_effect: expected true or false, got {after_effect!r}")
        if not isinstance(eni, str):
            raise FaultError(f"eni_id: expected the id of an ENI, got {eni!r}")
        return cls(
            action,
            error,
            _whole(document, "times", 1),
            _number(document, "delay_s", _LONGEST),
            after_effect,
            after=_number(document, "after_s", _LONGEST) or 0.0,
            lasting=_number(document, "for_s", _LONGEST),
            after_calls=_whole(document, "after_calls", 0) or 0,
            probability=1.0 if (chance := _number(document, "probability", 1.0)) is None else chance,
            seed=_whole(document, "seed", 0) or 0,
            eni=eni,
            message=document.get("message", _MESSAGE),
            element=document.get("element", ""),
            path=document.get("path", ""),
            answer=Answer.parse(document) if error == ANSWER else None,
        )


def _whole(document: Mapping[str, object], key: str, least: int) -> int | None:
    value = document.get(key)
    if value is None:
        return None
    if type(value) is not int or value < least:
        raise FaultError(f"{key}: expected a whole number, at least {least}, got {value!r}")
    return value


def _number(document: Mapping[str, object], key: str, most: float) -> float | None:
    value = document.get(key)
    if value is None:
        return None
    if not (isinstance(value, int | float) and type(value) is not bool and 0 <= value <= most):
        raise FaultError(f"{key}: expected a number, 0 to {most:.0f}, got {value!r}")
    return float(value)


class _Armed:
    """A fault since it was asked for."""

    def __init__(self, fault: Fault, now: float) -> None:
        self.fault = fault
        self.struck = 0
        self._from = now + fault.after
        self._chance = random.Random(fault.seed)
        self._calls = 0

    def over(self, now: float) -> bool:
        return self.struck == self.fault.times or (
            self.fault.lasting is not None and now >= self._from + self.fault.lasting
        )

    def begun(self, now: float) -> bool:
        return now >= self._from

    def due(self, now: float) -> bool:
        """For one more call that the fault is for."""
        if not self.begun(now):
            return False
        self._calls += 1
        return self._calls > self.fault.after_calls and self._chance.random() < self.fault.probability

    def strike(self) -> Fault:
        self.struck += 1
        return self.fault


class Faults:
    """Those in force, in the order in which they were asked for."""

    def __init__(self) -> None:
        self._armed: list[_Armed] = []
        self._cleared = asyncio.Event()

    def add(self, fault: Fault) -> None:
        self._armed.append(_Armed(fault, time.monotonic()))

    def clear(self) -> None:
        self._armed.clear()
        self._cleared.set()
        self._cleared = asyncio.Event()

    def as_json(self) -> list[dict[str, Any]]:
        """Those in force, and how often each has struck: also for calls that are still under way."""
        return [
            {"action": fault.action, "error": fault.error, "after_effect": fault.after_effect, "struck": armed.struck}
            for armed, fault in self._current()
        ]

    def take(self, action: str, path: str = "") -> Fault | None:
        """The first fault that strikes this call, used up by one. `path`: of a read of metadata."""
        due = [
            armed
            for armed, fault in self._current()
            if (fault.action == action or (fault.action == ANY and action != IMDS)) and fault.error != OMIT
            if path.endswith(fault.path)
            if armed.due(time.monotonic())
        ]
        return due[0].strike() if due else None

    def forbids(self, action: str) -> Fault | None:
        """The fault that denies this action to a dry run, which has no effect that another could disturb. None is
        used up."""
        denials = (
            fault
            for armed, fault in self._current()
            if fault.action in (action, ANY) and fault.error == FORBIDDEN and armed.begun(time.monotonic())
        )
        return next(denials, None)

    async def suffer(self, fault: Fault, request: web.Request) -> str:
        """Let a fault's time pass; returns its error, which is for the caller to answer with. Raises `NoAnswer` and
        `Answered`."""
        if fault.answer is not None:
            await asyncio.sleep(fault.delay or 0)
            raise Answered(fault.answer)
        if fault.error == HELD:
            await self._cleared.wait()
            return ""
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

    def omissions(self) -> set[str]:
        """What one read of metadata has to leave out: ids of ENIs, and "" for all but the primary one."""
        return {
            armed.strike().eni
            for armed, fault in self._current()
            if fault.error == OMIT and armed.due(time.monotonic())
        }

    def _current(self) -> Iterator[tuple[_Armed, Fault]]:
        now = time.monotonic()
        self._armed = [armed for armed in self._armed if not armed.over(now)]
        return ((armed, armed.fault) for armed in self._armed)


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
