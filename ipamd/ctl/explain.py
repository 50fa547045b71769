"""`ipamctl explain`: why a pod waits, or the pool does not grow, in plain sentences; what comes next; what to do."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable
from ipaddress import ip_address

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.ctl.command import ATTENTION, DONE, NOT_DONE, USAGE, Failed, manual
from ipamd.ctl.connection import TIMEOUT, introspection
from ipamd.ctl.output import Answer, printable, show
from ipamd.ctl.terminal import styled, width

# States that need no action.
_WELL = {"attached", "released", "steady", "growing", "shrinking", "free", "cooling", "releasing", "own", "gone"}
# Longer lines are hard to read, however wide the terminal is.
_WIDEST = 100


def set_up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "subject",
        metavar="pool|pod|NAME",
        help="the node's pool of addresses, an address, or a pod: namespace/pod, its name, the beginning of its "
        "container's id, the host's end of its veth pair",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the pod, after the word pod")
    examples = {
        "ipamctl explain pod shop/web-0": "why it has no address yet, or how it got it",
        "ipamctl explain pod 3f9ab2": "the same, by the beginning of the container's id",
        "ipamctl explain 10.0.3.17": "who has this address, and who had it before",
        "ipamctl explain ipm54aefac1b17b": "which pod this interface of the host leads to",
        "ipamctl explain pool": "why the pool grows, shrinks, or does neither",
    }
    codes = {
        NOT_DONE: "no such pod or address here; or the daemon is not there or refused",
        ATTENTION: "it waits, was refused, or something holds the pool back",
    }
    purpose = "What is the case, what it rests on, what will happen next and when, and what to do."
    manual(parser, purpose, examples=examples, codes=codes)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    request = _request(args.subject, args.name)
    with introspection(args.socket) as stub:
        said: pb.Explanation = stub.Explain(request, timeout=TIMEOUT)
    show(Answer(data(said), lines=tuple(paragraphs(said, min(width(), _WIDEST)))), args.output)
    return DONE if said.state in _WELL else ATTENTION


def _request(subject: str, name: str | None) -> pb.ExplainRequest:
    """Raises `Failed`."""
    if subject == "pool":
        if name is not None:
            raise Failed("the pool has no name: ipamctl explain pool; of a pod: ipamctl explain pod NAME", USAGE)
        return pb.ExplainRequest(pool=pb.PoolSubject())
    if subject == "pod":
        if name is None:
            raise Failed("say which pod: ipamctl explain pod NAME", USAGE)
        subject = name
    elif name is not None:
        raise Failed(f"{subject} {name}: explain one thing at a time, or write: ipamctl explain pod NAME", USAGE)
    return pb.ExplainRequest(address=subject) if _is_address(subject) else pb.ExplainRequest(pod=subject)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


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
