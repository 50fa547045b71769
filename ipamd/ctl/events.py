"""`ipamctl events`: what happened, as lines for people or one JSON object a line."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.api.v1.introspection_pb2_grpc import IntrospectionStub
from ipamd.ctl.command import DONE, USAGE, Failed, manual
from ipamd.ctl.connection import TIMEOUT, Unavailable, introspection
from ipamd.ctl.event import datum, line

LEVELS = ("info", "warning", "error")
_LAST = 30
_ALL = 2**32 - 1
# Seconds between two looks for a daemon that went away.
_RETRY = 0.5


def set_up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what happens, until Ctrl-C")
    parser.add_argument(
        "-n",
        "--last",
        type=int,
        default=_LAST,
        metavar="N",
        help="of those kept, oldest first (default: %(default)s)",
    )
    parser.add_argument("--level", choices=LEVELS, default="info", help="the least (default: %(default)s)")
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="write the coming and going of pods until Ctrl-C; gzipped if named .gz",
    )
    manual(
        parser,
        "The daemon keeps the last lines of its log in memory, since its start. Each has a number, a time, a level, "
        "a stable name and fields. With --follow a restart of the daemon is waited for; events that the daemon had "
        "to leave out, because this end was too slow, are counted on standard error. "
        "--record writes a trace: the pods that are here, then each that comes or goes (docs/simulate-policy.md).",
        examples={
            "ipamctl events -n 100 --level warning": "what went wrong lately",
            "ipamctl events -f": "what happens now",
            "ipamctl events -f -n 0 -o json | jq -r .name": "one JSON object a line",
            "ipamctl events --record monday.jsonl.gz": "for ipamd simulate policy --trace",
        },
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.output not in ("table", "json"):
        raise Failed("events are shown as a table or as JSON", USAGE)
    if args.last < 0:
        raise Failed("-n: 0 or more", USAGE)
    if args.record is not None:
        from ipamd.ctl.record import record

        return record(args.socket, args.record)
    numbers = Numbers()
    try:
        for event in follow(args.socket, args.last, args.level) if args.follow else _kept(args.socket, args):
            # Below a level there are numbers that were left out on purpose.
            if args.level == "info" and (lost := numbers.lost_before(event.number)):
                print(f"ipamctl: {lost} events lost: they came faster than they were read", file=sys.stderr)
            text = json.dumps(datum(event)) if args.output == "json" else line(event)
            print(text, flush=args.follow)
    except KeyboardInterrupt:
        pass
    return DONE


class Numbers:
    """Finds gaps in the daemon's count of its events."""

    def __init__(self) -> None:
        self._last = 0

    def lost_before(self, number: int) -> int:
        """A number that is not above the last one is a new daemon's, which counts from 1 again."""
        lost = number - self._last - 1 if 0 < self._last < number else 0
        self._last = number
        return lost


def _kept(socket: Path, args: argparse.Namespace) -> Iterator[pb.Event]:
    with introspection(socket) as stub:
        yield from stub.WatchEvents(pb.WatchEventsRequest(last=args.last, level=args.level))


def follow(
    socket: Path, last: int, level: str = "info", connected: Callable[[IntrospectionStub], None] = lambda _: None
) -> Iterator[pb.Event]:
    """The last ones, and then what happens, without an end. Raises `Failed` when there is no daemon at the beginning;
    one that goes away later is waited for, and its successor's events are told from its start. `connected` is called
    once a daemon's first event is here: from then on none is missed."""
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
