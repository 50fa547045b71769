"""Follows a daemon's events, and those of the daemons that come after it, and finds gaps in them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.api.v1.introspection_pb2_grpc import IntrospectionStub
from ipamd.ctl.connection import TIMEOUT, Unavailable, introspection

_ALL = 2**32 - 1
# Seconds between two looks for a daemon that went away.
_RETRY = 0.5


class Numbers:
    """Finds gaps in the daemon's count of its events."""

    def __init__(self) -> None:
        self._last = 0

    def lost_before(self, number: int) -> int:
        """A number that is not above the last one is a new daemon's, which counts from 1 again."""
        lost = number - self._last - 1 if 0 < self._last < number else 0
        self._last = number
        return lost


def follow(
    socket: Path, last: int, level: str = "info", connected: Callable[[IntrospectionStub], None] = lambda _: None
) -> Iterator[pb.Event]:
    """The kept events, then each new one, without end. Raises `Failed` if there is no daemon at the beginning. If it
    goes away later, this waits for the next daemon and continues with its first event. `connected` is called when a
    daemon's first event has arrived: from then on none is missed."""
    with introspection(socket) as stub:
        stub.GetNode(pb.GetNodeRequest(), timeout=TIMEOUT)
    told = False
    while True:
        try:
            with introspection(socket) as stub:
                first = True
                for event in stub.WatchEvents(pb.WatchEventsRequest(last=last, follow=True, level=level)):
                    if first:
                        connected(stub)
                        first = told = False
                    yield event
        except Unavailable:
            pass
        if not told:
            print("ipamctl: the daemon has gone; waiting for the next one", file=sys.stderr)
        last, told = _ALL, True
        time.sleep(_RETRY)
