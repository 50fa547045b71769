"""Daemons that are killed in turn while something else is under way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.kubernetes.killing import killed_in_turn


async def test_daemons_are_killed_in_turn_until_the_block_ends() -> None:
    killed: list[str] = []
    enough = asyncio.Event()

    def killing(name: str) -> Callable[[], Awaitable[None]]:
        async def kill() -> None:
            killed.append(name)
            if len(killed) == 4:
                enough.set()

        return kill

    async with killed_in_turn([killing("a"), killing("b")], every=0.0) as kills:
        await enough.wait()
    assert killed[:4] == ["a", "b", "a", "b"]
    assert kills.number in (len(killed), len(killed) - 1)  # the block may end before the last is counted
    number = len(killed)
    await asyncio.sleep(0)
    assert len(killed) == number


async def test_a_daemon_that_does_not_start_again_ends_the_block() -> None:
    async def kill() -> None:
        raise OSError("no such file")

    with pytest.raises(ExceptionGroup) as caught:
        async with killed_in_turn([kill], every=0.0):
            await asyncio.Event().wait()
    assert [str(error) for error in caught.value.exceptions] == ["no such file"]
