"""`ipamd simulate policy`: which of several settings of the pool would serve these pods best."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipamd.cloud import limits
from ipamd.pool.model import Limits
from ipamd.sim.policy import plot, report
from ipamd.sim.policy.choices import PRESETS, ChoiceError, choices
from ipamd.sim.policy.figures import figures
from ipamd.sim.policy.profiles import PROFILES, made_up
from ipamd.sim.policy.replay import replay
from ipamd.sim.policy.verdict import verdicts, warnings
from ipamd.sim.virtual.ec2 import Latencies
from ipamd.workload import trace
from ipamd.workload.trace import TraceError, TraceEvent

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DELAYS: dict[str, float] = {name: each for name, each in asdict(Latencies()).items() if name != "jitter"}
_HOURS = 24.0
_LONGEST = 24.0 * 31

# A trace goes on for so long after its last event, for the pods that then wait still.
_AFTERWARDS = 60.0

# Of the addresses that the type has for pods; a rolling update needs a quarter more.
_FILLED = 0.6

# Times what the type holds: enough to see what becomes of pods for which there is no room.
_OVERFULL = 2


class _Wrong(Exception):
    """The command line can't be carried out; the message says why."""


@dataclass(frozen=True, slots=True)
class _Workload:
    """`about` is for the output."""

    events: Sequence[TraceEvent]
    seconds: float
    title: str
    about: dict[str, Any]


def add_parser(kinds: Subparsers) -> None:
    policy = kinds.add_parser(
        "policy",
        help="what settings of the pool would make of a day of pods, in virtual time",
        description="Let pods come to and go from one node, in virtual time, and compare what several settings of "
        "the pool make of it: how long the pods wait, how many addresses idle, how often EC2 is called. The pool is "
        "the daemon's own. It needs neither a daemon nor AWS nor root.",
        epilog="for instance: ipamd simulate policy --type m5.large --profile web --set warm_ips=2,10 --plot web.png"
        " -- exit codes: 0 done, 1 the trace or the picture could not be read or written, 2 wrong command line."
        " docs/simulate-policy.md tells how to record a trace and what the figures mean.",
    )
    policy.add_argument("--type", required=True, help="instance type of the node, for instance m5.large")
    pods = policy.add_mutually_exclusive_group(required=True)
    pods.add_argument(
        "--trace", type=Path, metavar="FILE", help="pods as they came and went, from ipamctl events --record"
    )
    pods.add_argument(
        "--profile", choices=PROFILES, help="pods as they might: services by day and night, jobs, rolling updates"
    )
    policy.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SETTINGS",
        dest="settings",
        help='settings of [pool] to compare with the defaults: warm_ips=5,10,20 or "warm_ips=5 minimum_ips=20" or '
        + " or ".join(PRESETS)
        + "; repeat for more",
    )
    policy.add_argument("--hours", type=float, help=f"with --profile: how long (default: {_HOURS:g})")
    policy.add_argument(
        "--pods", type=int, help="with --profile: most at a time (default: 60 %% of what the type holds)"
    )
    policy.add_argument("--seed", type=int, default=1, help="of all that is random (default: %(default)s)")
    policy.add_argument(
        "--delay",
        action="append",
        default=[],
        metavar="WHAT=SECONDS",
        help="how long EC2 takes; WHAT is one of "
        + ", ".join(f"{name} ({default:g})" for name, default in _DELAYS.items()),
    )
    policy.add_argument("--plot", type=Path, metavar="FILE", help="a picture of it, .png or .svg")
    policy.add_argument("-o", "--output", choices=("table", "json"), default="table", help="(default: table)")
    policy.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The exit code is 1 or 2, with the reason on standard error, when it can't be done."""
    try:
        return _run(args)
    except (ChoiceError, _Wrong) as error:
        return _fail(error, 2)
    except (TraceError, plot.NoPlot) as error:
        return _fail(error, 1)


def _fail(reason: object, code: int) -> int:
    for line in str(reason).splitlines():
        sys.stderr.write(f"ipamd simulate policy: {line}\n")
    return code


def _run(args: argparse.Namespace) -> int:
    chosen = choices(args.settings)
    held = _limits_of(args.type)
    delays = _delays(args.delay)
    if args.plot:
        plot.check(args.plot)
    workload = _workload(args, held)

    outcomes = {
        choice.name: replay(
            workload.events, workload.seconds, args.type, choice.targets, Latencies(**delays), args.seed
        )
        for choice in chosen
    }
    found = {name: figures(outcome) for name, outcome in outcomes.items()}
    judged, warned = verdicts(found), warnings(found)
    if args.output == "json":
        about = {"type": args.type, **workload.about, "seconds": workload.seconds}
        document = report.data(about, delays, chosen, found, judged, warned)
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        lines = [
            f"{workload.title} on {args.type} ({held.max_enis} ENIs, addresses for {held.max_pods} pods)",
            "EC2 in virtual time, seconds: " + ", ".join(f"{name} {value:g}" for name, value in delays.items()),
            "",
            *report.table(found),
            "",
            "best for",
            *(line for verdict in judged for line in report.said(verdict)),
            *warned,
        ]
        if any(name in choice.name.split() for choice in chosen for name in PRESETS):
            lines += [
                "",
                "vpc-cni-default is ipamd's pool with the AWS VPC CNI's target (warm_enis=1), not its code.",
            ]
        sys.stdout.write("".join(f"{line}\n" for line in lines))
    if args.plot:
        plot.draw(args.plot, f"{workload.title} on {args.type}", outcomes)
    return 0


def _workload(args: argparse.Namespace, held: Limits) -> _Workload:
    if args.trace is not None:
        if args.hours is not None or args.pods is not None:
            raise _Wrong("--hours and --pods go with --profile: a trace has its own")
        events = trace.read(args.trace)
        if not any(event.event == "add" and event.t > 0 for event in events):
            raise TraceError(f"{args.trace}: no pod comes after its beginning: there is nothing to compare")
        seconds = events[-1].t + _AFTERWARDS
        return _Workload(events, seconds, f"{_span(seconds)} of {args.trace.name}", {"trace": str(args.trace)})
    hours = _HOURS if args.hours is None else args.hours
    if not 0 < hours <= _LONGEST:
        raise _Wrong(f"--hours {hours:g}: more than 0, at most {_LONGEST:g}")
    pods = max(1, round(held.max_pods * _FILLED)) if args.pods is None else args.pods
    if not 0 < pods <= _OVERFULL * held.max_pods:
        raise _Wrong(f"--pods {pods}: 1 to {_OVERFULL * held.max_pods} on {args.type}, half of that it holds")
    events = made_up(args.profile, seed=args.seed, seconds=hours * 3600, pods=pods)
    about = {"profile": args.profile, "pods": pods, "hours": hours, "seed": args.seed}
    title = f"{_span(hours * 3600)} of profile {args.profile}, at most {pods} pods, seed {args.seed},"
    return _Workload(events, hours * 3600, title, about)


def _limits_of(instance_type: str) -> Limits:
    found = limits.limits_of(instance_type)
    if found is None:
        near = get_close_matches(instance_type, limits.table(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "ipamctl capacity --list shows all that are known"
        raise _Wrong(f"--type {instance_type}: no instance type of that name is known; {hint}")
    if not found.max_pods:
        raise _Wrong(f"--type {instance_type}: its ENIs have room for their own addresses only")
    return found


def _delays(texts: Sequence[str]) -> dict[str, float]:
    found = dict(_DELAYS)
    for text in texts:
        name, _, value = text.partition("=")
        if name not in found:
            raise _Wrong(f"--delay {text}: {name} is not one of {', '.join(found)}")
        try:
            found[name] = float(value)
        except ValueError:
            raise _Wrong(f"--delay {text}: not a number of seconds") from None
        if not 0 <= found[name] <= 3600:
            raise _Wrong(f"--delay {text}: give 0 to 3600 seconds")
    return found


def _span(seconds: float) -> str:
    if seconds > 7200:
        return f"{seconds / 3600:.4g} hours"
    return f"{seconds / 60:.3g} minutes" if seconds > 120 else f"{seconds:.3g} seconds"
