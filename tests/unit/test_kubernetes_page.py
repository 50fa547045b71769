"""docs/kubernetes-conformance.md says what the last runs found, of the specs in the pinned lists."""

from __future__ import annotations

import pytest

from tests.kubernetes.junit import Status
from tests.kubernetes.page import BEGIN, PAGE, Record, Run, parse, render
from tests.kubernetes.pinned import Expected, Spec, pinned

A, B, C = "[sig-network] DNS should a", "[sig-network] Services should b [x]", "[sig-network] DNS should c"
SPECS = [
    Spec(A, "dns", Expected.PASS),
    Spec(B, "services", Expected.SKIP, "wants 3 zones"),
    Spec(C, "dns", Expected.LEAVE, "no SCTP in this kernel"),
]
RUN = Run(2, 120, 4, 20, {A: Status.PASSED, B: Status.SKIPPED})
EMPTY = f"# Title\n\nWords.\n\n{BEGIN}\n"


def test_the_page_gives_back_what_was_written_into_it() -> None:
    record = Record().with_run("killed", RUN).with_run("iptables", Run(1, 90, 4, 0, {A: Status.FAILED}))
    page = render(EMPTY, SPECS, record)
    assert page.startswith(EMPTY)
    assert parse(page) == record
    assert render(page, SPECS, parse(page)) == page


def test_a_run_replaces_only_the_columns_of_its_mode() -> None:
    page = render(EMPTY, SPECS, Record().with_run("killed", RUN))
    again = render(page, SPECS, parse(page).with_run("nftables", Run(1, 80, 4, 0, {A: Status.PASSED})))
    assert f"| `{A}` | - | passed | - | passed |" in again
    assert f"| `{B}` | - | - | - | skipped |" in again
    assert "- no SCTP in this kernel: 1\n" in again and f"`{C}`" in again


def test_a_page_without_its_mark_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks the line"):
        render("# Title\n", SPECS, Record())


def test_the_page_is_what_its_record_and_the_lists_make() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert render(page, pinned(), parse(page)) == page


def test_a_run_of_some_specs_keeps_the_others() -> None:
    record = Record().with_run("killed", RUN).with_run("killed", Run(1, 9, 4, 1, {B: Status.PASSED}))
    assert record.runs["killed"] == Run(1, 9, 4, 1, {A: Status.PASSED, B: Status.PASSED})


def test_the_page_has_every_conformance_spec_passed_in_each_mode() -> None:
    record = parse(PAGE.read_text(encoding="utf-8"))
    assert record.runs
    conformance = {spec.name: Status.PASSED for spec in pinned(["conformance"])}
    for mode, run in record.runs.items():
        assert {name: run.outcomes.get(name) for name in conformance} == conformance, mode
