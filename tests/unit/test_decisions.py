"""docs/decisions: numbers without gaps, one form, an index in order, and paths that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "decisions"
RECORDS = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")
PARTS = ["Decision", "Why", "Cost", "Where"]


def title(record: Path) -> str:
    return record.read_text().splitlines()[0]


def test_numbers_have_no_gap() -> None:
    assert [record.name[:4] for record in RECORDS] == [f"{number:03}-" for number in range(1, len(RECORDS) + 1)]


def test_index_lists_every_record_in_order() -> None:
    rows = re.findall(r"(?m)^\| \[(\d{3})\]\((.+?)\) \| (.+) \|$", (FOLDER / "README.md").read_text())
    assert rows == [(record.name[:3], record.name, title(record)[6:]) for record in RECORDS]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_record_has_its_number_and_four_parts(record: Path) -> None:
    text = record.read_text()
    assert title(record).startswith(f"# {record.name[:3]} ")
    assert re.findall(r"(?m)^\*\*(\w+)\.\*\* \S", text) == PARTS
    assert len(text.splitlines()) <= 15


@pytest.mark.parametrize("page", [*RECORDS, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_paths_named_in_a_page_exist(page: Path) -> None:
    """Links are test_pages.py's; these are paths in code quotes."""
    named = re.findall(r"`((?:ipamd|cni_shim|tests|deploy|proto|docs)/[\w./*-]+)`", page.read_text())
    assert [path for path in named if not any(ROOT.glob(path.rstrip("/")))] == []
