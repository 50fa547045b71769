"""The benchmarks of the plugin and of pods through containerd run, and measure every packaging and yardstick."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.netns

BENCH = Path(__file__).resolve().parents[1] / "bench"


def test_every_case_is_measured_alone_and_in_a_burst(tmp_path: Path) -> None:
    rows_file = tmp_path / "rows.jsonl"
    command = [
        sys.executable,
        str(BENCH / "bench_plugin.py"),
        "--rounds",
        "1",
        "--bursts",
        "1",
        "--json",
        str(rows_file),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    cases = {"ipamd-cni, launcher", "ptp + host-local", "naive Python"}
    if "without the static executable" not in run.stdout:
        cases.add("ipamd-cni, static")
    for kind in ("plugin alone", "plugin bursts"):
        assert {row["case"] for row in rows if row["bench"] == kind} == cases
    parts = [row for row in rows if row["bench"] == "plugin parts"]
    timed = [row for row in rows if row not in parts]
    assert all(row[verb][key] > 0 for row in timed for verb in ("ADD", "DEL") for key in ("ms", "cpu_ms"))
    assert parts
    for part in parts:
        whole = part.pop("the whole")
        times = [value for name, value in part.items() if name != "bench"]
        assert len(times) > 8
        assert all(value >= 0 for value in times)
        assert sum(times) == pytest.approx(whole, rel=1e-3)


def test_pods_are_measured_with_ours_and_with_ptp(tmp_path: Path) -> None:
    rows_file = tmp_path / "rows.jsonl"
    command = [sys.executable, str(BENCH / "bench_pods.py"), "--rounds", "1", "--sizes", "1", "3"]
    run = subprocess.run(
        [*command, "--json", str(rows_file)], capture_output=True, text=True, timeout=180, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    cases = {"ipamd-cni, launcher", "ptp + host-local"}
    if "without the static executable" not in run.stderr:
        cases.add("ipamd-cni, static")
    assert {(row["case"], row["pods"]) for row in rows} == {(case, pods) for case in cases for pods in (1, 3)}
    assert all(row["up_seconds"] > 0 and row["down_seconds"] > 0 for row in rows)
