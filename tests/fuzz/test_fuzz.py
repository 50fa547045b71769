"""Short runs of the fuzzers, and their first inputs without one. Longer runs: see run.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cni_shim import grpc_call, protobuf
from tests.fuzz import targets


@pytest.mark.parametrize("name", targets.TARGETS)
def test_first_inputs(name: str) -> None:
    target = targets.TARGETS[name]
    for seed in target.seeds:
        target.check(seed)


def test_first_inputs_reach_the_end() -> None:
    """A fuzzer that begins with garbage finds little."""
    answer, _ = targets.TARGETS["peer_bytes"].seeds
    assert targets.call(answer) == b"{}"
    (plan,) = targets.TARGETS["plan"].seeds
    assert protobuf.Plan(plan).result == b"{}"
    with pytest.raises(grpc_call.Unreachable):
        targets.call(b"")


@pytest.mark.parametrize("name", targets.TARGETS)
def test_fuzz_shortly(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed (pip install atheris)")
    command = [sys.executable, str(Path(__file__).with_name("run.py")), name, "-runs=3000"]
    command.append(f"-artifact_prefix={tmp_path}/")
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"})
    assert ended.returncode == 0, ended.stdout + ended.stderr
