"""`ipamd simulate` and its kind `vpc`: the VPC in a box as a process, for tests in any language and for trying things
by hand. (`ipamd.sim.policy` has the other kind.)

It prints one JSON line when everything is up and removes everything on SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ipamd.sim import enter, internet, preflight
from ipamd.sim.control import ControlError, parse_json, parse_rates, parse_script
from ipamd.sim.ec2.cloud import Delays
from ipamd.sim.ec2.consistency import Lags
from ipamd.sim.ec2.faults import Fault
from ipamd.sim.ec2.rules.throttle import Throttle
from ipamd.sim.fabric import FabricError
from ipamd.sim.imds import DEFAULT_HOP_LIMIT
from ipamd.sim.machine import MachineError
from ipamd.sim.netns import CommandError
from ipamd.sim.policy import command as policy
from ipamd.sim.vpc import SimulatedNode, SimulatedVpc, SpecError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DEFAULT_SUBNET = "10.0.0.0/24"

T = TypeVar("T", Delays, Lags)


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `simulate` with its kinds."""
    simulate = subparsers.add_parser(
        "simulate",
        help="a stand-in for EC2 on this machine, or the pool in virtual time",
        description="Run a stand-in for EC2 on this machine, or the pool in virtual time.",
    )
    kinds = simulate.add_subparsers(metavar="KIND", required=True)
    vpc = kinds.add_parser(
        "vpc",
        help="a VPC in a box: nodes as network namespaces, EC2 and IMDS (needs root)",
        description="Build a VPC in a box: each node is a network namespace, with EC2 and the instance metadata "
        "service at the URLs that the JSON line on standard output names once all is up. The control URL shows and "
        "disturbs the simulated cloud (see ipamd.sim.control). SIGTERM or SIGINT removes everything but the files "
        "below --dir.",
    )
    vpc.add_argument("--dir", required=True, type=Path, help="where each node gets a directory with its config.toml")
    vpc.add_argument(
        "--node",
        action="append",
        required=True,
        metavar="NAME=TYPE",
        help="a node and its instance type, for instance n1=m5.large; repeat for more",
    )
    vpc.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME",
        help="a machine in the VPC that is no node: it has an address and no pool; repeat for more",
    )
    vpc.add_argument(
        "--machines",
        action="store_true",
        help="make each node and host a machine: file systems, processes and a host name of its own, everything at "
        "its usual place (/etc/ipamd, /run/ipamd, /opt/cni/bin, /var/lib/containerd, ...); "
        "`ipamd simulate enter NODE` leads there",
    )
    vpc.add_argument(
        "--web-name",
        action="append",
        default=[],
        metavar="NAME",
        help="a name of a web server in the internet, which the nodes resolve by DNS at "
        f"{internet.RESOLVER}, beside {', '.join(internet.NAMES)}; repeat for more",
    )
    vpc.add_argument(
        "--subnet",
        action="append",
        metavar="CIDR",
        help=f"a subnet of the VPC (default: {_DEFAULT_SUBNET}); nodes are dealt out over several in turn, and the "
        "VPC is the /16 around the first",
    )
    vpc.add_argument(
        "--delay",
        action="append",
        default=[],
        metavar="WHAT=SECONDS",
        help="how long EC2 takes; WHAT is one of "
        + ", ".join(f"{field.name} ({field.default})" for field in dataclasses.fields(Delays)),
    )
    vpc.add_argument(
        "--lag",
        action="append",
        default=[],
        metavar="WHAT=SECONDS",
        help="eventual consistency: for how long what is new or gone isn't seen to be so; WHAT is one of "
        + ", ".join(field.name for field in dataclasses.fields(Lags))
        + " (default: 0 each)",
    )
    vpc.add_argument(
        "--throttle",
        action="append",
        nargs="?",
        const="",
        metavar="WHAT=CAPACITY/REFILL",
        help="limit requests as EC2 does (default: don't); a value gives WHAT other tokens and tokens per second "
        "than the published ones, for instance CreateNetworkInterface=2/0.5 or mutating=10/1; may be repeated",
    )
    vpc.add_argument(
        "--hop-limit",
        type=int,
        default=DEFAULT_HOP_LIMIT,
        metavar="N",
        help="how far replies with a metadata token get (HttpPutResponseHopLimit): with 1 to the nodes, with 2 to "
        "their pods as well (default: %(default)s, as EKS's node groups have it)",
    )
    vpc.add_argument(
        "--faults", type=Path, metavar="FILE", help="faults to begin with: a JSON list, as for the control API"
    )
    vpc.set_defaults(run=run)
    enter.add_parser(kinds)
    policy.add_parser(kinds)


def run(args: argparse.Namespace) -> int:
    """Run until a signal comes; the exit code is 1, with one line on standard error, when that is not possible."""
    try:
        if missing := preflight.lacking(preflight.VPC):
            raise SpecError(" ".join(missing))
        asyncio.run(
            _run_vpc(
                dir=args.dir.absolute(),
                nodes=_pairs("--node", args.node, "n1=m5.large"),
                subnets=args.subnet or [_DEFAULT_SUBNET],
                delays=_seconds("--delay", args.delay, Delays),
                lags=_seconds("--lag", args.lag, Lags),
                throttle=_throttle(args.throttle),
                faults=_faults(args.faults),
                hop_limit=args.hop_limit,
                hosts=args.host,
                machines=args.machines,
                names=args.web_name,
            )
        )
    except (SpecError, FabricError, MachineError, CommandError, OSError) as error:
        sys.stderr.write(f"ipamd simulate vpc: {' '.join(str(error).split())}\n")
        return 1
    return 0


async def _run_vpc(**spec: Any) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with SimulatedVpc.build(**spec) as vpc:
        ready = {
            "ec2": vpc.ec2_url,
            "imds": vpc.imds_url,
            "control": vpc.control_url,
            "router": vpc.fabric.router,
            "internet": vpc.fabric.internet,
            "peer": vpc.fabric.peer,
            "nodes": [_described(node) for node in vpc.nodes],
            "hosts": [_described(host) for host in vpc.hosts],
        }
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        await stop.wait()


def _described(node: SimulatedNode) -> dict[str, object]:
    described: dict[str, object] = {
        "name": node.name,
        "netns": node.netns,
        "dir": str(node.dir),
        "instance_id": node.instance_id,
        "instance_type": node.instance_type,
        "primary_ip": node.primary_ip,
    }
    if node.machine is not None:
        described |= {"pid": node.machine.pid, "cgroup": node.machine.cgroup}
    return described


def _pairs(option: str, texts: Sequence[str], example: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not (name and separator and value):
            raise SpecError(f"{option} {text}: write it like {example}")
        if name in pairs:
            raise SpecError(f"{option} {text}: {name} is given twice")
        pairs[name] = value
    return pairs


def _seconds(option: str, texts: Sequence[str], kind: type[T]) -> T:
    """`kind` is a dataclass of numbers of seconds."""
    fields = dataclasses.fields(kind)
    known = {field.name for field in fields}
    seconds: dict[str, float] = {}
    for name, text in _pairs(option, texts, f"{fields[0].name}=0.5").items():
        if name not in known:
            raise SpecError(f"{option} {name}={text}: {name} is not one of {', '.join(sorted(known))}")
        try:
            seconds[name] = float(text)
        except ValueError:
            raise SpecError(f"{option} {name}={text}: not a number of seconds") from None
        if not 0 <= seconds[name] <= 3600:
            raise SpecError(f"{option} {name}={text}: give 0 to 3600 seconds")
    return kind(**seconds)


def _throttle(texts: Sequence[str] | None) -> Throttle | None:
    if texts is None:
        return None
    rates = {}
    for name, text in _pairs("--throttle", [text for text in texts if text], "mutating=50/5").items():
        try:
            capacity, refill = map(float, text.split("/"))
        except ValueError:
            raise SpecError(f"--throttle {name}={text}: write it like mutating=50/5") from None
        rates[name] = {"capacity": capacity, "refill": refill}
    throttle = Throttle()
    try:
        throttle.limit(parse_rates(rates))
    except ControlError as error:
        raise SpecError(f"--throttle: {error}") from None
    return throttle


def _faults(file: Path | None) -> list[Fault]:
    if file is None:
        return []
    try:
        document = parse_json(file.read_text(encoding="utf-8"))
        if not isinstance(document, list):
            raise ControlError("expected a list of faults")
        return parse_script(document)
    except ValueError as error:  # of the file's encoding, of JSON, of a fault
        raise SpecError(f"--faults {file}: {error}") from None
