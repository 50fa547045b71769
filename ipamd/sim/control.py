"""The control API: what the cloud looks like from above, every call it got, and how to disturb it.

    GET  /_control/state     ENIs, subnets, instances, as they are and not as Describe calls see them
    GET  /_control/calls     every EC2 call: time, instance, action, outcome
    GET  /_control/faults    those in force, and how often each has struck, calls still under way included; one that
                             has struck as often as it may is no longer in force
    POST /_control/faults    a fault or a list of them, see `ipamd.sim.ec2.faults.Fault`: {"action", "error", "times",
                             "delay_s", "after_effect", "after_s", "for_s", "after_calls", "probability", "seed",
                             "eni_id", "message", "element", "path", "status", "content_type", "body"}
    POST /_control/clear     ends all faults, also of ENIs that are stuck, and lets go the calls that are held; with
                             {"calls": true} empties the record of calls too
    GET  /_control/throttle  request limits: {"on", "rates", "tokens" left in the buckets that were used}
    POST /_control/throttle  {"on": true, "rates": {"CreateNetworkInterface": {"capacity": 2, "refill": 0.5}}}: EC2's
                             published limits except these (see `ipamd.sim.ec2.rules.throttle`); all buckets are full
    POST /_control/lags      {"new_eni": 5}: eventual consistency in seconds, see `ipamd.sim.ec2.consistency.Lags`;
                             what isn't named is 0
    POST /_control/subnets   {"subnet_id", "others": 200}: so many of its addresses are other people's
    POST /_control/ec2       {"action": "AssignPrivateIpAddresses", "parameters": {"NetworkInterfaceId": ...}}: an EC2
                             call by somebody else in the account, without faults and limits. Answers as
                             botocore names it. What a foreign hand can do to a node goes this way (or, from
                             where EC2's endpoint is reached, with the credentials `cloud.keyring.operator`):
                               other people's address on an ENI       AssignPrivateIpAddresses
                               a /28 prefix of another network        AssignPrivateIpAddresses, Ipv4PrefixCount
                               an address goes behind a node's back   UnassignPrivateIpAddresses
                               other people's ENI on the instance     CreateNetworkInterface without the node's tag,
                                                                      AttachNetworkInterface, to another card with
                                                                      NetworkCardIndex
                               an ENI goes behind a node's back       DetachNetworkInterface
                               an instance ends, its ENIs with it     TerminateInstances
                               or left behind

Bodies and replies are JSON. A request that makes no sense, or that EC2 refuses, gets 400 and {"error": why}.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any, Final

from aiohttp import web
from botocore.exceptions import ParamValidationError  # type: ignore[import-untyped]

from ipamd.sim.ec2 import actions, wire
from ipamd.sim.ec2.cloud import SimulatedCloud
from ipamd.sim.ec2.consistency import Lags
from ipamd.sim.ec2.credentials import OPERATOR
from ipamd.sim.ec2.faults import CallLog, Fault, FaultError, Faults
from ipamd.sim.ec2.rules import Ec2Error
from ipamd.sim.ec2.rules.throttle import BARE_READ, CHANGE, READ, Rate, Throttle

_LONGEST: Final = 3600.0  # seconds
_MOST: Final = 1e6  # tokens, and tokens per second


class ControlError(ValueError):
    """What was asked for makes no sense; the message says what to write."""


class Control:
    def __init__(self, cloud: SimulatedCloud, faults: Faults, calls: CallLog, throttle: Throttle) -> None:
        self._cloud = cloud
        self._faults = faults
        self._calls = calls
        self._throttle = throttle

    def application(self) -> web.Application:
        app = web.Application(middlewares=[_answer_errors])
        app.router.add_get("/_control/state", self._state)
        app.router.add_get("/_control/calls", self._list_calls)
        app.router.add_get("/_control/faults", self._list_faults)
        app.router.add_post("/_control/faults", self._add_faults)
        app.router.add_post("/_control/clear", self._clear)
        app.router.add_get("/_control/throttle", self._show_throttle)
        app.router.add_post("/_control/throttle", self._set_throttle)
        app.router.add_post("/_control/lags", self._set_lags)
        app.router.add_post("/_control/subnets", self._set_others)
        app.router.add_post("/_control/ec2", self._call)
        return app

    async def _state(self, request: web.Request) -> web.Response:
        return web.json_response(state(self._cloud))

    async def _list_calls(self, request: web.Request) -> web.Response:
        return web.json_response(self._calls.as_json())

    async def _list_faults(self, request: web.Request) -> web.Response:
        return web.json_response(self._faults.as_json())

    async def _add_faults(self, request: web.Request) -> web.Response:
        document = parse_json(await request.text())
        for fault in parse_script(document if document and isinstance(document, list) else [document]):
            self._faults.add(fault)
        return web.json_response({})

    async def _clear(self, request: web.Request) -> web.Response:
        document = parse_json(await request.text() or "{}")
        if not isinstance(document, dict) or document.keys() - {"calls"}:
            raise ControlError('expected nothing, or {"calls": true}')
        if type(calls := document.get("calls", False)) is not bool:
            raise ControlError(f"calls: expected true or false, got {calls!r}")
        self._faults.clear()
        self._cloud.unstick()
        if calls:
            self._calls.clear()
        return web.json_response({})

    async def _show_throttle(self, request: web.Request) -> web.Response:
        rates = self._throttle.rates
        return web.json_response(
            {
                "on": rates is not None,
                "rates": {name: asdict(rate) for name, rate in (rates or {}).items()},
                "tokens": self._throttle.tokens(self._cloud.now()),
            }
        )

    async def _set_throttle(self, request: web.Request) -> web.Response:
        document = _keys(parse_json(await request.text()), {"on", "rates"}, '{"on": true, "rates": {...}}')
        if type(on := document.get("on")) is not bool:
            raise ControlError(f"on: expected true or false, got {on!r}")
        rates = parse_rates(document.get("rates", {}))
        if on:
            self._throttle.limit(rates)
        else:
            self._throttle.lift()
        return web.json_response({})

    async def _set_lags(self, request: web.Request) -> web.Response:
        names = {field.name for field in fields(Lags)}
        document = _keys(parse_json(await request.text()), names, '{"new_eni": 5}')
        self._cloud.sight.lags = Lags(**{name: _number(name, value, _LONGEST) for name, value in document.items()})
        return web.json_response({})

    async def _set_others(self, request: web.Request) -> web.Response:
        document = _keys(parse_json(await request.text()), {"subnet_id", "others"}, '{"subnet_id", "others": 200}')
        id, others = document.get("subnet_id"), document.get("others")
        if not isinstance(id, str):
            raise ControlError(f"subnet_id: expected the id of a subnet, got {id!r}")
        if type(others) is not int or others < 0:
            raise ControlError(f"others: expected a number of addresses, at least 0, got {others!r}")
        self._cloud.subnets.get(id).others = others
        return web.json_response({})

    async def _call(self, request: web.Request) -> web.Response:
        expected = '{"action": "DescribeSubnets", "parameters": {}}'
        document = _keys(parse_json(await request.text()), {"action", "parameters"}, expected)
        action, given = document.get("action"), document.get("parameters", {})
        if not isinstance(action, str) or not isinstance(given, dict):
            raise ControlError(f"expected an object like {expected}")
        came, outcome = time.time(), "InternalError"
        try:
            parameters = wire.decode(action, wire.encode_request(action, given))
            result = await actions.perform(actions.lookup(action, parameters), self._cloud, parameters)
            outcome = "ok"
        except Ec2Error as error:
            outcome = error.code
            raise
        except ParamValidationError as error:
            outcome = "InvalidParameterValue"
            raise ControlError(" ".join(str(error).split())) from None
        finally:
            self._calls.record(came, OPERATOR, action, outcome)
        return web.json_response(result or {}, dumps=lambda value: json.dumps(value, default=_json_default))


def state(cloud: SimulatedCloud) -> dict[str, Any]:
    """Everything there is, as plain JSON values. `private_ips` are all private addresses, primary first."""
    return {
        "enis": [
            {
                "id": eni.id,
                "instance_id": eni.attachment.instance_id if eni.attachment else None,
                "device_index": eni.attachment.device_index if eni.attachment else None,
                "network_card": eni.attachment.network_card if eni.attachment else None,
                "status": eni.status,
                "attachment_status": eni.attachment.status if eni.attachment else None,
                "delete_on_termination": eni.attachment.delete_on_termination if eni.attachment else None,
                "primary_ip": eni.addresses[0],
                "private_ips": list(eni.addresses),
                "prefixes": list(eni.prefixes),
                "mac": eni.mac,
                "subnet_id": eni.subnet.id,
                "security_groups": [group.id for group in eni.groups],
                "tags": dict(eni.tags),
            }
            for eni in cloud.enis
        ],
        "subnets": [
            {
                "id": subnet.id,
                "cidr": str(subnet.network),
                "zone": subnet.zone,
                "available": subnet.available,
                "others": subnet.others,
            }
            for subnet in cloud.subnets
        ],
        "instances": [
            {"id": one.id, "name": one.name, "type": one.type, "state": one.state} for one in cloud.instances
        ],
    }


def parse_json(text: str) -> object:
    """Raises `ControlError`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ControlError(f"not JSON: {error}") from None


def parse_script(documents: list[object]) -> list[Fault]:
    """All of them or, with the number of the wrong one, `FaultError`."""
    faults = []
    for number, document in enumerate(documents, 1):
        try:
            faults.append(Fault.parse(document))
        except FaultError as error:
            raise FaultError(f"fault {number}: {error}" if len(documents) > 1 else str(error)) from None
    return faults


def parse_rates(document: object) -> dict[str, Rate]:
    """Limits by action or category: {"mutating": {"capacity": 50, "refill": 5}}. Raises `ControlError`."""
    categories = {READ, BARE_READ, CHANGE}
    rates = {}
    for name, value in _keys(document, categories | actions.ACTIONS.keys(), '{"mutating": {...}}').items():
        numbers = _keys(value, {"capacity", "refill"}, '{"capacity": 50, "refill": 5}')
        rates[name] = Rate(*(_number(f"{name}.{key}", numbers.get(key), _MOST) for key in ("capacity", "refill")))
    return rates


def _keys(document: object, known: set[str], example: str) -> Mapping[str, object]:
    if not isinstance(document, dict):
        raise ControlError(f"expected an object like {example}, got {document!r}")
    if unknown := sorted(document.keys() - known):
        raise ControlError(f"unknown: {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return document


def _number(name: str, value: object, most: float) -> float:
    if not (isinstance(value, int | float) and type(value) is not bool and 0 <= value <= most):
        raise ControlError(f"{name}: expected a number, 0 to {most:.0f}, got {value!r}")
    return float(value)


def _json_default(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{value!r} has no place in JSON")


@web.middleware
async def _answer_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except (ControlError, FaultError, Ec2Error) as error:
        return web.json_response({"error": str(error)}, status=400)
