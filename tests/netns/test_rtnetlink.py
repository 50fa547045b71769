"""What is read of rules, routes and addresses by hand is what pyroute2 reads, others' shapes among them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from socket import AF_INET, AF_INET6
from typing import Any

import pytest
from pyroute2 import AsyncIPRoute

from ipamd.host import rtnetlink
from ipamd.host.desired import Address, FoundRoute, Route, Rule
from ipamd.sim import netns
from tests.netns.node_stage import ENIS, NODE, Topology

pytestmark = pytest.mark.netns

SIX = replace(NODE, enis=tuple(replace(eni, primary_ip6=f"2001:db8::{eni.device_index}:10") for eni in ENIS))
OTHERS = (
    "rule add prio 3000 iif eth0 lookup 77 protocol 158",
    "rule add prio 3001 not from 10.9.0.0/16 lookup 77",
    "rule add prio 3002 from 10.9.0.0/16 lookup 77 protocol 158",
    "rule add prio 3003 fwmark 0x100 ipproto tcp lookup 77 protocol 158",
    "rule add prio 3004 goto 3005",
    "rule add prio 3005 lookup 4000000000 protocol 158",
    "route add unreachable 10.8.0.0/16 table 77 protocol 158",
    "route add 10.7.0.0/16 table 77 nexthop dev eth0 nexthop dev ipm0",
    "route add 10.6.0.0/16 via 10.0.0.1 dev eth0 metric 7 protocol 158",
    "route add 10.5.0.0/16 dev eth0 table 4000000000 protocol 158",
)


@pytest.fixture
def stage(prefix: str) -> Iterator[Topology]:
    with Topology(prefix) as topology:
        topology.apply(SIX)
        topology.ip(topology.node, *OTHERS)
        yield topology


def pyroute2(stage: Topology, what: str, family: int) -> list[Any]:
    async def dump() -> list[Any]:
        async with AsyncIPRoute() as route:
            return [message async for message in await getattr(route, what)("dump", family=family)]

    return netns.run_in(stage.node, lambda: asyncio.run(dump()))


@pytest.mark.parametrize("family", [AF_INET, AF_INET6])
def test_rules(stage: Topology, family: int) -> None:
    foreign = ("dst", "iifname", "oifname", "ip_proto", "goto")
    expected = {
        Rule(
            message.get("priority") or 0,
            message.get("table"),
            message.get("fwmark") or 0,
            message.get("fwmask") or 0,
            message.get("src", "") + (f"/{message['src_len']}" if 0 < message["src_len"] < 32 else ""),
            family,
        )
        for message in pyroute2(stage, "rule", family)
        if message.get("protocol") == 158 and not any(message.get(name) for name in foreign)
    }
    assert len(expected) >= 6
    assert netns.run_in(stage.node, lambda: rtnetlink.rules(family, 158)) == expected


@pytest.mark.parametrize("family", [AF_INET, AF_INET6])
def test_routes(stage: Topology, family: int) -> None:
    host = 32 if family == AF_INET else 128
    everybodys = {
        FoundRoute(
            Route(
                message.get("table"),
                message.get("oif") or 0,
                message.get("dst", "") + (f"/{message['dst_len']}" if 0 < message["dst_len"] < host else ""),
                message.get("gateway", ""),
                family,
                0 if message.get("priority") == 1024 and family == AF_INET6 else message.get("priority") or 0,
            ),
            message["proto"],
            message["type"],
        )
        for message in pyroute2(stage, "route", family)
        if not message["flags"] & 0x200
    }
    ours = {each for each in everybodys if each.protocol == 158}
    assert len(ours) >= 4 and len(everybodys) > len(ours)
    assert netns.run_in(stage.node, lambda: rtnetlink.routes(family, 158)) == ours
    for table in (1501, 77, 9999):
        only = netns.run_in(stage.node, lambda number=table: rtnetlink.routes(family, table=number))
        assert only == {each for each in everybodys if each.route.table == table}


@pytest.mark.parametrize("family", [AF_INET, AF_INET6])
def test_addresses(stage: Topology, family: int) -> None:
    expected = {
        Address(message["index"], message.get("local") or message.get("address")): message["prefixlen"]
        for message in pyroute2(stage, "addr", family)
    }
    assert len(expected) >= 3
    assert netns.run_in(stage.node, lambda: rtnetlink.addresses(family)) == expected


def test_unwanted_objects_with_our_protocol_can_be_removed(stage: Topology) -> None:
    removed = [step for step in stage.apply(SIX) if step.startswith("removed")]
    assert len(removed) == 5
    assert stage.apply(SIX) == []
