"""The core alone: what one event costs in `Pool.handle`, and whether that grows with the pool.

    python tests/bench/bench_core.py [--rounds 10000] [--json FILE] [--plots DIR]

Steady: half of the addresses are in use and a quarter cools; each round allocates one address, releases the oldest
attachment and lets virtual time go on, so that addresses become free again at the same pace. "wake" is an event that
finds nothing to do. Once with the addresses on as many ENIs as a large instance needs, once all on one, to tell the
cost of an address from that of an ENI. Waiting: so many requests come to an empty pool at once, wait, and are served
when their addresses come; the time is that of the whole burst divided by the requests.

CPU time of this process; nothing is carried out, recorded or sent. The median of ten parts.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections import deque
from ipaddress import IPv4Network
from pathlib import Path
from random import Random
from typing import Any

import output

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import AttachmentKey, Limits, ObservedEni, Owner, Targets
from ipamd.pool.pool import Pool

SUBNET = IPv4Network("8.0.0.0/5")  # has all of 10.0.0.0/8, and none of it is reserved

SIZES = (50, 250, 737)
# As the largest types, with one address more on each ENI: those hold 735 secondary ones.
PER_ENI = 50
PARTS = 10
STEADY = ("allocate", "release", "wake")
KINDS = (*STEADY, "waiting")


class Core:
    """A pool whose time is set by hand."""

    def __init__(self, targets: Targets, limits: Limits) -> None:
        self.pool = Pool(targets, limits, ("subnet-1",), Random(1), lambda: "token")
        self.now = 1000.0
        self._numbers = 0
        self._attached: deque[AttachmentKey] = deque()

    def start(self, addresses: int) -> None:
        enis, per_eni = [], self.pool.limits.secondary_per_eni
        for index, first in enumerate(range(0, max(addresses, 1), per_eni)):
            held = tuple(f"10.0.{n >> 8}.{n & 255}" for n in range(first, min(first + per_eni, addresses)))
            mac, own_ip = f"02:00:00:00:00:{index:02x}", f"10.1.0.{index}"
            primary = index == 0
            enis.append(
                ObservedEni(
                    f"eni-{index}",
                    mac,
                    "subnet-1",
                    own_ip,
                    held,
                    index,
                    f"attach-{index}",
                    "attached",
                    owned=not primary,
                    primary=primary,
                )
            )
        for effect in self.handle(on.Started(tuple(enis))):
            if isinstance(effect, do.ConfigureLink):
                self.handle(on.LinkReady(effect.op, f"eth{effect.device_index}", SUBNET))

    def handle(self, event: on.Event) -> tuple[do.Effect, ...]:
        return self.pool.handle(event, self.now).then

    def allocate(self) -> tuple[do.Effect, ...]:
        self._numbers += 1
        name = f"{self._numbers}"
        key = AttachmentKey("bench", name, "eth0")
        self._attached.append(key)
        return self.handle(on.AllocationRequested(name, key, Owner(), self.now + 30.0))

    def release(self) -> tuple[do.Effect, ...]:
        return self.handle(on.ReleaseRequested("", self._attached.popleft()))

    def wake(self) -> tuple[do.Effect, ...]:
        return self.handle(on.TimePassed())

    def forget_flows(self, effects: tuple[do.Effect, ...]) -> None:
        """At once, as a kernel does that tracks little."""
        for effect in effects:
            if isinstance(effect, do.ForgetFlows):
                self.handle(on.OperationDone(effect.op))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plots", type=Path, default=output.PLOTS, metavar="DIR")
    args = parser.parse_args()
    rows = []
    for size in SIZES:
        for per_eni in (PER_ENI, size) if size > PER_ENI else (PER_ENI,):
            enis = math.ceil(size / per_eni)
            measured = {**steady(size, enis, args.rounds), **waiting(size)}
            rows.append({"bench": "core", "addresses": size, "enis": enis, **measured})
    report(rows)
    if args.json:
        output.write_lines(args.json, rows)
    draw(rows, args.plots)


def steady(size: int, enis: int, rounds: int) -> dict[str, Any]:
    targets = Targets(warm_ips=0, minimum_ips=size)
    core = Core(targets, Limits(max_enis=enis, addresses_per_eni=math.ceil(size / enis) + 1))
    core.start(size)
    pause = targets.cooldown / (size // 4)
    for _ in range(size // 2):
        core.allocate()
    for _ in range(size):  # until as many cool as will
        turn(core, pause, {})
    parts = []
    for _ in range(PARTS):
        spent = dict.fromkeys(STEADY, 0)
        for _ in range(rounds // PARTS):
            turn(core, pause, spent)
        parts.append(spent)
    assert core.pool.counts().assigned == size // 2
    each = rounds // PARTS * 1000
    found = {f"{kind}_us": round(statistics.median(part[kind] for part in parts) / each, 2) for kind in STEADY}
    total = statistics.median(sum(part.values()) for part in parts) / each / len(STEADY)
    return {**found, "events_per_s": round(1e6 / total)}


def turn(core: Core, pause: float, spent: dict[str, int]) -> None:
    core.now += pause
    for kind, step in (("allocate", core.allocate), ("release", core.release), ("wake", core.wake)):
        before = time.thread_time_ns()
        effects = step()
        spent[kind] = spent.get(kind, 0) + time.thread_time_ns() - before
        core.forget_flows(effects)
        if kind == "allocate" and not any(isinstance(effect, do.Grant) for effect in effects):
            raise RuntimeError("an allocation was not granted at once: this measures something else")


def waiting(size: int) -> dict[str, Any]:
    """One ENI that takes them all, so that there is one call to wait for."""
    spent = []
    for _ in range(PARTS):
        core = Core(Targets(warm_ips=0), Limits(max_enis=1, addresses_per_eni=size + 1))
        core.start(0)
        before = time.thread_time_ns()
        for _ in range(size):
            core.allocate()
        core.now += core.pool.targets.coalesce
        call = next(effect for effect in core.wake() if isinstance(effect, do.AssignAddresses))
        addresses = tuple(f"10.0.{n >> 8}.{n & 255}" for n in range(call.count))
        grants = core.handle(on.AddressesAssigned(call.op, addresses))
        spent.append(time.thread_time_ns() - before)
        if sum(isinstance(effect, do.Grant) for effect in grants) != size:
            raise RuntimeError(f"not all of {size} requests were granted")
    return {"waiting_us": round(statistics.median(spent) / size / 1000, 2)}


def report(rows: list[dict[str, Any]]) -> None:
    print("CPU time in the core, microseconds for each event (waiting: for each request, start to grant)\n")
    print(f"{'addresses':>9}{'ENIs':>6}{'events/s':>10}{'allocate':>10}{'release':>9}{'wake':>7}{'waiting':>9}")
    for found in rows:
        print(
            f"{found['addresses']:9}{found['enis']:6}{found['events_per_s']:10}{found['allocate_us']:10.1f}{found['release_us']:9.1f}"
            f"{found['wake_us']:7.1f}{found['waiting_us']:9.1f}"
        )
    first = rows[0]
    print()
    for found in rows:
        if found["addresses"] == SIZES[-1]:
            grown = "  ".join(f"{kind} {found[f'{kind}_us'] / first[f'{kind}_us']:.1f}" for kind in KINDS)
            enis = "1 ENI" if found["enis"] == 1 else f"{found['enis']} ENIs"
            print(f"{found['addresses']} addresses on {enis}, times what {first['addresses']} on 1 cost: {grown}")


def draw(rows: list[dict[str, Any]], folder: Path) -> None:
    plt = output.pyplot()
    if plt is None:
        return
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for kind, colour in zip(KINDS, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False):
        for many, style in ((True, "-"), (False, "--")):
            chosen = [found for found in rows if many == (found["enis"] > 1) or found is rows[0]]
            if kind == "waiting" and not many:
                continue
            label = kind if kind == "waiting" else f"{kind}, {'one ENI per ' + str(PER_ENI) if many else 'one ENI'}"
            sizes = [found["addresses"] for found in chosen]
            values = [found[f"{kind}_us"] for found in chosen]
            axis.plot(sizes, values, marker="o", linestyle=style, color=colour, label=label)
    axis.set_xlim(0)
    axis.set_ylim(0)
    axis.set_xlabel("addresses in the pool (waiting: requests that wait at once)")
    axis.set_ylabel("CPU microseconds in the core")
    axis.set_title("One event in the core; waiting: one request of a burst", fontsize=10)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    output.save(figure, folder, "core.png")


if __name__ == "__main__":
    main()
