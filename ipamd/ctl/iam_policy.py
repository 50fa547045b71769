"""`ipamctl iam-policy`: the least policy that lets the daemon do its work. Needs neither a daemon nor AWS."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import asdict

from pydantic import ValidationError

from ipamd.cloud import iam
from ipamd.cloud.partitions import examples, partition_of
from ipamd.ctl.command import NOT_DONE, manual
from ipamd.ctl.output import Answer, show
from ipamd.settings import Ec2Settings


def set_up(parser: argparse.ArgumentParser) -> None:
    manual(
        parser,
        "JSON to be attached to the role of the nodes. Whatever detaches, changes or deletes an interface is allowed "
        "only for those that carry ipamd's tag.",
        examples={
            "ipamctl iam-policy --cluster blue": "only interfaces of that ec2.cluster",
            "ipamctl iam-policy --explain": "what each action is for",
        },
        codes={NOT_DONE: ""},
    )
    parser.add_argument("--cluster", type=_cluster, metavar="NAME", help="only interfaces of this ec2.cluster")
    parser.add_argument("--vpc", type=_like("vpc-[0-9a-f]{8,17}"), metavar="ID", help="only in this VPC")
    parser.add_argument(
        "--region",
        type=_region,
        metavar="R",
        help="only in this region; needed for China, GovCloud, isolated and sovereign regions",
    )
    parser.add_argument("--account", type=_like("[0-9]{12}"), metavar="A", help="only in this account")
    parser.add_argument(
        "--no-release",
        action="store_true",
        help="without what gives addresses and interfaces back: the node keeps what it once had (set "
        "pool.release_delay so high that it never tries)",
    )
    parser.add_argument(
        "--explain", action="store_true", help="each action with its purpose, and each statement with its bounds"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    bounds = (args.cluster or "", args.vpc or "", args.region or "", args.account or "")
    scope = iam.Scope(*bounds, release=not args.no_release)
    if args.explain:
        show(explained(scope), args.output)
    else:
        print(json.dumps(iam.document(scope), indent=2))
    return 0


def explained(scope: iam.Scope) -> Answer:
    rows, data = [], []
    for statement in iam.statements(scope):
        for action in statement.actions:
            use = iam.USES[action]
            rows.append((statement.sid, action, use.purpose))
            data.append({"statement": statement.sid, "bounds": statement.why, "action": action, **asdict(use)})
    lines = ["What bounds each statement:"]
    lines += [f"  {statement.sid:14}{statement.why}" for statement in iam.statements(scope)]
    lines += ["", "What does not work where an action is denied:"]
    named = dict.fromkeys(row[1] for row in rows)
    lines += [f"  {action:32}{iam.USES[action].without}" for action in named]
    return Answer(data, ("statement", "action", "what for"), tuple(rows), (*lines, ""))


def _cluster(text: str) -> str:
    try:
        return Ec2Settings(cluster=text).cluster
    except ValidationError as error:
        raise argparse.ArgumentTypeError(error.errors()[0]["msg"]) from None


def _region(text: str) -> str:
    if not partition_of(text):
        known = ", ".join(f"{example} ({partition})" for partition, example in examples().items())
        raise argparse.ArgumentTypeError(f"expected a region such as {known}, got {text!r}")
    return text


def _like(pattern: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise argparse.ArgumentTypeError(f"expected something like {pattern}, got {text!r}")
        return text

    return check
