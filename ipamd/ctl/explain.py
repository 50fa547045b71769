"""`ipamctl explain`: why a pod waits, or the pool does not grow, in plain sentences; what comes next; what to do."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.ctl.command import ATTENTION, DONE, NOT_DONE, USAGE, Failed, manual
from ipamd.ctl.connection import TIMEOUT, introspection
from ipamd.ctl.output import Answer, printable, show
from ipamd.ctl.terminal import styled, width

# States in which nobody needs to do anything.
_WELL = {"attached", "released", "steady", "growing", "shrinking"}
# Longer lines are hard to read, however wide the terminal is.
_WIDEST = 100


def set_up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", choices=("pod", "pool"), help="one pod, or the node's pool of addresses")
    parser.add_argument(
        "name", nargs="?", metavar="NAME|CONTAINER", help="namespace/pod, pod, or the beginning of a container's id"
    )
    examples = {
        "ipamctl explain pod shop/web-0": "why it has no address yet, or how it got it",
        "ipamctl explain pod 3f9ab2": "the same, by the beginning of the container's id",
        "ipamctl explain pool": "why the pool grows, shrinks, or does neither",
    }
    codes = {
        NOT_DONE: "no such pod; or the daemon is not there or refused",
        ATTENTION: "it waits, was refused, or something holds the pool back",
    }
    purpose = "What is the case, what it rests on, what will happen next and when, and what to do."
    manual(parser, purpose, examples=examples, codes=codes)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if (args.subject == "pod") != (args.name is not None):
        raise Failed("say which pod: ipamctl explain pod NAME; or ipamctl explain pool", USAGE)
    request = pb.ExplainRequest(pod=args.name) if args.subject == "pod" else pb.ExplainRequest(pool=pb.PoolSubject())
    with introspection(args.socket) as stub:
        said: pb.Explanation = stub.Explain(request, timeout=TIMEOUT)
    show(Answer(data(said), lines=tuple(paragraphs(said, min(width(), _WIDEST)))), args.output)
    return DONE if said.state in _WELL else ATTENTION


def data(said: pb.Explanation) -> dict[str, object]:
    return {
        "state": said.state,
        "headline": said.headline,
        "because": list(said.because),
        "next": list(said.next),
        "advice": list(said.advice),
        "numbers": dict(sorted(said.numbers.items())),
    }


def paragraphs(said: pb.Explanation, width: int) -> list[str]:
    lines = [styled(line, "bold") for line in _wrapped([said.headline], width, "", "")]
    for head, sentences in (("Because", said.because), ("Next", said.next), ("What to do", said.advice)):
        if sentences:
            lines += ["", styled(head, "cool"), *_wrapped(sentences, width, "  - ", "    ")]
    return lines


def _wrapped(sentences: Iterable[str], width: int, first: str, then: str) -> list[str]:
    return [
        line
        for sentence in sentences
        for line in textwrap.wrap(
            printable(sentence),
            width,
            initial_indent=first,
            subsequent_indent=then,
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]
