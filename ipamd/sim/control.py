"""The control API: what the cloud looks like from above, every call it got, and faults on demand.

    GET  /_control/state    ENIs, subnets, instances
    GET  /_control/calls    every EC2 call: time, instance, action, outcome
    POST /_control/faults   {"action", "error", "times", "delay_s", "after_effect"}: see `ipamd.sim.ec2.faults.Fault`
    POST /_control/clear    ends all faults; with {"calls": true} empties the record of calls too

Replies are JSON. A request that makes no sense gets 400 and {"error": what is wrong}.
"""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from ipamd.sim.ec2.cloud import SimulatedCloud
from ipamd.sim.ec2.faults import CallLog, Fault, FaultError, Faults


class Control:
    def __init__(self, cloud: SimulatedCloud, faults: Faults, calls: CallLog) -> None:
        self._cloud = cloud
        self._faults = faults
        self._calls = calls

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/_control/state", self._state)
        app.router.add_get("/_control/calls", self._list_calls)
        app.router.add_post("/_control/faults", self._add_fault)
        app.router.add_post("/_control/clear", self._clear)
        return app

    async def _state(self, request: web.Request) -> web.Response:
        return web.json_response(state(self._cloud))

    async def _list_calls(self, request: web.Request) -> web.Response:
        return web.json_response(self._calls.as_json())

    async def _add_fault(self, request: web.Request) -> web.Response:
        try:
            self._faults.add(Fault.parse(_parse(await request.text())))
        except FaultError as error:
            return _bad_request(str(error))
        return web.json_response({})

    async def _clear(self, request: web.Request) -> web.Response:
        try:
            document = _parse(await request.text() or "{}")
        except FaultError as error:
            return _bad_request(str(error))
        if not isinstance(document, dict) or document.keys() - {"calls"}:
            return _bad_request('expected nothing, or {"calls": true}')
        if type(calls := document.get("calls", False)) is not bool:
            return _bad_request(f"calls: expected true or false, got {calls!r}")
        self._faults.clear()
        if calls:
            self._calls.clear()
        return web.json_response({})


def state(cloud: SimulatedCloud) -> dict[str, Any]:
    """Everything there is, as plain JSON values. `private_ips` are all private addresses, primary first."""
    return {
        "enis": [
            {
                "id": eni.id,
                "instance_id": eni.attachment.instance_id if eni.attachment else None,
                "device_index": eni.attachment.device_index if eni.attachment else None,
                "status": eni.status,
                "attachment_status": eni.attachment.status if eni.attachment else None,
                "delete_on_termination": eni.attachment.delete_on_termination if eni.attachment else None,
                "primary_ip": eni.addresses[0],
                "private_ips": list(eni.addresses),
                "mac": eni.mac,
                "subnet_id": eni.subnet.id,
                "security_groups": [group.id for group in eni.groups],
                "tags": dict(eni.tags),
            }
            for eni in cloud.enis
        ],
        "subnets": [
            {"id": subnet.id, "cidr": str(subnet.network), "zone": subnet.zone, "available": subnet.available}
            for subnet in cloud.subnets
        ],
        "instances": [
            {"id": one.id, "name": one.name, "type": one.type, "state": one.state} for one in cloud.instances
        ],
    }


def _parse(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise FaultError(f"not JSON: {error}") from None


def _bad_request(text: str) -> web.Response:
    return web.json_response({"error": text}, status=400)
