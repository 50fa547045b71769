"""The instance metadata service, version 2: tokens, and the tree of facts about the instance that asks.

AWS, "Use the Instance Metadata Service" and "Instance metadata categories". What it says about ENIs and addresses
is what EC2 knew `Delays.imds_lag` ago, without what a fault omits. Who asks is known by the source address of the
connection; a request from elsewhere (a test without a packet fabric) names its instance in a header.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from aiohttp import web

from ipamd.sim.ec2 import views
from ipamd.sim.ec2.cloud import ACCOUNT, SimulatedCloud
from ipamd.sim.ec2.credentials import Credentials
from ipamd.sim.ec2.faults import IMDS, Answered, Faults, NoAnswer
from ipamd.sim.ec2.metadata import EniMetadata
from ipamd.sim.ec2.rules import Instance

INSTANCE_HEADER: Final = "X-Ipamd-Sim-Instance"
ROLE: Final = "ipamd-node"

_TOKEN: Final = "X-aws-ec2-metadata-token"
_TOKEN_TTL: Final = "X-aws-ec2-metadata-token-ttl-seconds"
_LONGEST_TTL: Final = 21600  # seconds
_DEFAULT_TTL: Final = 64  # of other replies (IP_TTL)

# HttpPutResponseHopLimit: how far the reply with a token gets. EC2's own default is 1, with which only the host gets
# one. EKS's node groups and images such as Amazon Linux 2023 have 2, with which a pod, one hop further on, does too.
# AWS, "Modify instance metadata options for existing instances", "Configure the instance metadata service options".
DEFAULT_HOP_LIMIT: Final = 2
MOST_HOPS: Final = 64

Tree = Mapping[str, "str | Tree"]


class Imds:
    def __init__(self, cloud: SimulatedCloud, faults: Faults, hop_limit: int = DEFAULT_HOP_LIMIT) -> None:
        self._cloud = cloud
        self._faults = faults
        self._hop_limit = hop_limit
        self._tokens: dict[str, tuple[str, float]] = {}  # token -> whose, and until when (monotonic)

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_put("/latest/api/token", self._issue_token)
        app.router.add_get("/{path:.*}", self._read)
        return app

    async def _issue_token(self, request: web.Request) -> web.StreamResponse:
        if (failure := await self._fault(request)) is not None:
            return failure
        if "X-Forwarded-For" in request.headers:
            return _plain(403, "Forbidden")
        ttl = request.headers.get(_TOKEN_TTL, "")
        if not ttl.isdecimal() or not 1 <= int(ttl) <= _LONGEST_TTL:
            return _plain(400, "Bad Request")
        if (instance := self._instance(request)) is None:
            return _unknown_caller(request)
        now = time.monotonic()
        self._tokens = {token: entry for token, entry in self._tokens.items() if entry[1] > now}
        token = secrets.token_urlsafe(40)
        self._tokens[token] = (instance.id, now + int(ttl))
        _set_hop_limit(request, self._hop_limit)
        return web.Response(text=token, headers={_TOKEN_TTL: ttl})

    async def _read(self, request: web.Request) -> web.StreamResponse:
        if (failure := await self._fault(request)) is not None:
            return failure
        if (instance := self._instance(request)) is None:
            return _unknown_caller(request)
        owner, expires = self._tokens.get(request.headers.get(_TOKEN, ""), ("", 0.0))
        if owner != instance.id or expires <= time.monotonic():
            return _plain(401, "Unauthorized")
        _set_hop_limit(request, _DEFAULT_TTL)
        node: str | Tree = {"latest": self._tree(instance, self._faults.omissions())}
        for part in filter(None, request.match_info["path"].split("/")):
            if isinstance(node, str) or part not in node:
                return _plain(404, "Not Found")
            node = node[part]
        return web.Response(text=node if isinstance(node, str) else _listing(node))

    async def _fault(self, request: web.Request) -> web.Response | None:
        """A fault's answer. One `after_effect` is no different here: reading has none."""
        fault = self._faults.take(IMDS, request.path.rstrip("/"))
        try:
            status = await self._faults.suffer(fault, request) if fault else ""
        except NoAnswer:
            return web.Response()
        except Answered as other:
            return other.answer.response()
        return _plain(int(status), "This error was asked for by a fault.") if status else None

    def _instance(self, request: web.Request) -> Instance | None:
        if (instance := self._cloud.instance_at(request.remote or "")) is not None:
            return instance
        named = request.headers.get(INSTANCE_HEADER)
        return next((one for one in self._cloud.instances if one.id == named and one.state == "running"), None)

    def _tree(self, instance: Instance, omitted: set[str]) -> Tree:
        """`omitted` as in `Faults.omissions`."""
        enis = self._cloud.metadata(instance)
        primary = next(eni for eni in enis if eni.primary)
        shown = [eni for eni in enis if eni.id not in omitted and (eni is primary or "" not in omitted)]
        zone, region = primary.subnet.zone, self._cloud.rules.region
        identity = {
            "accountId": ACCOUNT,
            "architecture": "x86_64",
            "availabilityZone": zone,
            "instanceId": instance.id,
            "instanceType": instance.type,
            "pendingTime": _timestamp(datetime.fromtimestamp(instance.launched, UTC)),
            "privateIp": primary.addresses[0],
            "region": region,
            "version": "2017-09-30",
        }
        credentials = self._cloud.keyring.credentials(instance.id)
        return {
            "dynamic": {"instance-identity": {"document": json.dumps(identity, indent=2)}},
            "meta-data": {
                "iam": {"security-credentials": {ROLE: _credentials_document(credentials)}},
                "instance-id": instance.id,
                "instance-type": instance.type,
                "local-hostname": views.private_dns_name(self._cloud, primary.addresses[0]),
                "local-ipv4": primary.addresses[0],
                "mac": primary.mac,
                "network": {"interfaces": {"macs": {eni.mac: self._eni(eni) for eni in shown}}},
                "placement": {"availability-zone": zone, "region": region},
                "security-groups": "\n".join(group.name for group in primary.groups),
                "services": {"domain": "amazonaws.com", "partition": "aws"},
            },
        }

    def _eni(self, eni: EniMetadata) -> Tree:
        vpc_cidr = str(self._cloud.rules.vpc_cidr)
        return {
            **({"network-card": str(eni.network_card)} if eni.network_card else {}),
            **({"ipv4-prefix": "\n".join(eni.prefixes)} if eni.prefixes else {}),
            "device-number": str(eni.device_index),
            "interface-id": eni.id,
            "local-hostname": views.private_dns_name(self._cloud, eni.addresses[0]),
            "local-ipv4s": "\n".join(eni.addresses),
            "mac": eni.mac,
            "owner-id": ACCOUNT,
            "security-group-ids": "\n".join(group.id for group in eni.groups),
            "security-groups": "\n".join(group.name for group in eni.groups),
            "subnet-id": eni.subnet.id,
            "subnet-ipv4-cidr-block": str(eni.subnet.network),
            "vpc-id": self._cloud.rules.vpc_id,
            "vpc-ipv4-cidr-block": vpc_cidr,
            "vpc-ipv4-cidr-blocks": "\n".join([vpc_cidr, *map(str, self._cloud.further_cidrs)]),
        }


def _credentials_document(credentials: Credentials) -> str:
    assert credentials.expires is not None, "a role's credentials expire"
    return json.dumps(
        {
            "Code": "Success",
            "LastUpdated": _timestamp(credentials.issued),
            "Type": "AWS-HMAC",
            "AccessKeyId": credentials.access_key,
            "SecretAccessKey": credentials.secret_key,
            "Token": credentials.token,
            "Expiration": _timestamp(credentials.expires),
        },
        indent=2,
    )


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _listing(tree: Tree) -> str:
    """One name a line; those that have names below them end with a slash."""
    return "\n".join(name if isinstance(below, str) else f"{name}/" for name, below in tree.items())


def _plain(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text)


def _unknown_caller(request: web.Request) -> web.Response:
    return _plain(
        404, f"{request.remote} is no running instance's address, and {INSTANCE_HEADER} names no instance either"
    )


def _set_hop_limit(request: web.Request, hops: int) -> None:
    connection = request.transport.get_extra_info("socket") if request.transport else None
    if connection is not None and connection.family == socket.AF_INET:
        connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
