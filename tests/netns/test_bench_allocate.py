"""The benchmark of Allocate over the socket runs, and leaves what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.netns

BENCH = Path(__file__).resolve().parents[1] / "bench" / "bench_allocate.py"


def test_every_line_of_the_table_is_measured(tmp_path: Path) -> None:
    rows_file = tmp_path / "rows.jsonl"
    command = [sys.executable, str(BENCH), "--rounds", "1", "--seconds", "0.02"]
    subprocess.run([*command, "--json", str(rows_file), "--plots", str(tmp_path)], check=True, timeout=240)
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    assert {row["addresses"] for row in rows} == {0, 50, 250, 735}
    assert {row["callers"] for row in rows} == {1, 16, 64}
    assert all(row["calls"] > 0 and row["allocate_p50_ms"] <= row["allocate_p99_ms"] for row in rows)
