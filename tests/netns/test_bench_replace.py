"""The benchmark of a replacement runs, and its parts make up the whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.netns

BENCH = Path(__file__).resolve().parents[1] / "bench" / "bench_replace.py"


def test_each_part_of_a_replacement_is_measured(tmp_path: Path) -> None:
    rows_file = tmp_path / "rows.jsonl"
    command = [
        sys.executable,
        str(BENCH),
        "--rounds",
        "1",
        "--pods",
        "2",
        "--reply",
        "0.01",
        "--json",
        str(rows_file),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (row,) = map(json.loads, rows_file.read_text().splitlines())
    assert row["gap_ms"] == pytest.approx(row["stop_ms"] + row["again_ms"] + row["start_ms"])
    assert min(row["anew_ms"], row["cpu_ms"], row["stop_ms"]) > 0
