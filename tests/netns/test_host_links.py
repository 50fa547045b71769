"""The watch over network devices, on a real kernel."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from ipamd.host import LinkTimeout
from ipamd.host.links import Links
from ipamd.sim import netns

pytestmark = pytest.mark.netns

MAC = "02:00:00:00:10:01"

Run = Callable[[Callable[[Links], Awaitable[None]]], None]


def ip(*commands: str) -> None:
    """Run ip(8) commands in the namespace of the calling thread."""
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True, capture_output=True)


@pytest.fixture
def watch(prefix: str) -> Iterator[Run]:
    """Runs a test's steps inside a namespace of its own, with an open watch."""
    subprocess.run(["ip", "netns", "add", prefix], check=True)

    def run(steps: Callable[[Links], Awaitable[None]]) -> None:
        async def inside() -> None:
            links = Links()
            await links.open()
            try:
                await steps(links)
            finally:
                links.close()
            assert len(asyncio.all_tasks()) == 1

        netns.run_in(prefix, lambda: asyncio.run(inside()))

    yield run
    subprocess.run(["ip", "netns", "delete", prefix], check=True)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for is no event of ours
            await asyncio.sleep(0.01)


def test_a_link_that_is_there_already(prefix: str) -> None:
    async def inside() -> None:
        ip(f"link add one address {MAC} mtu 9001 type veth peer name two", "link set one up")
        links = Links()
        await links.open()
        try:
            link = await links.wait_for(MAC.upper(), 0)
            assert (link.name, link.mac, link.mtu, link.up) == ("one", MAC, 9001, True)
            assert link.index == socket.if_nametoindex("one")
        finally:
            links.close()

    subprocess.run(["ip", "netns", "add", prefix], check=True)
    try:
        netns.run_in(prefix, lambda: asyncio.run(inside()))
    finally:
        subprocess.run(["ip", "netns", "delete", prefix], check=True)


def test_a_link_that_appears_later(watch: Run) -> None:
    async def steps(links: Links) -> None:
        waiting = [asyncio.ensure_future(links.wait_for(MAC, 20)) for _ in range(3)]
        await asyncio.sleep(0)
        ip(f"link add one address {MAC} type veth peer name two")
        assert {(await each).name for each in waiting} == {"one"}

    watch(steps)


def test_a_link_that_never_comes(watch: Run) -> None:
    async def steps(links: Links) -> None:
        with pytest.raises(LinkTimeout, match=f"MAC {MAC}"):
            await links.wait_for(MAC, 0.05)

    watch(steps)


def test_a_caller_that_stops_waiting_disturbs_nobody(watch: Run) -> None:
    async def steps(links: Links) -> None:
        impatient = asyncio.ensure_future(links.wait_for(MAC, 20))
        patient = asyncio.ensure_future(links.wait_for(MAC, 20))
        await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
        ip(f"link add one address {MAC} type veth peer name two")
        assert (await patient).name == "one"

    watch(steps)


def test_closing_lets_nobody_wait(watch: Run) -> None:
    async def steps(links: Links) -> None:
        waiting = asyncio.ensure_future(links.wait_for(MAC, 1000))
        await asyncio.sleep(0)
        links.close()
        with pytest.raises(LinkTimeout, match="stopped"):
            await waiting

    watch(steps)


def test_changes_are_followed(watch: Run) -> None:
    async def steps(links: Links) -> None:
        ip(f"link add one address {MAC} type veth peer name two")
        await until(lambda: links.by_mac(MAC))
        ip("link set one name ens6 mtu 1400 up")
        await until(lambda: (link := links.by_mac(MAC)) and link.name == "ens6" and link.up and link.mtu == 1400)
        assert [link.name for link in links.by_prefix("ens")] == ["ens6"]
        ip("link delete ens6")
        await until(lambda: links.by_mac(MAC) is None)
        assert not links.by_prefix("ens")

    watch(steps)


def test_a_link_whose_event_was_not_read_yet_has_a_name(watch: Run) -> None:
    async def steps(links: Links) -> None:
        ip("link add one type veth peer name two")  # the loop gets no turn
        index = socket.if_nametoindex("one")
        assert not links.by_prefix("one")
        assert links.name_of(index) == "one"
        assert links.name_of(index + 100) == ""

    watch(steps)


def test_a_device_on_top_of_an_eni_with_its_mac_does_not_hide_it(watch: Run) -> None:
    async def steps(links: Links) -> None:
        ip(f"link add one address {MAC} type veth peer name two", "link add top type veth peer name top2")
        ip(f"link set top address {MAC}")
        await until(lambda: any(link.mac == MAC for link in links.by_prefix("top")))
        assert (found := links.by_mac(MAC)) and found.name == "one"
        ip("link delete top")
        await until(lambda: not links.by_prefix("top"))
        assert (found := links.by_mac(MAC)) and found.name == "one"

    watch(steps)


def test_leaving_a_bridge_is_not_leaving_the_node(watch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def steps(links: Links) -> None:
        ip(f"link add one address {MAC} type veth peer name two", "link add name br0 type bridge")
        ip("link set one up", "link set br0 up", "link set one master br0")
        await until(lambda: links.by_mac(MAC) and links.by_prefix("br0"))
        there = []
        understand = links._understand

        def watched(data: bytes) -> None:
            understand(data)
            there.append(bool(links.by_prefix("one")))  # the bridge has the same MAC

        monkeypatch.setattr(links, "_understand", watched)
        ip("link delete br0")
        await until(lambda: not links.by_prefix("br0"))
        assert all(there)

    watch(steps)


@pytest.mark.parametrize("dumping", [False, True])
def test_lost_events_are_made_up_for(watch: Run, dumping: bool) -> None:
    """Also those that get lost while the links are being listed, for the sake of others lost before."""

    async def steps(links: Links) -> None:
        assert links._socket is not None
        links._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ip("link add gone type veth peer name gone2")
        await until(lambda: links.by_prefix("gone"))
        if dumping:
            links._request_dump()
        # The loop stands still meanwhile, and the buffer takes two or three of these events.
        ip("link delete gone", *(f"link add v{n} type veth peer name w{n}" for n in range(60)))
        ip(f"link set v59 address {MAC}")
        assert (await links.wait_for(MAC, 20)).name == "v59"
        await until(lambda: len(links.by_prefix("v")) == len(links.by_prefix("w")) == 60)
        await until(lambda: not links.by_prefix("gone"))

    watch(steps)
