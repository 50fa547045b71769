"""`ipamctl audit`: EC2, the daemon's records and the kernel side by side, now."""

from __future__ import annotations

import argparse
import textwrap

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.ctl import times
from ipamd.ctl.command import DONE, NOT_DONE, UNKNOWN, Failed, manual
from ipamd.ctl.connection import LONG_TIMEOUT, introspection
from ipamd.ctl.output import Answer, printable, show
from ipamd.ctl.terminal import styled, width

MISMATCH = ("kind", "subject", "ec2", "ledger", "kernel", "meaning", "remedy")


def set_up(parser: argparse.ArgumentParser) -> None:
    manual(
        parser,
        "Each of the three may be wrong: somebody may unassign an address by hand, or remove a route. It costs an "
        "EC2 call or two, so the same answer is given again when it is asked for within seconds.",
        examples={
            "ipamctl audit": "what differs, what that means for pods, and what to do",
            "ipamctl audit -o json | jq .mismatches": "the same for programs",
        },
        codes={
            DONE: "all three say the same",
            NOT_DONE: "they differ",
            UNKNOWN: "unknown: no daemon, or EC2 or the kernel did not answer",
        },
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    try:
        with introspection(args.socket) as stub:
            reply: pb.AuditReply = stub.Audit(pb.AuditRequest(), timeout=LONG_TIMEOUT)
    except Failed as failure:
        raise Failed(str(failure), UNKNOWN) from None
    lines = tuple(report(reply, width())) if args.output == "table" else ()
    show(Answer(data(reply), lines=lines, names=tuple(m.subject for m in reply.mismatches)), args.output)
    return NOT_DONE if reply.mismatches else DONE


def data(reply: pb.AuditReply) -> dict[str, object]:
    return {
        "at": times.iso(reply.at),
        "mismatches": [{name: getattr(mismatch, name) or None for name in MISMATCH} for mismatch in reply.mismatches],
        "enis": reply.enis,
        "addresses": reply.addresses,
        "attachments": reply.attachments,
        "routes": reply.routes,
    }


def report(reply: pb.AuditReply, width: int) -> list[str]:
    looked = (
        f"Compared at {times.iso(reply.at)}: ENIs {reply.enis}, addresses {reply.addresses}, attachments "
        f"{reply.attachments}, routes {reply.routes}"
    )
    if not reply.mismatches:
        return [styled("EC2, the records and the kernel say the same.", "good"), looked]
    many = f"{len(reply.mismatches)} mismatches" if len(reply.mismatches) > 1 else "1 mismatch"
    lines = [styled(many, "bad"), looked]
    for mismatch in reply.mismatches:
        lines += ["", styled(printable(f"{mismatch.subject}: {mismatch.kind}"), "bold")]
        for name in MISMATCH[2:]:
            if text := getattr(mismatch, name):
                lines += textwrap.wrap(
                    printable(text),
                    width,
                    initial_indent=f"  {name:8} ",
                    subsequent_indent=" " * 11,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
    return lines
