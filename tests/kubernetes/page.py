"""docs/kubernetes-conformance.md: what of Kubernetes' own tests passes, read from the page and written into it.

The page is also the record: a run of one mode replaces what that mode's column has of these specs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from tests.kubernetes.junit import Result, Status
from tests.kubernetes.pinned import GROUPS, Expected, Spec, pinned

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "kubernetes-conformance.md"
# Mode -> what differs in it.
MODES: Final = {
    "mixed": "kube-proxy in nftables mode on one worker, in iptables mode on the other (`make test-kubernetes`)",
    "nftables": "kube-proxy in nftables mode on each worker",
    "iptables": "kube-proxy in iptables mode on each worker",
    "killed": "as mixed, and every 5 s the daemon of one worker is ended by `kill -9`, in turn",
}
BEGIN: Final = "<!-- written by python -m tests.kubernetes.conformance --write -->"
_MARKS: Final = {Status.PASSED: "passed", Status.SKIPPED: "skipped", Status.FAILED: "**failed**"}
_UNKNOWN: Final = "-"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one mode. `specs`: how many it had. `kills`: of daemons, by kill -9. `outcomes`: spec -> its status;
    for a mode on the page also those of its earlier runs."""

    specs: int
    seconds: int
    processes: int
    kills: int
    outcomes: Mapping[str, Status]


@dataclass(frozen=True, slots=True)
class Record:
    """Mode -> its last run."""

    runs: Mapping[str, Run] = field(default_factory=dict)

    def with_run(self, mode: str, run: Run) -> Record:
        """What was not in the run keeps its last outcome."""
        before = self.runs[mode].outcomes if mode in self.runs else {}
        merged = replace(run, outcomes={**before, **run.outcomes})
        return Record({**self.runs, mode: merged})


def outcomes(results: Sequence[Result]) -> dict[str, Status]:
    return {result.name: result.status for result in results}


def parse(page: str) -> Record:
    """What the tables of the page say. A mode without a run is not in it."""
    _, _, tables = page.partition(BEGIN)
    marks = {mark: status for status, mark in _MARKS.items()}
    header = re.search(r"^\| spec \| (.*) \|$", tables, re.MULTILINE)
    modes = header[1].split(" | ") if header else []
    found: dict[str, dict[str, Status]] = {mode: {} for mode in modes}
    for name, cells in re.findall(r"^\| `(\[sig-[^`]*)` \| (.*) \|$", tables, re.MULTILINE):
        for mode, mark in zip(modes, cells.split(" | "), strict=True):
            if mark in marks:
                found[mode][name] = marks[mark]
    runs = {}
    for line in re.findall(r"^\| (\w+) \| [^|]* \| (\d+) in (\d+) s \| (\d+) \| (\d+) \|", tables, re.MULTILINE):
        mode, specs, seconds, processes, kills = line
        runs[mode] = Run(int(specs), int(seconds), int(processes), int(kills), found[mode])
    return Record(runs)


def render(page: str, specs: Sequence[Spec], record: Record) -> str:
    """The page with its tables made anew; what stands before them is kept."""
    head, mark, _ = page.partition(BEGIN)
    if not mark:
        raise ValueError(f"the page lacks the line {BEGIN}")
    parts = [_runs(record), _summary(specs, record), *(_group(group, specs, record) for group in GROUPS)]
    return f"{head}{BEGIN}\n\n" + "\n".join(part for part in parts if part)


def write(mode: str, run: Run) -> None:
    """Put a run into the page, in place of the mode's last one. Raises OSError."""
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(render(text, pinned(), parse(text).with_run(mode, run)), encoding="utf-8")


def _runs(record: Record) -> str:
    lines = ["## Runs\n", "| mode | what it is | last run, specs | at a time | kills | passed | skipped | failed |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for mode, what in MODES.items():
        if (run := record.runs.get(mode)) is None:
            continue
        counts = " | ".join(str(list(run.outcomes.values()).count(status)) for status in Status)
        lines.append(
            f"| {mode} | {what} | {run.specs} in {run.seconds} s | {run.processes} | {run.kills} | {counts} |"
        )
    return "\n".join(lines) + "\n"


def _summary(specs: Sequence[Spec], record: Record) -> str:
    lines = [
        "## Groups\n",
        f"| group | specs | not run | {' | '.join(MODES)} |",
        "|---|---|---|" + "---|" * len(MODES),
    ]
    for group, title in GROUPS.items():
        own = [spec for spec in specs if spec.group == group]
        left = sum(spec.expected is Expected.LEAVE for spec in own)
        cells = " | ".join(_passed(own, record.runs.get(mode)) for mode in MODES)
        lines.append(f"| {title} | {len(own)} | {left} | {cells} |")
    return "\n".join(lines) + "\n"


def _passed(specs: Sequence[Spec], run: Run | None) -> str:
    """How many of those that ran have passed; what skipped itself is counted apart."""
    done = [run.outcomes[spec.name] for spec in specs if run and spec.name in run.outcomes]
    if not done:
        return _UNKNOWN
    skipped = done.count(Status.SKIPPED)
    text = f"{done.count(Status.PASSED)} of {len(done) - skipped}"
    return f"{text}, {skipped} skipped" if skipped else text


def _group(group: str, specs: Sequence[Spec], record: Record) -> str:
    own = [spec for spec in specs if spec.group == group]
    started = [spec for spec in own if spec.expected is not Expected.LEAVE]
    lines = [f"## {GROUPS[group]}\n"]
    if started:
        lines += [f"| spec | {' | '.join(MODES)} |", "|---|" + "---|" * len(MODES)]
        lines += [
            f"| `{spec.name}` | {' | '.join(_outcome(spec, record, mode) for mode in MODES)} |" for spec in started
        ]
        lines.append("")
    lines += _reasons("Skipped by themselves", own, Expected.SKIP)
    lines += _reasons("Not run", own, Expected.LEAVE)
    return "\n".join(lines)


def _outcome(spec: Spec, record: Record, mode: str) -> str:
    run = record.runs.get(mode)
    return _MARKS[run.outcomes[spec.name]] if run and spec.name in run.outcomes else _UNKNOWN


def _reasons(title: str, specs: Sequence[Spec], expected: Expected) -> list[str]:
    chosen = [spec for spec in specs if spec.expected is expected]
    if not chosen:
        return []
    reasons = list(dict.fromkeys(spec.reason for spec in chosen))
    lines = [f"{title}:\n"]
    for reason in reasons:
        names = [spec.name for spec in chosen if spec.reason == reason]
        lines.append(f"- {reason}: {len(names)}")
        if expected is Expected.LEAVE:
            lines += [f"    - `{name}`" for name in names]
    return [*lines, ""]
