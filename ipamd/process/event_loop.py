"""The daemon's event loop: no name that is being looked up holds up its end.

getaddrinfo(3) waits for a name server for half a minute, and can't be interrupted. The end of the process waits for
the threads that asyncio has for it; meanwhile the pods of the node wait for the daemon to be back.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import Any

Found = list[Any]  # tuples, as socket.getaddrinfo gives them


class EventLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self._sought: set[asyncio.Future[Found]] = set()
        self._over = False

    async def getaddrinfo(self, host: Any, port: Any, **hints: int) -> Found:
        """As socket.getaddrinfo, in a thread that ends with the process. Raises OSError."""
        found: asyncio.Future[Found] = self.create_future()
        self._sought.add(found)
        found.add_done_callback(self._sought.discard)
        if self._over:
            self.give_up_names()
        else:
            threading.Thread(target=self._look_up, args=(found, host, port, hints), name="names", daemon=True).start()
        return await found

    def give_up_names(self) -> None:
        """The names that are being looked up, and those to come, are not found: OSError."""
        self._over = True
        for found in self._sought:
            if not found.done():
                found.set_exception(socket.gaierror(socket.EAI_AGAIN, "the lookup was given up: the daemon ends"))

    def _look_up(self, found: asyncio.Future[Found], host: Any, port: Any, hints: dict[str, int]) -> None:
        answer: Found | Exception
        try:
            answer = socket.getaddrinfo(host, port, **hints)
        except Exception as error:  # UnicodeError too, of a name that can't be one
            answer = error
        with suppress(RuntimeError):  # the loop is closed
            self.call_soon_threadsafe(_settle, found, answer)


def _settle(found: asyncio.Future[Found], answer: Found | Exception) -> None:
    if found.done():
        return
    if isinstance(answer, Exception):
        found.set_exception(answer)
    else:
        found.set_result(answer)
