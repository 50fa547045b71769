"""`ipamctl capacity`: how many pods an instance type has addresses for. Needs neither a daemon nor AWS.

The arithmetic is EC2's ("IP addresses per network interface per instance type" in the EC2 user guide): each ENI keeps
its first address for itself. With prefix delegation each of the others' places takes a /28 of 16 addresses.
"""

from __future__ import annotations

import argparse
from difflib import get_close_matches

from ipamd.cloud import limits
from ipamd.ctl.command import NOT_DONE, Failed, manual
from ipamd.ctl.output import Answer, show
from ipamd.neighbours.kubelet import HOST_NETWORK_PODS, fitting
from ipamd.pool.model import Limits

PREFIX_SIZE = 16

# Of --as: a line of its configuration, or its flag.
FORMS = ("kubelet", "kubelet-flag")

# EKS user guide, "Choosing an EC2 instance type": what Kubernetes recommends, whatever the addresses would allow.
# Which holds depends on the CPUs.
RECOMMENDED, RECOMMENDED_LARGE = 110, 250


def set_up(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("type", nargs="?", metavar="TYPE", help="for instance m5.large")
    which.add_argument("--list", action="store_true", help="all types that are known, the smallest first")
    parser.add_argument(
        "--fits", type=int, default=0, metavar="PODS", help="with --list: those with addresses for so many pods"
    )
    parser.add_argument("--prefixes", action="store_true", help="with a /28 prefix in the place of each address")
    parser.add_argument(
        "--as",
        dest="form",
        choices=FORMS,
        help="only the kubelet's max-pods: a line of its KubeletConfiguration, or its flag",
    )
    parser.add_argument(
        "--host-network",
        type=int,
        default=HOST_NETWORK_PODS,
        metavar="PODS",
        help="pods of the host's own network, which take no address and count for max-pods (default: %(default)s)",
    )
    manual(
        parser,
        "Each ENI keeps its first address for itself; the others are for pods.",
        examples={
            "ipamctl capacity m5.large": "the arithmetic, and the kubelet's max-pods",
            "ipamctl capacity m5.large --as kubelet": "the line for the kubelet's configuration",
            "ipamctl capacity --list --fits 110": "the types with room for so many pods, the smallest first",
        },
        codes={NOT_DONE: "no such type"},
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.fits and not args.list:
        raise Failed("--fits goes with --list", 2)
    if args.form and args.list:
        raise Failed("--as goes with a TYPE", 2)
    if args.form:
        show(for_kubelet(args.type, args.form, args.host_network, prefixes=args.prefixes), args.output)
    elif args.list:
        show(listed(args.fits, prefixes=args.prefixes), args.output)
    else:
        show(of(args.type, prefixes=args.prefixes), args.output)
    return 0


def known_limits(instance_type: str) -> Limits:
    """Raises `Failed` for an unknown type; the message suggests a similar one."""
    found = limits.limits_of(instance_type)
    if found is None:
        near = get_close_matches(instance_type, limits.table(), n=3)
        hint = (
            f"; did you mean {' or '.join(near)}?" if near else "; ipamctl capacity --list shows all that are known"
        )
        raise Failed(f"{instance_type}: no instance type of that name is known{hint}")
    return found


def for_kubelet(instance_type: str, form: str, host_network: int, *, prefixes: bool) -> Answer:
    """Raises `Failed`."""
    found = known_limits(instance_type)
    most = fitting(_pods(found, prefixes), host_network)
    data = {**_data(instance_type, found, prefixes), "kubelet_max_pods": most}
    line = f"--max-pods={most}" if form == "kubelet-flag" else f"maxPods: {most}"
    return Answer(data, lines=(line,))


def of(instance_type: str, *, prefixes: bool) -> Answer:
    """Raises `Failed`."""
    found = known_limits(instance_type)
    pods = _pods(found, prefixes)
    each = f" x {PREFIX_SIZE}" if prefixes else ""
    formula = f"{found.max_enis} x ({found.addresses_per_eni} - 1){each}"
    data = _data(instance_type, found, prefixes)
    cards = limits.network_cards(instance_type)
    of_cards = f"; on network card 0 of {cards}" if cards > 1 else ""
    lines = [
        f"{instance_type} has addresses for {pods} pods",
        "",
        f"  ENIs                  {found.max_enis:6}   the primary one among them{of_cards}",
        f"  addresses per ENI     {found.addresses_per_eni:6}   the first is the ENI's own",
        f"  addresses for pods    {pods:6}   {formula}",
        f"  kubelet's max-pods    {fitting(pods):6}   + {HOST_NETWORK_PODS} of the host's network",
        "",
        *_hints(pods, prefixes),
    ]
    return Answer(data, lines=tuple(lines))


def listed(fits: int, *, prefixes: bool) -> Answer:
    """All types with addresses for at least that many pods, the smallest first."""
    found = [
        (_pods(each, prefixes), name, each) for name, each in limits.table().items() if _pods(each, prefixes) >= fits
    ]
    found.sort(key=lambda row: row[:2])
    rows = tuple((name, str(each.max_enis), str(each.addresses_per_eni), str(pods)) for pods, name, each in found)
    data = [_data(name, each, prefixes) for _, name, each in found]
    return Answer(data, ("type", "enis", "addresses per eni", "pods"), rows)


def _pods(found: Limits, prefixes: bool) -> int:
    return found.max_pods * (PREFIX_SIZE if prefixes else 1)


def _data(instance_type: str, found: Limits, prefixes: bool) -> dict[str, object]:
    pods = _pods(found, prefixes)
    return {
        "instance_type": instance_type,
        "max_enis": found.max_enis,
        "addresses_per_eni": found.addresses_per_eni,
        "prefixes": prefixes,
        "pods": pods,
        "kubelet_max_pods": fitting(pods),
    }


def _hints(pods: int, prefixes: bool) -> list[str]:
    hints = []
    if prefixes:
        hints.append("Prefixes need a Nitro instance and a subnet with free, aligned /28 blocks; ipamd gives single")
        hints.append("addresses so far: these figures are for planning.")
    if pods > RECOMMENDED:
        hints.append(
            f"Kubernetes recommends at most {RECOMMENDED} pods, {RECOMMENDED_LARGE} from 30 vCPUs on: set the"
        )
        hints.append(
            "kubelet's max-pods accordingly; pool.max_pods keeps ipamd from taking more addresses than that."
        )
    if not pods:
        hints.append("Its ENIs have room for their own addresses only: pods need another type.")
    hints.append("The subnet has to hold them, too: AWS keeps 5 addresses of each.")
    return hints
