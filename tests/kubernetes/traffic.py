"""Questions by HTTP from inside a network namespace, as a client in a pod or on a host asks them."""

from __future__ import annotations

import asyncio
import http.client
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ipamd.sim import netns as namespaces

_PATIENCE: Final = 3.0  # seconds, for one answer


@dataclass
class Answers:
    """`by`: answer -> how often it came; `failed`: why each of the others had none."""

    by: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)

    @property
    def asked(self) -> int:
        return self.by.total() + len(self.failed)

    def __str__(self) -> str:
        return f"{self.by.total()} of {self.asked} answered, by {len(self.by)} pods"


async def ask(netns: str | Path, address: str, port: int, number: int = 1, path: str = "/hostname") -> Answers:
    """Ask `number` times, each by a connection of its own. Raises OSError when the namespace can't be entered."""

    def question() -> Answers:
        answers = Answers()
        for _ in range(number):
            _once(answers, address, port, path)
        return answers

    return await asyncio.to_thread(namespaces.run_in, str(netns), question)


@asynccontextmanager
async def asking(netns: str | Path, address: str, port: int) -> AsyncIterator[Answers]:
    """While the block lasts, ask one question after the other. Raises OSError when the namespace can't be entered."""
    answers = Answers()
    ended = False

    def questions() -> None:
        while not ended:
            _once(answers, address, port, "/hostname")

    asked = asyncio.ensure_future(asyncio.to_thread(namespaces.run_in, str(netns), questions))
    try:
        yield answers
    finally:
        ended = True
        await asked


def _once(answers: Answers, address: str, port: int, path: str) -> None:
    connection = http.client.HTTPConnection(address, port, timeout=_PATIENCE)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        text = reply.read().decode(errors="replace").strip()
        if reply.status == http.HTTPStatus.OK:
            answers.by[text] += 1
        else:
            answers.failed.append(f"status {reply.status}")
    except (OSError, http.client.HTTPException) as error:
        answers.failed.append(f"{type(error).__name__}: {error}")
    finally:
        connection.close()
