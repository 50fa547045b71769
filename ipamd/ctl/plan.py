"""`ipamctl plan`: will the subnets hold the nodes' pools, until when, and what helps. Needs neither a daemon nor AWS.

The arithmetic of a node is the pool's (`ipamd.pool.footprint`); AWS keeps the first four addresses and the last one
of each subnet ("Subnet sizing", VPC user guide).
"""

from __future__ import annotations

import argparse
import ipaddress
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from ipamd.cloud import limits as instance_types
from ipamd.ctl.capacity import known_limits
from ipamd.ctl.chart import Line, svg
from ipamd.ctl.command import NOT_DONE, USAGE, Failed, manual
from ipamd.ctl.output import Answer, show
from ipamd.ctl.terminal import styled, width
from ipamd.pool.footprint import Footprint, footprint
from ipamd.pool.model import Limits, Targets

RESERVED = 5
SMALLEST, LARGEST = 28, 16  # prefix lengths that a subnet may have

# Settings that a plan may change; all except the last are whole numbers.
PLANNED = ("warm_ips", "warm_enis", "minimum_ips", "max_pods", "max_enis", "slack", "cooldown")

# What the AWS VPC CNI does by default: a whole ENI's worth of addresses beyond those in use, and ENIs that
# are filled at once (WARM_ENI_TARGET=1).
VPC_CNI = "AWS VPC CNI, default"


@dataclass(frozen=True, slots=True)
class Subnet:
    cidr: str
    usable: int
    used: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked. `growth` is in nodes a month, or a factor where `relative`; `surge` in nodes."""

    subnets: tuple[Subnet, ...]
    nodes: int
    instance_type: str
    limits: Limits
    pods: int
    churn: float
    surge: int
    growth: float
    relative: bool
    targets: Targets

    @property
    def room(self) -> int:
        return sum(subnet.usable - subnet.used for subnet in self.subnets)

    def node(self, targets: Targets | None = None) -> Footprint:
        targets = targets or self.targets
        return footprint(targets, self.limits, self.pods, self.churn * targets.cooldown / 3600)

    def nodes_after(self, months: float) -> float:
        return self.nodes * (1 + self.growth) ** months if self.relative else self.nodes + self.growth * months

    def months_until(self, nodes: float) -> float:
        """Months until there are that many nodes; infinite if never."""
        if nodes < self.nodes:
            return 0.0
        if self.growth <= 0:
            return math.inf
        if self.relative:
            return math.log(nodes / self.nodes) / math.log(1 + self.growth)
        return (nodes - self.nodes) / self.growth


def set_up(parser: argparse.ArgumentParser) -> None:
    manual(
        parser,
        "Counts what the nodes take from their subnets: the pods' addresses, those kept warm, those that cool, and "
        "each ENI's own. Says when they are full, during an upgrade as well, and which setting helps.",
        examples={
            "ipamctl plan --subnet 10.0.0.0/20 --nodes 40 --type m5.xlarge --pods-per-node 25": "",
            "ipamctl plan --subnet 10.0.0.0/24=60 ... --grow 3": "60 are used already; 3 nodes more a month",
        },
        codes={0: "the subnets hold it", NOT_DONE: "they don't, now or during an upgrade"},
    )
    parser.add_argument(
        "--subnet",
        action="append",
        required=True,
        metavar="CIDR[=USED]",
        help="a subnet of the nodes, and how many of its addresses others use; may be given several times",
    )
    parser.add_argument("--nodes", type=_positive, required=True, metavar="N", help="how many there are")
    parser.add_argument("--type", required=True, metavar="TYPE", help="their instance type, for instance m5.xlarge")
    parser.add_argument("--pods-per-node", type=_positive, required=True, metavar="N", help="with an address each")
    parser.add_argument(
        "--churn", type=float, default=0.0, metavar="PODS", help="pods that end on a node in an hour (default: 0)"
    )
    parser.add_argument(
        "--surge", default="1", metavar="N|N%", help="nodes more during an upgrade, with their pods (default: 1)"
    )
    parser.add_argument("--grow", default="0", metavar="N|N%", help="nodes more each month (default: 0)")
    parser.add_argument("--months", type=_positive, default=12, metavar="N", help="how far to look (default: 12)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"a setting of [pool] other than its default: {', '.join(PLANNED)}; may be given several times",
    )
    parser.add_argument("--chart", type=Path, metavar="FILE.svg", help="draw the months as a picture, too")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    plan = _understood(args)
    if args.chart is not None:
        try:
            args.chart.write_text(_picture(plan, args.months))
        except OSError as error:
            raise Failed(f"{args.chart}: {error.strerror}") from None
    show(_answer(plan, args.months), args.output)
    return 0 if (plan.nodes + plan.surge) * plan.node().subnet_most <= plan.room else NOT_DONE


# The command line


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _understood(args: argparse.Namespace) -> Plan:
    """Raises `Failed`."""
    limits = known_limits(args.type)
    targets = _targets(args.set)
    subnets = tuple(map(_subnet, args.subnet))
    for index, one in enumerate(subnets):
        for other in subnets[:index]:
            if ipaddress.IPv4Network(one.cidr).overlaps(ipaddress.IPv4Network(other.cidr)):
                raise Failed(f"--subnet {other.cidr} and {one.cidr} overlap", USAGE)
    if args.churn < 0:
        raise Failed(f"--churn {args.churn:g}: pods an hour can't be less than 0", USAGE)
    growth, relative = _amount("--grow", args.grow)
    surge, surge_relative = _amount("--surge", args.surge)
    plan = Plan(
        subnets, args.nodes, args.type, limits, args.pods_per_node, args.churn,
        math.ceil(args.nodes * surge) if surge_relative else math.ceil(surge), growth, relative, targets,
    )  # fmt: skip
    most = plan.node().most_pods
    if plan.pods > most:
        larger = _smallest_with(plan.pods)
        hint = (
            f"; the smallest type that does: {larger} (ipamctl capacity --list --fits {plan.pods})" if larger else ""
        )
        raise Failed(f"an {args.type} has addresses for {most} pods, not for {plan.pods}{hint}")
    return plan


def _subnet(text: str) -> Subnet:
    cidr, separator, used = text.partition("=")
    try:
        network = ipaddress.IPv4Network(cidr)
    except ValueError as error:
        raise Failed(f"--subnet {text}: {error}", USAGE) from None
    if not LARGEST <= network.prefixlen <= SMALLEST:
        raise Failed(f"--subnet {text}: a subnet of AWS is a /{LARGEST} to a /{SMALLEST}", USAGE)
    usable = network.num_addresses - RESERVED
    if separator and not (used.isdecimal() and int(used) <= usable):
        raise Failed(f"--subnet {text}: {used or 'nothing'} is no number of addresses up to {usable}", USAGE)
    return Subnet(str(network), usable, int(used or 0))


def _amount(option: str, text: str) -> tuple[float, bool]:
    """(number or fraction, whether it is a fraction)."""
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = -1
    if not 0 <= number < 1e6:
        raise Failed(f"{option} {text}: a number of nodes, or a percentage such as 10%", USAGE)
    return (number / 100, True) if text.endswith("%") else (number, False)


def _targets(assignments: list[str]) -> Targets:
    found: dict[str, float] = {}
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        key = key.strip().removeprefix("pool.")
        if key not in PLANNED:
            near = get_close_matches(key, PLANNED, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(PLANNED)}"
            raise Failed(f"--set {assignment}: no setting that a plan depends on; {hint}", USAGE)
        try:
            found[key] = float(value) if key == "cooldown" else int(value)
        except ValueError:
            found[key] = -1
        if found[key] < 0 or not separator:
            raise Failed(f"--set {assignment}: {key} takes a number of at least 0", USAGE)
    return replace(Targets(), **found)  # type: ignore[arg-type]


def _smallest_with(pods: int) -> str:
    fitting = [(each.max_pods, name) for name, each in instance_types.table().items() if each.max_pods >= pods]
    return min(fitting)[1] if fitting else ""


# The answer


def _answer(plan: Plan, months: int) -> Answer:
    node, room = plan.node(), plan.room
    now = plan.nodes * node.subnet_most
    upgrade = (plan.nodes + plan.surge) * node.subnet_most
    fit = room // node.subnet_most
    full_in = plan.months_until(fit + 1)
    lines = [*_verdict(plan, now, upgrade, fit, full_in), "", *_per_node(plan, node), ""]
    lines += _bars(plan, months)
    options = list(_options(plan))
    rows = tuple((name, _range(each), *map(str, _taken(plan, each))) for name, each in options)
    data = {
        "subnets": [asdict(subnet) for subnet in plan.subnets],
        "instance_type": plan.instance_type,
        "nodes": plan.nodes,
        "pods_per_node": plan.pods,
        "room": room,
        "node": {**asdict(node), "subnet_least": node.subnet_least, "subnet_most": node.subnet_most},
        "taken_now": now,
        "taken_in_an_upgrade": upgrade,
        "holds_now": now <= room,
        "holds_an_upgrade": upgrade <= room,
        "nodes_that_fit": fit,
        "months_until_full": None if math.isinf(full_in) else round(full_in, 1),
        "months": [
            {"month": month, "nodes": nodes, "taken": nodes * node.subnet_most}
            for month in range(months + 1)
            for nodes in [math.ceil(plan.nodes_after(month))]
        ],
        "options": [
            {"name": name, "subnet_least": each.subnet_least, "subnet_most": each.subnet_most,
             "taken": plan.nodes * each.subnet_most, "nodes_that_fit": room // each.subnet_most}
            for name, each in options
        ],
    }  # fmt: skip
    columns = ("what if", "addresses per node", "taken", "nodes that fit")
    return Answer(data, columns, rows, (*lines, "", "What else could be:"))


def _range(each: Footprint) -> str:
    return (
        f"{each.subnet_least}-{each.subnet_most}" if each.subnet_least < each.subnet_most else f"{each.subnet_most}"
    )


def _taken(plan: Plan, each: Footprint) -> tuple[int, int]:
    """(addresses that all nodes take, nodes that fit)."""
    return plan.nodes * each.subnet_most, plan.room // each.subnet_most


def _verdict(plan: Plan, now: int, upgrade: int, fit: int, full_in: float) -> Iterator[str]:
    room = plan.room
    where = "The subnet has" if len(plan.subnets) == 1 else f"The {len(plan.subnets)} subnets together have"
    if now > room:
        yield styled(
            f"{where} room for {room} addresses; {plan.nodes} nodes take up to {now}: {fit} of them fit.", "bad"
        )
    else:
        text = f"{where} room for {room} addresses; {plan.nodes} nodes take up to {now}, {now / room:.0%} of it."
        yield styled(text, "good" if upgrade <= room else "warn")
        if upgrade > room:
            yield f"An upgrade with {plan.surge} more would take {upgrade}, {upgrade - room} more than there are."
        elif plan.surge:
            yield f"An upgrade with {plan.surge} more takes up to {upgrade}, which fits."
    if plan.growth and now <= room:
        how = f"{plan.growth:.0%}" if plan.relative else f"{plan.growth:g} nodes"
        yield (
            f"Growing by {how} a month it is full in {full_in:.1f} months, with {fit} nodes."
            if full_in < 600
            else f"Growing by {how} a month it lasts for 50 years."
        )
    elif now <= room:
        yield f"It holds {fit} such nodes."
    best = _best(plan)
    if best is not None and (upgrade > room or full_in < 12):
        name, each = best
        saved = plan.node().subnet_most - each.subnet_most
        yield f"What helps most: {name}, {saved} addresses less per node, room for {room // each.subnet_most} nodes."
    if upgrade > room:
        yield "Or further subnets: name them in ec2.subnets; new ENIs go where there is room."


def _per_node(plan: Plan, node: Footprint) -> Iterator[str]:
    cooling = math.ceil(plan.churn * plan.targets.cooldown / 3600)
    targets = plan.targets
    warm = targets.warm_enis * plan.limits.secondary_per_eni if targets.warm_enis else targets.warm_ips
    parts = [f"{plan.pods} pods", f"{warm} warm"]
    if cooling:
        parts.append(f"{cooling} cooling")
    parts.append(f"up to {targets.slack} that are not worth a call")
    yield f"A node ({plan.instance_type}) has {node.least} to {node.most} addresses for pods: {', '.join(parts)}."
    yield (
        f"They take up to {node.enis_most} ENI{'s' * (node.enis_most > 1)} of {plan.limits.secondary_per_eni}, each "
        f"with an address of its own: {node.subnet_most} of the subnet. It could hold {node.most_pods} pods."
    )


def _options(plan: Plan) -> Iterator[tuple[str, Footprint]]:
    yield "as planned", plan.node()
    targets = plan.targets
    if not targets.warm_enis and targets.warm_ips > 1:
        yield "warm_ips = 1", plan.node(replace(targets, warm_ips=1))
    if targets.warm_enis:
        yield "warm_enis = 0, warm_ips = 5", plan.node(replace(targets, warm_enis=0, warm_ips=5))
    if targets.slack:
        yield "slack = 0", plan.node(replace(targets, slack=0))
    if targets.minimum_ips > plan.pods:
        yield "minimum_ips = 0", plan.node(replace(targets, minimum_ips=0))
    yield "warm_ips = 1, slack = 0", plan.node(replace(targets, warm_ips=1, warm_enis=0, slack=0))
    per_eni = plan.limits.secondary_per_eni
    enis = min(math.ceil(plan.pods / per_eni) + 1, plan.limits.max_enis)
    yield VPC_CNI, Footprint(plan.pods, enis * per_eni, enis * per_eni, enis, enis, plan.limits.max_pods)


def _best(plan: Plan) -> tuple[str, Footprint] | None:
    """The option that saves most, if one saves anything."""
    planned = plan.node().subnet_most
    better = [(name, each) for name, each in _options(plan) if each.subnet_most < planned and name != VPC_CNI]
    return min(better, key=lambda option: option[1].subnet_most, default=None)


# The charts


def _stages(plan: Plan, months: int) -> Iterator[tuple[str, int]]:
    """(label, nodes): now, in an upgrade, and, where it grows, some months ahead."""
    yield "now", plan.nodes
    if plan.surge:
        yield "in an upgrade", plan.nodes + plan.surge
    if plan.growth:
        step = max(math.ceil(months / 6), 1)
        for month in range(step, months + 1, step):
            yield f"in {month} month{'s' * (month > 1)}", math.ceil(plan.nodes_after(month))


def _bars(plan: Plan, months: int) -> Iterator[str]:
    """For each stage a bar of the addresses taken; the part that does not fit extends beyond the room."""
    each, room = plan.node().subnet_most, plan.room
    stages = [(label, nodes, nodes * each) for label, nodes in _stages(plan, months)]
    longest = max(len(label) for label, _, _ in stages)
    columns = max(min(width(), 100) - longest - 28, 10)
    scale = columns / max(room, *(taken for _, _, taken in stages))
    edge = round(room * scale)
    for label, nodes, taken in stages:
        filled = max(round(taken * scale), 1)
        inside, beyond = min(filled, edge), max(filled - edge, 0)
        style = "bad" if taken > room else "warn" if taken > 0.8 * room else "good"
        bar = styled("█" * inside, style) + "░" * (edge - inside) + "▏" + styled("▓" * beyond, "bad")
        bar += " " * (columns - max(filled, edge))
        yield f"{label:>{longest}}  {bar} {taken:>6} {taken / room:>5.0%}  {nodes} nodes"


def _picture(plan: Plan, months: int) -> str:
    each, best = plan.node().subnet_most, _best(plan)
    points = [(month, plan.nodes_after(month)) for month in range(months + 1)]
    lines = [Line("as planned", [(month, nodes * each) for month, nodes in points])]
    if best is not None:
        lines.append(Line(best[0], [(month, nodes * best[1].subnet_most) for month, nodes in points]))
    theirs = next(each for name, each in _options(plan) if name == VPC_CNI)
    lines.append(Line(VPC_CNI, [(month, nodes * theirs.subnet_most) for month, nodes in points]))
    title = f"{plan.nodes} x {plan.instance_type}, {plan.pods} pods each"
    return svg(title, "months", "addresses", lines, limit=(plan.room, "room in the subnets"))
