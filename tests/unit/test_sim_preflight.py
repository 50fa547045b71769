"""What a machine lacks is said all at once, before anything is built."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipamd.sim import preflight
from ipamd.sim.demo.until_signal import story
from ipamd.sim.fabric import FabricError
from ipamd.sim.netns import CommandError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it is about what root lacks")


def test_a_machine_that_runs_the_tests_lacks_nothing() -> None:
    assert preflight.lacking(preflight.VPC | preflight.CONTAINERD) == []


def test_all_missing_programs_are_named_with_packages() -> None:
    (found,) = preflight.lacking({"no-such-a": "a", "no-such-b": "b", "no-such-c": "b", "sh": "dash"})
    assert found == (
        "Programs are missing: no-such-a, no-such-b, no-such-c. On Debian or Ubuntu: apt-get install a b"
    )


@pytest.mark.parametrize("command", [("demo",), ("simulate", "vpc", "--dir", "d", "--node", "n1=m5.large")])
def test_root_without_rights_and_programs_is_told_both(tmp_path: Path, command: tuple[str, ...]) -> None:
    """As in a container without further rights: setpriv(1) takes the capabilities away."""
    (tmp_path / "bin").mkdir()
    words = ["setpriv", "--bounding-set=-net_admin,-sys_admin", "--inh-caps=-all", sys.executable, "-m", "ipamd"]
    environment = {**os.environ, "PATH": str(tmp_path / "bin")}
    setpriv = Path("/usr/bin/setpriv")
    done = subprocess.run(
        [setpriv, *words[1:], *command], capture_output=True, text=True, timeout=60, env=environment, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (1, "")
    for word in ("ip, nft", "iproute2", "CAP_NET_ADMIN, CAP_SYS_ADMIN", "--cap-add=NET_ADMIN", "--privileged"):
        assert word in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.glob("d*"))


def test_the_failure_that_began_it_comes_before_the_clean_ups() -> None:
    def fail() -> None:
        try:
            raise CommandError("containerd: command not found")
        finally:
            raise FabricError("n1: the daemon ended with exit code -15")

    with pytest.raises(FabricError) as failed:
        fail()
    assert story(failed.value, (CommandError, FabricError)) == [
        "containerd: command not found",
        "and then, while cleaning up: n1: the daemon ended with exit code -15",
    ]


def test_a_failure_in_other_words_is_told_once() -> None:
    def fail() -> None:
        try:
            raise CommandError("exit code 1")
        except CommandError as error:
            raise FabricError(f"n1: {error}") from None

    with pytest.raises(FabricError) as failed:
        fail()
    assert story(failed.value, (CommandError, FabricError)) == ["n1: exit code 1"]
