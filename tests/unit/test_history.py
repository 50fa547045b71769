"""The last events: for those who ask, and for those who follow."""

from __future__ import annotations

import asyncio

from ipamd.telemetry.history import Event, History


def test_the_oldest_make_room() -> None:
    history = History(kept=3)
    for name in "abcde":
        history.add("info", name, {})
    assert [(event.number, event.name) for event in history.last(10)] == [(3, "c"), (4, "d"), (5, "e")]
    assert [event.name for event in history.last(2)] == ["d", "e"]
    assert history.last(0) == []


async def _names(history: History, names: list[Event], level: str = "info") -> None:
    async for event in history.follow(history.newest, level):
        names.append(event)


async def test_two_followers_each_see_every_event_until_the_end() -> None:
    history = History()
    history.add("info", "before", {})
    first: list[Event] = []
    second: list[Event] = []
    tasks = [asyncio.create_task(_names(history, first)), asyncio.create_task(_names(history, second, "warning"))]
    await asyncio.sleep(0)
    history.add("info", "one", {})
    await asyncio.to_thread(history.add, "warning", "two", {"from": "a thread"})
    await asyncio.sleep(0.01)
    history.close()
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks)
    assert [event.name for event in first] == ["one", "two"]
    assert [event.name for event in second] == ["two"]
    assert not history._followers


async def test_slow_reader_sees_by_the_numbers_that_events_are_missing() -> None:
    history = History(kept=2)
    follower = history.follow(history.newest)
    pending = asyncio.ensure_future(anext(follower))
    await asyncio.sleep(0)
    for name in "abcd":
        history.add("info", name, {})
    assert (await pending).number == 3
    assert (await anext(follower)).number == 4
    await follower.aclose()
