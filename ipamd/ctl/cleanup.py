"""`ipamctl cleanup vpc-cni`: remove what the AWS VPC CNI left on this host. Needs no daemon."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ipamd.ctl.command import DONE, NOT_DONE, Failed, manual
from ipamd.ctl.output import Answer, printable, show
from ipamd.host.errors import HostError
from ipamd.host.vpc_cni import Leftovers, leftovers
from ipamd.host.vpc_cni_kernel import look, remove, unreachable

_SHOWN = 10


def set_up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("vpc-cni",), help="vpc-cni: the AWS VPC CNI")
    parser.add_argument("-y", "--yes", action="store_true", help="remove it; without, it is only shown")
    manual(
        parser,
        "Removes its rules, tables, iptables chains, nftables table and links, once its pods and its agent are gone. "
        "What only has its priorities or names is listed and left alone. Run it as root, in the host's network "
        "namespace. A second run finds nothing.",
        examples={
            "ipamctl cleanup vpc-cni": "show what would go",
            "ipamctl cleanup vpc-cni --yes": "remove it",
        },
        codes={NOT_DONE: "one of its pods or its agent runs here, or not all could be read or removed"},
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    try:
        found, barred = leftovers(look(own=args.socket)), unreachable()
        if args.yes and not found.living:
            remove(found)
    except HostError as error:
        raise Failed(str(error)) from error
    removed = args.yes and not found.living
    show(Answer(_data(found, barred, removed), lines=tuple(_lines(found, barred, removed))), args.output)
    return NOT_DONE if (found.living and args.yes) or (barred and args.yes) else DONE


def _data(found: Leftovers, barred: Sequence[str], removed: bool) -> dict[str, object]:
    return {
        "removed": removed,
        "leftovers": found.lines(),
        "living": found.living,
        "kept": found.kept,
        "unreachable": list(barred),
    }


def _lines(found: Leftovers, barred: Sequence[str], removed: bool) -> list[str]:
    lines = []
    if found.living:
        lines.append("The AWS VPC CNI still works here, so nothing is removed:")
        lines += _listed(found.living[:_SHOWN])
        if len(found.living) > _SHOWN:
            lines.append(f"  and {len(found.living) - _SHOWN} more")
        lines.append("Remove its DaemonSet from this node and delete its pods first.")
    going = found.lines()
    if going:
        head = "Removed:" if removed else "Of the AWS VPC CNI there is:"
        lines += [head, *_listed(going)]
    elif not barred:
        lines.append("Nothing of the AWS VPC CNI is left here.")
    if found.kept:
        lines += ["Left alone:", *_listed(found.kept)]
    if barred:
        lines += ["Can't be removed without iptables-legacy and iptables-nft (install iptables, or reboot):"]
        lines += _listed(barred)
    if going and not removed and not found.living:
        lines.append("Nothing was changed: ipamctl cleanup vpc-cni --yes removes it.")
    return lines


def _listed(texts: Sequence[str]) -> list[str]:
    return [f"  {printable(text)}" for text in texts]
