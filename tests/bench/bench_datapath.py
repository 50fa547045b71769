"""What a packet of a pod pays for the node's routing layout, by pods on the node: ipamd's beside two rules per pod.

    python tests/bench/bench_datapath.py [--quick] [--rounds 9] [--seconds 0.1] [--json FILE]   (as root)

A pod talks to a host beyond a secondary ENI, through a node with so many other pods. Four things are measured: a
ping's round trip, small UDP datagrams, TCP throughput and TCP connections, all from the pod. How: datapath_probes.py;
what the layouts are, and where the measured pod stands among the others: datapath_stage.py. Then: what it takes ipamd
to bring the state of the largest node about, to audit it and to repair it (datapath_state.py).

In each round each way is measured once, those with the same number of pods right after each other, in a random order.
The printed figure is the median of the rounds, for ratios the median of each round's ratio. Ratios compare the time
that a piece of work takes, so 2 is twice as slow, whatever the unit. "A wire" is no node at all, just a veth between
pod and host: what measuring costs. Nothing can be quicker, and "less the wire" is what the node itself takes.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

import output
from datapath_probes import PROBES, Ping, Probe, measure
from datapath_stage import (
    FORWARDING,
    IPAMD,
    MIDDLE,
    MOST_PODS,
    TWO_RULES,
    TWO_RULES_SNAT,
    WIRE,
    Namespaces,
    Stage,
)
from datapath_state import Took, measure_state

from ipamd.settings import LogSettings
from ipamd.telemetry import logs
from ipamd.telemetry.history import History

PODS: Final = (0, 30, 110, 250, 737)
QUICK_PODS: Final = (0, 110, 737)
LAYOUTS: Final = (IPAMD, TWO_RULES, TWO_RULES_SNAT)
FLOORS: Final = (WIRE, FORWARDING)
PLACES: Final = {0.0: "first", MIDDLE: "middle", 1.0: "last"}
LESS: Final = "ping less the wire"

# What the issue asks for.
AIM_GROWTH, AIM_RATIO, AIM_AUDIT_MS, AIM_REPAIR_MS = 1.10, 5.0, 100.0, 1000.0


class Way(NamedTuple):
    """A layout, the pods beside the measured one, and its place among them."""

    layout: str
    pods: int
    place: float = MIDDLE


Times = dict[tuple[str, Way], list[float]]  # (probe, way) -> seconds that a piece took in each round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less than a minute; draws no plot")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="for each way, each round")
    parser.add_argument("--pods", type=int, nargs="+", help="beside the measured one")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plots", type=Path, metavar="DIR")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("run it as root: it makes network namespaces")
    logs.set_up(LogSettings(level="error"), History())
    rounds = args.rounds or (3 if args.quick else 9)
    seconds = args.seconds or (0.05 if args.quick else 0.1)
    pods = sorted(set(args.pods or (QUICK_PODS if args.quick else PODS)))
    if pods[0] < 0 or pods[-1] > MOST_PODS:
        parser.error(f"--pods takes numbers from 0 to {MOST_PODS}")
    try:
        state = state_rows(rounds, pods[-1])
        rows = way_rows(measure_ways(rounds, seconds, pods), pods)
    except KeyboardInterrupt:
        sys.exit("ended before it was done; its namespaces are removed")
    report(rows, state, pods, rounds)
    if args.json:
        output.write_lines(args.json, [*rows, *state])
    if args.plots or not args.quick:
        draw(rows, state, pods, args.plots or output.PLOTS)


# Measuring


def measure_ways(rounds: int, seconds: float, pods: list[int]) -> Times:
    times: Times = defaultdict(list)
    probes: dict[tuple[str, Way], Probe] = {}
    with Namespaces() as namespaces:
        stages = {way: Stage(namespaces, *way).build() for way in ways(pods)}
        try:
            for way, stage in stages.items():
                for kind in PROBES if way.place == MIDDLE else (Ping,):
                    probes[kind.name, way] = kind(stage)
            for _ in range(rounds):
                for name, way in in_turns(probes):
                    times[name, way].append(measure(probes[name, way], stages[way], seconds))
        finally:
            for probe in probes.values():
                probe.close()
    return times


def ways(pods: list[int]) -> list[Way]:
    found = [Way(floor, 0) for floor in FLOORS]
    found += [Way(layout, count) for count in pods for layout in LAYOUTS]
    return found + [Way(layout, pods[-1], place) for place in PLACES if place != MIDDLE for layout in LAYOUTS]


def in_turns(keys: Iterable[tuple[str, Way]]) -> list[tuple[str, Way]]:
    """Probe by probe; what has the same number of pods stays together; otherwise in a random order."""
    probes: dict[str, dict[int, list[tuple[str, Way]]]] = defaultdict(lambda: defaultdict(list))
    for name, way in keys:
        probes[name][way.pods].append((name, way))
    return [
        key
        for sizes in probes.values()
        for together in random.sample(list(sizes.values()), len(sizes))
        for key in random.sample(together, len(together))
    ]


def state_rows(rounds: int, pods: int) -> list[dict[str, Any]]:
    took: dict[str, list[Took]] = defaultdict(list)
    with Namespaces() as namespaces:
        for _ in range(rounds):
            for each in measure_state(namespaces, pods):
                took[each.what].append(each)
    return [
        {
            "bench": "datapath-state",
            "what": what,
            "pods": pods,
            "objects": found[0].objects,
            "runs": len(found),
            **{
                name: round(statistics.median(asdict(each)[name] for each in found), 1)
                for name in ("wall_ms", "cpu_ms", "nft_cpu_ms")
            },
            "wall_max_ms": round(max(each.wall_ms for each in found), 1),
        }
        for what, found in took.items()
    ]


# What is made of it


def way_rows(times: Times, pods: list[int]) -> list[dict[str, Any]]:
    wire = Way(WIRE, 0)
    node = {
        (LESS, way): [all_of_it - least for all_of_it, least in zip(found, times[Ping.name, wire], strict=True)]
        for (name, way), found in times.items()
        if name == Ping.name and way.layout != WIRE
    }
    kinds = {kind.name: kind for kind in PROBES} | {LESS: Ping}
    every = {**times, **node}
    rows = []
    for (name, way), found in every.items():
        kind = kinds[name]
        row = {
            "bench": "datapath",
            "probe": name,
            "layout": way.layout,
            "pods": way.pods,
            "place": PLACES[way.place],
            "figure": round(kind.figure(statistics.median(found)), kind.digits),
            "unit": kind.unit,
            "rounds": len(found),
        }
        if way.layout in LAYOUTS:
            row["as_slow_as_ipamd"] = ratio(found, every[name, way._replace(layout=IPAMD)])
            if way.place == MIDDLE:
                row["as_slow_as_with_fewest"] = ratio(found, every[name, way._replace(pods=pods[0])])
        rows.append(row)
    return rows


def ratio(found: list[float], beside: list[float]) -> float:
    """How many times as long."""
    return round(statistics.median(one / other for one, other in zip(found, beside, strict=True)), 3)


def pick(rows: list[dict[str, Any]], probe: str, layout: str, pods: int, place: float = MIDDLE) -> dict[str, Any]:
    wanted = {"probe": probe, "layout": layout, "pods": pods, "place": PLACES[place]}
    return next(row for row in rows if wanted.items() <= row.items())


# What is shown


def report(rows: list[dict[str, Any]], state: list[dict[str, Any]], pods: list[int], rounds: int) -> None:
    head = f"{'':26}{IPAMD:>10}{f'/ {pods[0]} pods':>10}"
    print(head + "".join(f"{layout:>30}{'/ ipamd':>9}" for layout in LAYOUTS[1:]))
    digits = {kind.name: kind.digits for kind in PROBES} | {LESS: Ping.digits}
    for name, unit in dict.fromkeys((row["probe"], row["unit"]) for row in rows):
        floors = [
            f"; {floor}: {pick(rows, name, floor, 0)['figure']:,.{digits[name]}f}"
            for floor in (FLOORS if name != LESS else FLOORS[1:])
        ]
        print(f"\n{name}, {unit}{''.join(floors)}")
        for count in pods:
            line(f"{count} pods", digits[name], [pick(rows, name, layout, count) for layout in LAYOUTS])
        if name in (Ping.name, LESS):
            for place in (0.0, 1.0):
                which = f"{pods[-1]}, the {PLACES[place]} of them"
                line(which, digits[name], [pick(rows, name, layout, pods[-1], place) for layout in LAYOUTS])
    print(f"\nMedians of {rounds} rounds. Ratios are of times: 2.0 is twice as slow.")
    head = f"The state of a node with {pods[-1]} other pods"
    print(f"\n{head:40}{'objects':>8}{'wall ms':>10}{'max':>8}{'CPU ms':>9}{'nft CPU ms':>12}")
    for row in state:
        print(
            f"{row['what']:40}{row['objects']:8}{row['wall_ms']:10.1f}{row['wall_max_ms']:8.1f}"
            f"{row['cpu_ms']:9.1f}{row['nft_cpu_ms']:12.1f}"
        )
    aims(rows, state, pods)


def line(what: str, digits: int, found: list[dict[str, Any]]) -> None:
    ours, plain, snat = found
    growth = f"{ours['as_slow_as_with_fewest']:10.2f}" if "as_slow_as_with_fewest" in ours else f"{'':10}"
    print(
        f"  {what:24}{ours['figure']:10,.{digits}f}{growth}"
        f"{plain['figure']:30,.{digits}f}{plain['as_slow_as_ipamd']:9.2f}"
        f"{snat['figure']:30,.{digits}f}{snat['as_slow_as_ipamd']:9.2f}"
    )


def aims(rows: list[dict[str, Any]], state: list[dict[str, Any]], pods: list[int]) -> None:
    growth = pick(rows, Ping.name, IPAMD, pods[-1])["as_slow_as_with_fewest"]
    plain = pick(rows, Ping.name, TWO_RULES, pods[-1])["as_slow_as_ipamd"]
    net = pick(rows, LESS, TWO_RULES, pods[-1])["as_slow_as_ipamd"]
    last = pick(rows, Ping.name, TWO_RULES, pods[-1], 1.0)["as_slow_as_ipamd"]
    took = {row["what"]: row for row in state}
    audit = took["audit"]["cpu_ms"] + took["audit"]["nft_cpu_ms"]
    repair = took["repair all rules"]["wall_max_ms"]
    print(f"\nAims, at {pods[-1]} pods")
    for what, value, unit, met in (
        (f"ping of ipamd, times that at {pods[0]} pods, at most {AIM_GROWTH}", growth, "", growth <= AIM_GROWTH),
        (f"ping of two rules, times ipamd's, at least {AIM_RATIO:g}: middle pod", plain, "", plain >= AIM_RATIO),
        ("    the same, last pod of the list", last, "", last >= AIM_RATIO),
        ("    the same, middle pod, less the wire", net, "", net >= AIM_RATIO),
        (f"audit, CPU with nft's, less than {AIM_AUDIT_MS:g} ms", audit, " ms", audit < AIM_AUDIT_MS),
        (f"wiped rules back, slowest, in less than {AIM_REPAIR_MS:g} ms", repair, " ms", repair < AIM_REPAIR_MS),
    ):
        print(f"  {what:68}{value:9.2f}{unit:4}{'met' if met else 'missed'}")


def draw(rows: list[dict[str, Any]], state: list[dict[str, Any]], pods: list[int], folder: Path) -> None:
    plt = output.pyplot()
    if plt is None:
        return
    figure, axes = plt.subplots(2, 3, figsize=(11, 6.2), layout="constrained")
    colours = {IPAMD: output.COLOURS["ipamd"], TWO_RULES: "#D55E00", TWO_RULES_SNAT: "#E69F00"}
    for axis, kind in zip((axes[0, 0], axes[0, 1], axes[1, 0], axes[1, 1]), PROBES, strict=True):
        for layout, colour in colours.items():
            values = [pick(rows, kind.name, layout, count)["figure"] for count in pods]
            axis.plot(pods, values, color=colour, marker="o", markersize=3, label=layout)
        for floor, style in zip(FLOORS, ("--", ":"), strict=True):
            value = pick(rows, kind.name, floor, 0)["figure"]
            axis.axhline(value, color="#999999", linestyle=style, linewidth=0.9, label=floor)
        axis.set_ylim(bottom=0)
        axis.set_title(f"{kind.name}, {kind.unit}", fontsize=10)
        axis.set_xlabel("other pods on the node")
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axis.grid(axis="y", alpha=0.25)
    axes[0, 0].legend(fontsize=7, loc="upper left")
    draw_places(axes[0, 2], rows, pods[-1], colours)
    draw_state(axes[1, 2], state)
    output.save(figure, folder, "datapath.png")


def draw_places(axis: Any, rows: list[dict[str, Any]], pods: int, colours: dict[str, str]) -> None:
    width = 0.8 / len(colours)
    for shift, (layout, colour) in enumerate(colours.items()):
        values = [pick(rows, Ping.name, layout, pods, place)["figure"] for place in sorted(PLACES)]
        places = [at + (shift - 1) * width for at in range(len(values))]
        axis.bar_label(axis.bar(places, values, width, color=colour), fmt="%.1f", fontsize=6)
    axis.set_xticks(range(len(PLACES)), [PLACES[place] for place in sorted(PLACES)])
    axis.set_xlabel("place of the pod in the list of rules")
    axis.set_title(f"ping at {pods} pods, us, by place", fontsize=10)


def draw_state(axis: Any, state: list[dict[str, Any]]) -> None:
    names = [row["what"] for row in state][::-1]
    for key, shift, colour, label in (
        ("wall_ms", 0.2, "#9ecae1", "wall"),
        ("cpu_ms", -0.2, output.COLOURS["ipamd"], "CPU of the daemon"),
    ):
        values = [row[key] for row in state][::-1]
        bars = axis.barh([at + shift for at in range(len(names))], values, 0.4, color=colour, label=label)
        axis.bar_label(bars, fmt=" %.0f", fontsize=6)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.set_title(f"state of a node with {state[0]['pods']} pods, ms", fontsize=10)
    axis.margins(x=0.15)
    axis.legend(fontsize=7, loc="upper right", bbox_to_anchor=(1.0, 0.84))


if __name__ == "__main__":
    main()
