"""The benchmark of the start runs, and finds every part of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.netns

BENCH = Path(__file__).resolve().parents[1] / "bench" / "bench_start.py"


def test_start_memory_and_imports_are_measured(tmp_path: Path) -> None:
    rows_file = tmp_path / "rows.jsonl"
    command = [
        sys.executable,
        str(BENCH),
        "--rounds",
        "1",
        "--pods",
        "2",
        "--pairs",
        "3",
        "--allocations",
        "10",
        "--reply",
        "0.01",
    ]
    run = subprocess.run(
        [*command, "--json", str(rows_file)], capture_output=True, text=True, timeout=180, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found: dict[str, list[dict[str, object]]] = {}
    for line in rows_file.read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row.pop("bench"), []).append(row)
    (start,) = found["start"]
    timeline = start["timeline"]
    assert isinstance(timeline, dict)
    assert list(timeline) == sorted(timeline, key=lambda name: timeline[name])
    # Nothing is granted before the pool knows what EC2 says.
    assert timeline["ec2.call DescribeNetworkInterfaces'"] < timeline["pool.restored"]
    assert timeline["pool.restored"] < min(float(str(start[key])) for key in ("granted_ms", "ready_ms"))
    assert [row["when"] for row in found["start memory"]] == ["ready", "3 ADD and DEL", "10 allocations"]
    assert all(0 < float(str(row["uss"])) <= float(str(row["rss"])) for row in found["start memory"])
    assert {"ipamd", "aiohttp", "botocore", "grpc"} <= {row["package"] for row in found["start imports"]}
    assert "pyroute2" not in {row["package"] for row in found["start imports"]}
    assert found["start steps"] and found["start status"]
