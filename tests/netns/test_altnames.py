"""Further names of pods' links, on a real kernel."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from ipamd.host import HostError
from ipamd.host.altnames import give
from ipamd.sim import netns

pytestmark = pytest.mark.netns

OLD, NEW, NAME = "ipm000000000001", "ipm000000000002", "eni9cfdfc6963c"

Run = Callable[[Callable[[], Any]], Any]


@pytest.fixture
async def host(prefix: str) -> AsyncIterator[Run]:
    name = f"{prefix}-host"
    await netns.create(name)
    pairs = {OLD: "p1", NEW: "p2", "eni00000000001": "p3"}
    await netns.ip_batch(name, [f"link add {link} type veth peer name {peer}" for link, peer in pairs.items()])

    def run(function: Callable[[], Any]) -> Any:
        return netns.run_in(name, function)

    yield run
    await netns.delete(name)


def leads_to(name: str) -> str:
    return socket.if_indextoname(socket.if_nametoindex(name))


def test_a_link_is_found_by_its_further_name(host: Run) -> None:
    host(lambda: give(OLD, NAME))
    assert host(lambda: leads_to(NAME)) == OLD
    host(lambda: give(OLD, NAME))  # once more


def test_the_name_goes_over_to_the_pods_new_link(host: Run) -> None:
    host(lambda: give(OLD, NAME))
    host(lambda: give(NEW, NAME))
    assert host(lambda: leads_to(NAME)) == NEW


def test_the_name_of_somebody_elses_link_is_left(host: Run) -> None:
    """As of a pod of the VPC CNI that has the same name."""
    with pytest.raises(HostError, match="eni00000000001 is a name of another link"):
        host(lambda: give(OLD, "eni00000000001"))


def test_a_link_that_is_not_there_is_told(host: Run) -> None:
    with pytest.raises(HostError, match="no link ipm00000000000f"):
        host(lambda: give("ipm00000000000f", NAME))
