"""The figures of all settings side by side, as a table for people or data for programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ipamd.sim.policy.choices import Choice
from ipamd.sim.policy.figures import Figures
from ipamd.sim.policy.verdict import Verdict

# Label, and what stands there; an empty label stands before a group.
Row = tuple[str, Callable[[Figures], str]]


def table(found: Mapping[str, Figures]) -> list[str]:
    """Lines; a column for each setting."""
    rows: list[tuple[str, ...]] = []
    for title, group in _groups(list(found.values())):
        rows.append((title, *("" for _ in found)))
        rows += [(f"  {label}", *(say(figures) for figures in found.values())) for label, say in group]
    heads = [name.split(" ") for name in found]
    height = max(map(len, heads))
    head = [("", *(words[line] if line < len(words) else "" for words in heads)) for line in range(height)]
    widths = [max(map(len, cells)) for cells in zip(*head, *rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in [*head, *rows]
    ]


def _groups(all: Sequence[Figures]) -> list[tuple[str, list[Row]]]:
    reasons = sorted({reason for each in all for reason in each.waits.refusals})
    actions = sorted({action for each in all for action in each.calls.by_action})
    return [
        (
            "pods",
            [
                ("asked for an address", lambda f: f"{f.waits.asked}"),
                ("did not get it at once", lambda f: f"{f.waits.share:.1%}"),
                ("wait, median", lambda f: f"{f.waits.p50:.2f} s"),
                ("wait, 95 %", lambda f: f"{f.waits.p95:.2f} s"),
                ("wait, 99 %", lambda f: f"{f.waits.p99:.2f} s"),
                ("wait, longest", lambda f: f"{f.waits.max:.2f} s"),
                ("ended without one", lambda f: f"{f.waits.withdrawn}"),
                ("still wait at the end", lambda f: f"{f.waits.unserved}"),
            ],
        ),
        ("refused ADDs" if reasons else "refused ADDs: none", [_count_of(reason, _refusals) for reason in reasons]),
        (
            "addresses",
            [
                ("in use, mean", lambda f: f"{f.addresses.used_mean:.1f}"),
                ("in use, peak", lambda f: f"{f.addresses.used_peak}"),
                ("free, mean", lambda f: f"{f.addresses.free_mean:.1f}"),
                ("free, peak", lambda f: f"{f.addresses.free_peak}"),
                ("cooling, peak", lambda f: f"{f.addresses.cooling_peak}"),
                ("idle, mean", lambda f: f"{f.addresses.idle_mean:.1f}"),
                ("idle address-hours", lambda f: f"{f.addresses.idle_hours:.1f}"),
            ],
        ),
        (
            "ENIs",
            [
                ("mean", lambda f: f"{f.addresses.enis_mean:.1f}"),
                ("peak", lambda f: f"{f.addresses.enis_peak}"),
            ],
        ),
        (
            "EC2 calls",
            [
                ("all", lambda f: f"{f.calls.total}"),
                ("per hour", lambda f: f"{f.calls.per_hour:.1f}"),
                ("held back by the budget", lambda f: f"{f.calls.delayed}"),
                *(_count_of(action, _by_action) for action in actions),
            ],
        ),
    ]


def _refusals(figures: Figures) -> Mapping[str, int]:
    return figures.waits.refusals


def _by_action(figures: Figures) -> Mapping[str, int]:
    return figures.calls.by_action


def _count_of(name: str, counts: Callable[[Figures], Mapping[str, int]]) -> Row:
    return name, lambda figures: str(counts(figures).get(name, 0))


def said(verdict: Verdict) -> list[str]:
    """Which is best, and below that why."""
    names = [f"[{name}]" for name in verdict.best] or ["none"]
    return [f"  {verdict.view}: {' = '.join(names)}", f"    {verdict.why}"]


def data(
    workload: Mapping[str, Any],
    delays: Mapping[str, float],
    chosen: Sequence[Choice],
    found: Mapping[str, Figures],
    judged: Sequence[Verdict],
    warned: Sequence[str],
) -> dict[str, Any]:
    """For `-o json`; docs/simulate-policy.md says what it has."""
    settings = []
    for choice in chosen:
        figures = found[choice.name]
        waits = {**asdict(figures.waits), "share": figures.waits.share}
        rest = {"addresses": asdict(figures.addresses), "calls": asdict(figures.calls)}
        settings.append({"name": choice.name, "pool": choice.pool.model_dump(), "waits": waits, **rest})
    return {
        "workload": dict(workload),
        "delays": dict(delays),
        "settings": settings,
        "verdicts": [asdict(verdict) for verdict in judged],
        "warnings": list(warned),
    }
