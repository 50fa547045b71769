"""The demo on a cluster, as a user runs it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from ipamd.sim import netns as namespaces
from tests.kubernetes.programs import built
from tests.kubernetes.skipping import skipped_if_unbuilt

pytestmark = pytest.mark.e2e

DEMO = [sys.executable, "-m", "tests.kubernetes.demo"]
PROGRAMS = ("kubelet", "kubectl")


@pytest.fixture(autouse=True)
async def programs() -> None:
    with skipped_if_unbuilt():
        await built(PROGRAMS)


def traces(output: str) -> list[Path]:
    """What is left of the demo that wrote this: it says what its files and namespaces are called."""
    named = re.search(r"its files are in (\S+), its network namespaces are called (\S+)-\*", output)
    assert named is not None, output
    files = [*Path(named[1]).parent.glob(Path(named[1]).name), *namespaces.DIRECTORY.glob(f"{named[2]}*")]
    return [*files, *Path("/sys/fs/cgroup").glob(f"**/{named[2]}*")]


def read_until(words: str, lines: IO[str]) -> str:
    output = ""
    while words not in output:
        line = lines.readline()
        assert line, output
        output += line
    return output


def end(process: subprocess.Popen[str]) -> None:
    """In good order if it can be: killed, it would leave its namespaces."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def test_the_demo_succeeds_and_leaves_nothing() -> None:
    run = subprocess.run(DEMO, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "650 of 650 were answered" in run.stdout
    assert run.stdout.count("60 of 60 answered") == 4, run.stdout
    assert "24 pods are replaced" in run.stdout
    assert traces(run.stdout) == []


def test_the_kept_cluster_answers_the_printed_commands() -> None:
    process = subprocess.Popen([*DEMO, "--keep"], stdout=subprocess.PIPE, text=True, bufsize=1)
    try:
        assert process.stdout is not None
        output = read_until("all is left up", process.stdout)
        commands = re.findall(r"^# (.*)\n(nsenter .*)$", output, re.MULTILINE)
        for purpose, command in commands:
            if not purpose.startswith("a shell"):
                done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)
                # 3: `ipamctl status` has found something that needs attention
                assert done.returncode in (0, 3), f"{command}\n{done.stdout}{done.stderr}"
        assert len(commands) >= 6
        process.send_signal(signal.SIGTERM)  # ends the pause
        read_until("a rolling update", process.stdout)  # two signals at once would be one
        process.send_signal(signal.SIGTERM)  # ends the rest
        rest, _ = process.communicate(timeout=300)
        assert process.returncode == 128 + signal.SIGTERM, rest
        assert traces(output) == []
    finally:
        end(process)
