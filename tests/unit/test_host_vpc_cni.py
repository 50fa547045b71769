"""What of the AWS VPC CNI is a leftover, and what forbids to touch it. On real kernels: tests/netns."""

from __future__ import annotations

import socket
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from ipamd.host.vpc_cni import SOCKET, Link, Route, Rule, Snapshot, leftovers
from ipamd.host.vpc_cni_kernel import _agent

SUBNET = IPv4Network("10.0.0.0/24")
TO_POD = Rule(512, 254, destination="10.0.0.50/32")
FROM_POD = Rule(1536, 2, source="10.0.0.50/32")
FROM_ENI = Rule(32765, 2, source="10.0.0.20/32")
TABLE = (Route(2, "", "10.0.0.1", "eth1"), Route(2, "10.0.0.1", "", "eth1"))
LEFT = Snapshot(rules=(TO_POD, FROM_POD, FROM_ENI), routes=TABLE, networks=(SUBNET,), files=("/run/aws-node",))


def test_rules_and_table_of_a_pod_that_is_gone_are_leftovers() -> None:
    found = leftovers(LEFT)
    assert set(found.rules) == {TO_POD, FROM_POD, FROM_ENI} and found.routes == list(TABLE) and not found.living


def test_what_shows_that_it_was_here_goes_last() -> None:
    seen = replace(LEFT, nft_chains=frozenset({"nat-prerouting", "snat-mark"}))
    assert leftovers(seen).lines()[-1] == "nft table ip aws-cni"


@pytest.mark.parametrize(
    "more",
    [
        {"agent": "process 7"},
        {"links": (Link("eni0a1b2c3d4e5", 7, "veth", elsewhere=True),)},
        {"links": (Link("vlan.eth.3", 7, "vlan"),)},
        {
            "links": (Link("abc0a1b2c3d4e5", 7, "veth", elsewhere=True),),
            "routes": (*TABLE, Route(254, "10.0.0.50", "", "abc0a1b2c3d4e5")),
        },
    ],
)
def test_a_living_agent_or_pod_is_named(more: dict[str, object]) -> None:
    assert leftovers(replace(LEFT, **more)).living  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "table",
    [
        (*TABLE, Route(2, "10.9.0.0/16", "", "eth1")),
        TABLE[:1],
        (TABLE[0], Route(2, "10.0.0.1", "", "eth2")),
        (TABLE[0], Route(2, "10.0.0.2", "", "eth1")),
    ],
)
def test_a_table_of_another_form_is_not_its(table: tuple[Route, ...]) -> None:
    found = leftovers(replace(LEFT, routes=table))
    assert not found.routes and FROM_ENI not in found.rules


@pytest.mark.parametrize("table", [1, 101, 253, 1500, 1502, 10001])
def test_a_table_that_it_never_numbers_so_is_not_its(table: int) -> None:
    routes = tuple(replace(route, table=table) for route in TABLE)
    rules = (TO_POD, replace(FROM_POD, table=table), replace(FROM_ENI, table=table))
    assert leftovers(replace(LEFT, rules=rules, routes=routes)).rules == [TO_POD]


def test_a_rule_for_an_external_cidr_goes_in_its_form_alone() -> None:
    external = Rule(1535, 254, destination="203.0.113.0/24")
    others = (
        replace(external, table=77),
        replace(external, source="10.0.0.9/32"),
        replace(external, mark=1, mask=1),
        replace(external, plain=False),
        replace(external, destination="", source="203.0.113.0/24"),
        replace(external, priority=1534),
    )
    found = leftovers(replace(LEFT, rules=(*LEFT.rules, external, *others)))
    assert external in found.rules and not set(others) & set(found.rules)
    assert sum("1535" in line for line in found.kept) == len(others) - 1
    without = replace(LEFT, rules=(external,), files=())
    assert leftovers(without).rules == [], "nothing shows that it was here"


def test_its_agent_is_known_by_its_process_or_its_socket(tmp_path: Path) -> None:
    assert _agent(tmp_path) == ""
    (tmp_path / SOCKET).parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / SOCKET))
        assert _agent(tmp_path) == "", "a file that nobody listens at"
        server.listen()
        assert "ipamd.sock" in _agent(tmp_path)
        assert "ipamd.sock" in _agent(tmp_path, tmp_path / "absent.sock")
        with socket.socket(socket.AF_UNIX) as daemon:
            daemon.bind(str(tmp_path / "own.sock"))
            daemon.listen()
            assert _agent(tmp_path, tmp_path / "own.sock") == "", "ipamd's own, for the network policy agent"
    comm = tmp_path / "proc/77/comm"
    comm.parent.mkdir(parents=True)
    comm.write_text("aws-k8s-agent\n")
    assert "process 77" in _agent(tmp_path)
