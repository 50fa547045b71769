"""The EC2 Query API over HTTP: who calls, what is asked, whether it is too often, which fault is due, and EC2's way
to say yes or no."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from ipamd.sim.ec2 import actions, wire
from ipamd.sim.ec2.cloud import SimulatedCloud
from ipamd.sim.ec2.faults import (
    ANSWER,
    LACKS,
    NO_ANSWER,
    PARTIAL,
    STUCK,
    Answered,
    CallLog,
    Fault,
    Faults,
    NoAnswer,
)
from ipamd.sim.ec2.rules import Ec2Error
from ipamd.sim.ec2.rules.throttle import Throttle


class Ec2Api:
    """`throttle`: None is one that lets all calls pass."""

    def __init__(
        self, cloud: SimulatedCloud, faults: Faults, calls: CallLog, throttle: Throttle | None = None
    ) -> None:
        self._cloud = cloud
        self._throttle = throttle or Throttle()
        self._faults = faults
        self._calls = calls

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/", self._handle)
        return app

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        came = time.time()
        request_id = str(uuid.uuid4())
        form = {name: value for name, value in (await request.post()).items() if isinstance(value, str)}
        action = form.get("Action", "")
        caller: str | None = None
        outcome = "InternalError"  # stays so only if the double itself is at fault
        try:
            caller = self._cloud.keyring.caller(request.headers)
            body = await self._answer(request, form, action, request_id)
            outcome = "ok"
            return _xml(200, body)
        except Ec2Error as error:
            outcome = error.code
            return _xml(error.status, wire.encode_error(request_id, error))
        except NoAnswer:
            outcome = NO_ANSWER
            return web.Response()
        except Answered as other:
            outcome = ANSWER
            return other.answer.response()
        finally:
            self._calls.record(came, caller, action, outcome)

    async def _answer(self, request: web.Request, form: dict[str, str], action: str, request_id: str) -> bytes:
        if not action:
            raise Ec2Error("MissingAction", "The request must contain the parameter Action")
        if form.get("Version") != wire.VERSION:
            raise Ec2Error("NoSuchVersion", f"The requested version {form.get('Version')} is not {wire.VERSION}")
        parameters = wire.decode(action, form)
        self._throttle.take(action, parameters, self._cloud.now())
        fault = self._faults.forbids(action) if parameters.get("DryRun") else self._faults.take(action)
        special = fault.error if fault and fault.error in (STUCK, PARTIAL, LACKS) else ""
        if fault and not special and not fault.after_effect:
            await self._strike(fault, request)
        found = actions.lookup(action, parameters)
        result = await actions.perform(found, self._cloud, _less(parameters) if special == PARTIAL else parameters)
        if fault and special == STUCK and not parameters.get("Force"):
            self._cloud.stick((result or parameters)["AttachmentId"], fault.delay)
        body = wire.encode(action, request_id, result)
        if fault and fault.after_effect:
            await self._strike(fault, request)
        return wire.without(body, fault.element) if fault and special == LACKS else body

    async def _strike(self, fault: Fault, request: web.Request) -> None:
        if error := await self._faults.suffer(fault, request):
            raise Ec2Error(error, fault.message)


def _less(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked of a call that is going to be answered in part: half of the addresses, or none of the page."""
    changed = dict(parameters)
    if (count := parameters.get("SecondaryPrivateIpAddressCount", 0)) > 1:
        changed["SecondaryPrivateIpAddressCount"] = count // 2
    if "MaxResults" in parameters:
        changed["MaxResults"] = 0
    return changed


def _xml(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type="text/xml", charset="utf-8")
