"""Which of Kubernetes' own network tests are expected to run here, and what each is expected to do.

The lists in `specs/*.txt` name every `[sig-network]` spec of the e2e program, one file for each group. So a spec is
noticed that vanishes, appears, or skips itself.

A file has sections, which begin with a line `pass`, `skip: REASON` or `leave: REASON` and name one spec a line. `#`
begins a comment.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from tests.kubernetes.junit import Result, Status

LISTS: Final = Path(__file__).with_name("specs")
# File of a list -> its title, in the order of the page.
GROUPS: Final = {
    "conformance": "Conformance",
    "granular": "Granular Checks",
    "hostport": "HostPort, SCTP",
    "affinity": "Session affinity",
    "traffic": "Services with traffic policies",
    "services": "Services, more",
    "dns": "DNS, and the internet",
    "conntrack": "Conntrack and kube-proxy",
    "others": "Others",
    "netpol": "NetworkPolicy",
}


class Expected(Enum):
    PASS = "pass"
    SKIP = "skip"  # started, and skips itself for want of something that the cluster has not
    LEAVE = "leave"  # not started


@dataclass(frozen=True, slots=True)
class Spec:
    """`reason`: why it is skipped or left; empty for one that passes."""

    name: str
    group: str
    expected: Expected
    reason: str = ""


class BadList(Exception):
    """A list can't be read; the message says where and why."""


def pinned(groups: Iterable[str] = GROUPS, folder: Path = LISTS) -> list[Spec]:
    """The specs of these groups, in their order. Raises `BadList`."""
    return [spec for group in groups for spec in parse(group, (folder / f"{group}.txt").read_text(encoding="utf-8"))]


def parse(group: str, text: str) -> list[Spec]:
    """Raises `BadList`."""
    specs: list[Spec] = []
    section: tuple[Expected, str] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        if line.startswith("[sig-"):
            if section is None:
                raise BadList(f"{group}.txt:{number}: a spec before the first section")
            specs.append(Spec(line, group, *section))
            continue
        section = _section(line)
        if section is None:
            raise BadList(f"{group}.txt:{number}: {line!r} is neither a spec nor a section")
    return specs


def _section(line: str) -> tuple[Expected, str] | None:
    """None: the line begins no section."""
    word, _, reason = line.partition(":")
    try:
        expected = Expected(word)
    except ValueError:
        return None
    reason = reason.strip()
    return (expected, reason) if bool(reason) == (expected is not Expected.PASS) else None


def focus(specs: Iterable[Spec]) -> str:
    """A regular expression (Go's RE2) that selects just those of `specs` that should run.

    Ginkgo matches it against "SUITE NAME"; a spec's name may be the beginning of another's, but not its end."""
    names = dict.fromkeys(spec.name for spec in specs if spec.expected is not Expected.LEAVE)
    return f"({'|'.join(map(_quoted, names))}) *$"


def _quoted(name: str) -> str:
    """Only what RE2 knows as an escape: `re.escape` quotes spaces and `#` as well, which would double the length."""
    return re.sub(r"[][\\.+*?()|{}^$]", r"\\\g<0>", name)


def listed(output: str) -> list[str]:
    """The names of the network's specs in what `e2e.test --list-tests` prints."""
    found = re.findall(r"^ +\S+:\d+: (\[sig-network\].*)$", output, re.MULTILINE)
    # The program's own list keeps the spaces at the end of a name; the lists here do not.
    return [name.rstrip() for name in found]


def drift(specs: Sequence[Spec], names: Iterable[str]) -> list[str]:
    """How the lists differ from the program's own list, a line each; empty: not at all."""
    here, there = Counter(spec.name for spec in specs), Counter(names)
    return [
        *(f"gone from the program, or listed too often: {name}" for name in sorted((here - there).elements())),
        *(f"new in the program: {name}" for name in sorted((there - here).elements())),
    ]


def surprises(specs: Iterable[Spec], results: Iterable[Result]) -> list[str]:
    """Where the results are not what the lists expect, a line each; empty: nowhere."""
    outcomes: Mapping[str, Result] = {result.name: result for result in results}
    wanted = {spec.name: spec for spec in specs}
    found = [_surprise(spec, outcomes.get(name)) for name, spec in wanted.items()]
    found += [f"ran without being listed: {name}" for name in outcomes if name not in wanted]
    return [line for line in found if line]


def _surprise(spec: Spec, result: Result | None) -> str:
    """Empty: as expected."""
    if spec.expected is Expected.LEAVE:
        return f"ran, though the list leaves it out: {spec.name}" if result else ""
    if result is None:
        return f"did not run: {spec.name}"
    if result.status is Status.FAILED:
        return f"failed: {spec.name}: {result.message}"
    if result.status is Status.SKIPPED and spec.expected is Expected.PASS:
        return f"skipped itself, though the list says that it passes: {spec.name}: {result.message}"
    if result.status is Status.PASSED and spec.expected is Expected.SKIP:
        return f"passed, though the list says that it skips itself ({spec.reason}): {spec.name}"
    return ""
