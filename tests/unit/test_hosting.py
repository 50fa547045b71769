"""Where the daemon runs, and the remedies that follow from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipamd.__main__ import main
from ipamd.install.hosting import DAEMON_SET, SYSTEMD, hosting
from ipamd.install.plugin import install_plugin
from tests.executable import static_executable

IN_POD = {"KUBERNETES_SERVICE_HOST": "172.20.0.1"}
CONFIG = b'{"cniVersion":"1.1.0","name":"ipamd","type":"ipamd-cni"}'


def install(bin_dir: Path, socket: Path, packaging: str, daemon_set: bool) -> Path:
    executable = static_executable() if packaging == "static" else None
    return install_plugin(
        bin_dir,
        socket,
        packaging="static" if packaging == "static" else "launcher",
        executable=executable,
        daemon_set=daemon_set,
    ).launcher


@pytest.mark.parametrize("packaging", ["launcher", "static"])
@pytest.mark.parametrize("daemon_set", [True, False])
def test_the_plugins_remedy_names_how_the_daemon_runs(tmp_path: Path, packaging: str, daemon_set: bool) -> None:
    plugin = install(tmp_path / "bin", tmp_path / "none.sock", packaging, daemon_set)
    run = subprocess.run([plugin], input=CONFIG, env={"CNI_COMMAND": "STATUS"}, capture_output=True, check=False)
    details = json.loads(run.stdout)["details"]
    assert ("DaemonSet" in details, "systemctl" in details) == (daemon_set, not daemon_set)


@pytest.mark.parametrize("packaging", ["launcher", "static"])
def test_the_host_reads_it_from_the_plugin(tmp_path: Path, packaging: str) -> None:
    plugin = install(tmp_path / "bin", tmp_path / "none.sock", packaging, True)
    assert hosting({}, plugin) is DAEMON_SET
    plugin = install(tmp_path / "bin", tmp_path / "none.sock", packaging, False)
    assert hosting({}, plugin) is SYSTEMD
    assert hosting(IN_POD, plugin) is DAEMON_SET


def test_without_a_plugin_it_counts_as_a_service(tmp_path: Path) -> None:
    assert hosting({}, tmp_path / "none") is SYSTEMD


@pytest.mark.parametrize(
    ("environment", "words", "expected"), [(IN_POD, [], True), ({}, [], False), (IN_POD, ["--systemd"], False)]
)
def test_install_in_a_pod_leaves_it_with_the_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], words: list[str], expected: bool
) -> None:
    monkeypatch.delenv(*IN_POD, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    root = tmp_path / "root"
    command = root / "opt" / "bin" / "ipamd"
    command.parent.mkdir(parents=True)
    command.touch()
    monkeypatch.setattr(sys, "argv", [str(command)])
    assert main(["install", "--plugin", "launcher", "--root", str(root), *words]) == 0
    assert hosting({}, root / "opt/cni/bin/ipamd-cni").daemon_set is expected


def test_ipamctl_in_the_pod_names_the_daemon_set(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ipamd.ctl", "status", "--socket", str(tmp_path / "none")]
    done = subprocess.run(command, env=os.environ | IN_POD, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Is it running? (DaemonSet: kubectl get pods" in done.stderr
