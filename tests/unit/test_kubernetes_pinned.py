"""The pinned lists of Kubernetes' own tests: how they are read, and what is noticed where a run differs from them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.kubernetes.junit import NoReport, Result, Status, read
from tests.kubernetes.pinned import BadList, Expected, Spec, drift, focus, listed, parse, pinned, surprises

A, B, C = "[sig-network] DNS should a [Conformance]", "[sig-network] DNS should b (c+)", "[sig-network] DNS should c"
LIST = f"""# what it is
pass
{A}

skip: wants 3 zones
{B}
leave: no SCTP in this kernel
{C}
"""
SPECS = [
    Spec(A, "dns", Expected.PASS),
    Spec(B, "dns", Expected.SKIP, "wants 3 zones"),
    Spec(C, "dns", Expected.LEAVE, "no SCTP in this kernel"),
]
GOOD = [Result(A, Status.PASSED, 1.0), Result(B, Status.SKIPPED, 0.1, "3 zones wanted")]


def test_a_list_has_sections() -> None:
    assert parse("dns", LIST) == SPECS


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (f"{A}\n", "dns.txt:1: a spec before the first section"),
        ("pass\nsomething\n", "dns.txt:2: 'something' is neither"),
        ("pass: why\n", "dns.txt:1: 'pass: why' is neither"),
        ("skip\n", "dns.txt:1: 'skip' is neither"),
        ("leave:  \n", "dns.txt:1: 'leave:  ' is neither"),
    ],
)
def test_a_bad_list_is_refused_with_its_line(text: str, complaint: str) -> None:
    with pytest.raises(BadList, match=re.escape(complaint)):
        parse("dns", text)


def test_focus_selects_what_is_started_and_nothing_else() -> None:
    chosen = re.compile(focus(SPECS))
    assert [bool(chosen.search(f"Kubernetes e2e suite {name}")) for name in (A, B, C)] == [True, True, False]
    assert not chosen.search(f"Kubernetes e2e suite {A} and more")


def test_the_programs_own_list_is_read() -> None:
    output = (
        "The following spec names can be used with 'ginkgo run --focus/skip':\n"
        f"    network/dns.go:54: {A}\n    network/proxy.go:87: {C} \n    node/pods.go:1: [sig-node] Pods should d\n\n"
    )
    assert listed(output) == [A, C]


def test_a_spec_that_vanishes_or_appears_is_noticed() -> None:
    assert drift(SPECS, [C, B, A]) == []
    assert drift(SPECS, [A, B, f"{C} now"]) == [
        f"gone from the program, or listed too often: {C}",
        f"new in the program: {C} now",
    ]


def test_a_spec_listed_twice_is_noticed() -> None:
    assert drift([*SPECS, SPECS[0]], [A, B, C]) == [f"gone from the program, or listed too often: {A}"]


def test_results_as_listed_are_no_surprise() -> None:
    assert surprises(SPECS, GOOD) == []


@pytest.mark.parametrize(
    ("results", "surprise"),
    [
        (GOOD[1:], f"did not run: {A}"),
        (GOOD[:1], f"did not run: {B}"),
        ([Result(A, Status.FAILED, 1.0, "no answer"), GOOD[1]], f"failed: {A}: no answer"),
        (
            [Result(A, Status.SKIPPED, 1.0, "no nodes"), GOOD[1]],
            f"skipped itself, though the list says that it passes: {A}: no nodes",
        ),
        (
            [GOOD[0], Result(B, Status.PASSED, 1.0)],
            f"passed, though the list says that it skips itself (wants 3 zones): {B}",
        ),
        ([GOOD[0], Result(B, Status.FAILED, 1.0, "x")], f"failed: {B}: x"),
        ([*GOOD, Result(C, Status.PASSED, 1.0)], f"ran, though the list leaves it out: {C}"),
        ([*GOOD, Result("[SynchronizedBeforeSuite]", Status.FAILED, 1.0)], "ran without being listed"),
        ([], f"did not run: {A}"),
    ],
)
def test_each_difference_is_a_surprise(results: list[Result], surprise: str) -> None:
    assert any(line.startswith(surprise) for line in surprises(SPECS, results))


def test_the_report_of_a_run_is_read(tmp_path: Path) -> None:
    file = tmp_path / "junit_01.xml"
    file.write_text(
        f"""<?xml version="1.0" encoding="UTF-8"?>
<testsuites><testsuite name="Kubernetes e2e suite"><properties/>
<testcase name="[SynchronizedBeforeSuite]" status="passed" time="0.5"/>
<testcase name="[It] {A}" status="passed" time="12.5"/>
<testcase name="[It] {B}" status="skipped" time="0.1"><skipped message="skipped - wants 3&#xA;zones"/></testcase>
<testcase name="[It] {C}" status="timedout" time="60"><failure message="" type="timedout">[FAILED] no
  answer</failure></testcase>
<testcase name="[It] [sig-node] Pods" status="skipped" time="0"><skipped message="skipped"/></testcase>
<testcase name="[ReportAfterSuite]" status="failed" time="1"><failure type="failed">full disk</failure></testcase>
</testsuite></testsuites>"""
    )
    assert read(file) == [
        Result(A, Status.PASSED, 12.5),
        Result(B, Status.SKIPPED, 0.1, "wants 3 zones"),
        Result(C, Status.FAILED, 60.0, "no answer"),
        Result("[ReportAfterSuite]", Status.FAILED, 1.0, "full disk"),
    ]


@pytest.mark.parametrize("text", [None, "", "<testsuites><testcase"])
def test_a_report_that_is_not_whole_is_no_report(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "junit_01.xml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(NoReport, match=re.escape(str(file))):
        read(file)


def test_all_conformance_specs_are_expected_to_pass() -> None:
    specs = pinned()
    conformance = [spec for spec in specs if "[Conformance]" in spec.name]
    assert len(conformance) == 45
    assert {(spec.group, spec.expected) for spec in conformance} == {("conformance", Expected.PASS)}


def test_no_spec_is_listed_twice() -> None:
    names = [spec.name for spec in pinned()]
    assert sorted(names) == sorted(set(names))
