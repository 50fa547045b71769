"""The demo as a user runs it."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ipamd.sim import netns as namespaces
from ipamd.sim.demo import command as demo

pytestmark = pytest.mark.e2e

DEMO = [sys.executable, "-m", "ipamd", "demo"]


def traces(output: str) -> list[Path]:
    """What is left of the demo that wrote this: it says what its files and namespaces are called."""
    named = re.search(r"its files are in (\S+), its network namespaces are called (\S+)-\*", output)
    assert named is not None, output
    return [*Path(named[1]).parent.glob(Path(named[1]).name), *namespaces.DIRECTORY.glob(f"{named[2]}*")]


def test_the_demo_succeeds_and_writes_what_it_found(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    run = subprocess.run(
        [*DEMO, "--runtime", "direct", "--json", str(file)], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    found = json.loads(file.read_text())
    assert found.keys() == {"nodes", "pods", "pings", "ec2_calls", "leaks"}
    assert [(node["name"], node["instance_type"]) for node in found["nodes"]] == [
        ("n1", "m5.large"),
        ("n2", "c5.large"),
    ]
    pods = found["pods"]
    assert len(pods) == len({pod["ip"] for pod in pods}) == len({pod["name"] for pod in pods}) == 24
    for node in found["nodes"]:
        assert [eni["device_index"] for eni in node["enis"]] == [0, 1]  # 12 pods are more than one ENI holds
        own = [pod for pod in pods if pod["node"] == node["name"]]
        assert len(own) == 12
        assert {pod["ip"] for pod in own} <= set(node["addresses"])
        assert {pod["eni"] for pod in own} == {eni["id"] for eni in node["enis"]}
    assert all(pod["add_ms"] > 0 for pod in pods)
    assert found["pings"] == {"tried": 26 * 25, "ok": 26 * 25}
    assert found["ec2_calls"]["CreateNetworkInterface"] == 2
    assert found["leaks"] == []
    # The second ENI was seen growing.
    for name in ("n1", "n2"):
        assert re.search(rf"{name}: ENI eni-[0-9a-f]+.*: ready, room for 9 pods", run.stdout)
    assert traces(run.stdout) == []


def test_a_kept_demo_waits_for_a_signal_and_cleans_up() -> None:
    process = subprocess.Popen(
        [*DEMO, "--nodes", "1", "--pods", "2", "--runtime", "direct", "--keep"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "all is left up" in line:
                break
        text = "".join(lines)
        ping = re.search(r"^nsenter --net=\S+ ping -c 3 \S+$", text, re.MULTILINE)
        status = re.search(r"^\S+ipamctl --socket \S+ status$", text, re.MULTILINE)
        assert ping and status, text
        # What it suggests works.
        assert (
            subprocess.run(
                ping.group().replace("-c 3", "-c 1").split(), check=False, stdout=subprocess.DEVNULL
            ).returncode
            == 0
        )
        shown = subprocess.run([*status.group().split(), "-o", "json"], check=True, capture_output=True, text=True)
        assert json.loads(shown.stdout)["assigned"] == 2
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == 0, rest
        assert "everything came back" in rest
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
    assert traces(text) == []


def test_an_interrupted_demo_cleans_up() -> None:
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        text = ""
        for line in process.stdout:
            text += line
            if "making 12 pods" in line:
                break
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "files are gone" in rest
    assert traces(text) == []


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--pods", "28"], "addresses for 27 pods at most"),
        (["--pods", "0"], "0 is too few"),
        (["--nodes", "many"], "invalid"),
    ],
)
def test_impossible_wishes_are_refused_at_once(words: list[str], complaint: str) -> None:
    run = subprocess.run([*DEMO, *words], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode in (1, 2)
    assert complaint in run.stderr
    assert run.stdout == ""


def test_it_says_that_it_needs_root(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    parser = argparse.ArgumentParser()
    demo.add_parser(parser.add_subparsers())
    args = parser.parse_args(["demo"])
    assert args.run(args) == 1
    assert "run it as root" in capsys.readouterr().err
