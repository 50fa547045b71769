"""The benchmark of the datapath runs, measures every way, and leaves nothing behind, interrupted or not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ipamd.sim import netns

pytestmark = pytest.mark.netns

BENCH = [sys.executable, str(Path(__file__).resolve().parents[1] / "bench" / "bench_datapath.py")]
LAYOUTS = {"ipamd", "two rules per pod", "two rules per pod, iptables"}
FLOORS = {"a wire", "forwarding alone"}


def test_every_line_of_the_table_is_measured(tmp_path: Path) -> None:
    rows_file = tmp_path / "rows.jsonl"
    command = [*BENCH, "--rounds", "1", "--seconds", "0.01", "--pods", "0", "3"]
    with subprocess.Popen([*command, "--json", str(rows_file), "--plots", str(tmp_path)]) as process:
        assert process.wait(timeout=120) == 0
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    ways = [row for row in rows if row["bench"] == "datapath"]
    assert all(row["figure"] > 0 for row in ways if row["probe"] != "ping less the wire")
    for probe in ("ping", "UDP", "TCP", "TCP connections"):
        measured = {(row["layout"], row["pods"]) for row in ways if row["probe"] == probe}
        assert measured == {(layout, pods) for layout in LAYOUTS for pods in (0, 3)} | {
            (floor, 0) for floor in FLOORS
        }
    assert {row["place"] for row in ways if row["probe"] == "ping" and row["pods"] == 3} == {
        "first",
        "middle",
        "last",
    }
    objects = {row["what"]: row["objects"] for row in rows if row["bench"] == "datapath-state"}
    assert objects["audit"] == 0
    assert objects["repair the pods' routes"] == 4
    assert all(
        objects[what] > 0 for what in ("build", "repair all rules", "repair the nft table", "repair all of it")
    )
    assert left_by(process) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_of_one_that_is_interrupted(number: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen([*BENCH, "--rounds", "500", "--pods", "0", "--plots", str(tmp_path)]) as process:
        deadline = time.monotonic() + 30
        while not left_by(process) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert left_by(process)
        process.send_signal(number)
        assert process.wait(timeout=30) != 0
    assert left_by(process) == []


def left_by(process: subprocess.Popen[bytes]) -> list[str]:
    return sorted(path.name for path in netns.DIRECTORY.glob(f"dp{process.pid}-*"))
