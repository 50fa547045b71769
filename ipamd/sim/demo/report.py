"""What the demo shows: a line for each thing that happens, a live picture of the pools, and tables at the end."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ipamd.sim.demo.ping import Endpoint
from ipamd.sim.runtimes import Pod

_ASSIGNED, _COOLING, _FREE, _ROOM = "■", "▨", "□", "·"
_LEGEND = f"{_ASSIGNED} used by a pod  {_COOLING} cooling  {_FREE} free  {_ROOM} room"
_ANSWERED, _SILENT, _SELF = "●", "✗", "·"


@dataclass(frozen=True, slots=True)
class NodeView:
    """What is shown of a node at one moment: `ipamctl status` and `ipamctl enis`."""

    name: str
    instance_type: str
    status: Mapping[str, Any]
    enis: Sequence[Mapping[str, Any]]


@dataclass
class Reporter:
    """Lines with the time since the start; on a terminal the pools are drawn below them all the time."""

    console: Console
    _started: float = field(default_factory=time.monotonic)
    _live: Live | None = None
    _seen: dict[tuple[str, str], str] = field(default_factory=dict)
    _counts: dict[str, str] = field(default_factory=dict)

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{self.elapsed:6.1f} s[/dim]  {escape(text)}", highlight=False, soft_wrap=True)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def show(self, *pictures: Group) -> None:
        for picture in pictures:
            self.console.print()
            self.console.print(picture)
        self.console.print()

    def show_commands(self, commands: Mapping[str, str]) -> None:
        """`commands`: purpose -> command line, each on a line of its own that can be copied."""
        self.console.print()
        for purpose, command in commands.items():
            self.console.print(f"[dim]# {escape(purpose)}[/dim]", highlight=False, soft_wrap=True)
            self.console.print(escape(command), highlight=False, soft_wrap=True)
        self.console.print()

    @contextmanager
    def live(self) -> Iterator[None]:
        """While it lasts, `observe` draws the pools, if there is a terminal to draw on."""
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def observe(self, views: Sequence[NodeView]) -> None:
        """Say what has changed since the last time, and draw."""
        for view in views:
            for eni in view.enis:
                self._observe_eni(view, eni)
            self._observe_counts(view)
        if self._live is not None:
            self._live.update(pools_table(views), refresh=True)

    def _observe_eni(self, view: NodeView, eni: Mapping[str, Any]) -> None:
        # An ENI has no id before EC2 has made it.
        key = (view.name, eni["id"] or f"new at index {eni['device_index']}")
        if self._seen.get(key) == eni["state"]:
            return
        self._seen[key] = eni["state"]
        what = "primary ENI" if eni["primary"] else "ENI"
        where = f" as {eni['link']}" if eni["link"] else ""
        size = f", room for {eni['capacity']} pods" if eni["state"] == "ready" else ""
        self.say(f"{view.name}: {what} {eni['id'] or 'asked for'}{where}: {eni['state']}{size}")

    def _observe_counts(self, view: NodeView) -> None:
        counts = view.status
        text = f"{counts['assigned']} pods, {counts['free']} free"
        for name in ("pending", "waiting", "cooling"):
            text += f", {counts[name]} {name}" if counts[name] else ""
        if self._counts.get(view.name) != text:
            self._counts[view.name] = text
            if self._live is None:
                self.say(f"{view.name}: {text}")


def _table() -> Table:
    """Without lines between columns: all of it has to fit 80 columns."""
    return Table(box=box.SIMPLE_HEAD, padding=0)


def _titled(title: str, table: Table, note: str = "") -> Group:
    # Not the table's own title and caption, which wrap at its width.
    return Group(Text(title, style="bold"), table, *([Text(note, style="dim")] if note else []))


def pools_table(views: Sequence[NodeView]) -> Group:
    table = _table()
    for column in ("node", "type", "ENI", "link", "state", "addresses"):
        table.add_column(column)
    for column in ("pods", "free", "cooling"):
        table.add_column(column, justify="right")
    for view in views:
        for position, eni in enumerate(view.enis):
            table.add_row(
                view.name if position == 0 else "",
                view.instance_type if position == 0 else "",
                eni["id"] or "(asked for)",
                eni["link"],
                eni["state"],
                _bar(eni),
                str(eni["assigned"]),
                str(eni["free"]),
                str(eni["cooling"]),
            )
    return _titled("Address pools", table, _LEGEND)


def _bar(eni: Mapping[str, Any]) -> Text:
    used = eni["assigned"] + eni["cooling"] + eni["free"]
    return Text.assemble(
        (_ASSIGNED * eni["assigned"], "green"),
        (_COOLING * eni["cooling"], "yellow"),
        (_FREE * eni["free"], "cyan"),
        (_ROOM * max(eni["capacity"] - used, 0), "dim"),
    )


def pods_table(pods_by_node: Sequence[tuple[str, Sequence[Pod]]], enis: Mapping[str, str]) -> Group:
    """`enis`: container id -> ENI, by the ledger."""
    table = _table()
    for column in ("node", "pod", "address", "ENI"):
        table.add_column(column)
    table.add_column("up after", justify="right")
    for name, pods in pods_by_node:
        for position, pod in enumerate(pods):
            table.add_row(
                name if position == 0 else "",
                pod.name,
                pod.ip,
                enis.get(pod.id, "?"),
                f"{pod.add_seconds * 1000:.0f} ms",
            )
    return _titled("Pods", table)


def ping_table(endpoints: Sequence[Endpoint], silent: Iterable[tuple[Endpoint, Endpoint]]) -> Group:
    """One row for each source. The column of a node has a mark for the node itself, then one for each of its pods."""
    missing = set(silent)
    nodes = list(dict.fromkeys(endpoint.node for endpoint in endpoints))
    table = _table()
    table.add_column("from")
    for name in nodes:
        table.add_column(name)
    for source in endpoints:
        cells = [
            Text.assemble(*(_mark(source, target, missing) for target in endpoints if target.node == name))
            for name in nodes
        ]
        table.add_row(source.name, *cells)
    note = f"{_ANSWERED} answered  {_SILENT} no answer  {_SELF} itself"
    return _titled("Pings: from each (row) to every node and its pods (columns)", table, note)


def _mark(source: Endpoint, target: Endpoint, missing: set[tuple[Endpoint, Endpoint]]) -> tuple[str, str]:
    if source is target:
        return _SELF, "dim"
    return (_SILENT, "bold red") if (source, target) in missing else (_ANSWERED, "green")


def latency_table(rows: Mapping[str, Sequence[float]], means: Mapping[str, tuple[int, float]], note: str) -> Group:
    """`rows`: seconds of each; `means`: how many and their mean in seconds, where only that is known."""
    table = _table()
    table.add_column("")
    for column in ("number", "min", "median", "p99", "max", "mean"):
        table.add_column(column, justify="right")
    for name, seconds in rows.items():
        ordered = sorted(seconds)
        last = max(-(-99 * len(ordered) // 100) - 1, 0)  # nearest rank
        values = (ordered[0], statistics.median(ordered), ordered[last], ordered[-1], statistics.fmean(ordered))
        table.add_row(name, str(len(ordered)), *(f"{value * 1000:.1f}" for value in values))
    for name, (number, mean) in means.items():
        table.add_row(name, str(number), "", "", "", "", f"{mean * 1000:.1f}")
    return _titled("How long an ADD took, all at once (ms)", table, note)


def calls_table(phases: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> Group:
    """EC2 calls by node and phase."""
    table = _table()
    table.add_column("node")
    table.add_column("for")
    table.add_column("calls", justify="right")
    table.add_column("which")
    for (node, phase), calls in phases.items():
        which = ", ".join(
            f"{number} {action}" + ("" if outcome == "ok" else f" ({outcome})")
            for (action, outcome), number in Counter((call["action"], call["outcome"]) for call in calls).items()
        )
        table.add_row(node, phase, str(len(calls)), which or "-")
    return _titled("EC2 calls", table)
