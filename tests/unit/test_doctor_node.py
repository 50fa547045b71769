"""What the doctor reads of a host's files: the kubelet's limit, the plugin's version, the proxies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ipamd.doctor import cloud_facts, node_facts
from ipamd.install.installed import installed
from ipamd.install.interpreter import find_interpreter
from ipamd.install.launcher import STAMP
from ipamd.install.plugin import install_plugin
from ipamd.neighbours.kubelet import Kubelet, find
from ipamd.settings import Settings


def kubelet(root: Path, *words: str, **files: str) -> Kubelet | None:
    process = root / "proc/412"
    process.mkdir(parents=True)
    (process / "cmdline").write_text("\0".join(words) + "\0")
    for name, text in files.items():
        path = root / name.replace("_", "/").replace("/dot/", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return node_facts.gather(Settings(), root).kubelet


@pytest.mark.parametrize(
    ("words", "files", "limit"),
    [
        (("/usr/bin/kubelet",), {}, Kubelet(110, "its default")),
        (("kubelet", "--max-pods=29"), {}, Kubelet(29, "--max-pods")),
        (("kubelet", "--max-pods", "17"), {}, Kubelet(17, "--max-pods")),
        (("kubelet", "--max-pods=5", "--max-pods=6"), {}, Kubelet(6, "--max-pods")),
        (("kubelet", "--config=/etc/k"), {"etc_k": "maxPods: 58\n"}, Kubelet(58, "maxPods in /etc/k")),
        (("kubelet", "--config", "/etc/k"), {"etc_k": '{"maxPods": 8}'}, Kubelet(8, "maxPods in /etc/k")),
        (("kubelet", "--config=/etc/k", "--max-pods=9"), {"etc_k": "maxPods: 58"}, Kubelet(9, "--max-pods")),
        (("kubelet", "--config=/etc/k"), {"etc_k": "maxPods: {"}, Kubelet(110, "its default")),
        (("kubelet", "--config=/etc/absent"), {}, Kubelet(110, "its default")),
        (
            ("kubelet", "--config=/etc/k", "--config-dir=/etc/d"),
            {"etc_k": "maxPods: 58", "etc_d_1/dot/conf": "maxPods: 30", "etc_d_2/dot/conf": "x: 1"},
            Kubelet(30, "maxPods in /etc/d/1.conf"),
        ),
        (("/usr/bin/kubectl", "--max-pods=1"), {}, None),
    ],
)
def test_the_kubelets_limit_is_read_as_it_reads_it(
    tmp_path: Path, words: tuple[str, ...], files: dict[str, str], limit: Kubelet | None
) -> None:
    assert kubelet(tmp_path, *words, **files) == limit


def test_a_kubelets_file_that_is_not_roots_counts_for_nothing(tmp_path: Path) -> None:
    """An unprivileged process can neither hold up the reader nor say how many pods fit."""
    words = ("kubelet", "--config=/etc/k")
    assert kubelet(tmp_path, *words, etc_k="maxPods: 58") == Kubelet(58, "maxPods in /etc/k")
    file = tmp_path / "etc/k"
    if os.geteuid() == 0:
        os.chown(file, 65534, 65534)
        assert find(tmp_path) == Kubelet(110, "its default")
    file.unlink()
    os.mkfifo(file)
    assert find(tmp_path) == Kubelet(110, "its default")
    file.unlink()
    file.write_text("maxPods: 58 #" + "x" * (1 << 20))
    assert find(tmp_path) == Kubelet(110, "its default")


def test_a_kubelet_in_another_network_namespace_is_another_nodes(tmp_path: Path) -> None:
    kubelet(tmp_path, "kubelet", "--max-pods=9")
    process = tmp_path / "proc/412"
    (process / "status").write_text("Name:\tkubelet\nUid:\t0\t0\t0\t0\n")
    (process / "ns").mkdir()
    (process / "ns/net").write_text("")
    assert find(tmp_path) is None
    (process / "ns/net").unlink()
    (process / "ns/net").symlink_to("/proc/self/ns/net")
    assert find(tmp_path) == Kubelet(9, "--max-pods")
    (process / "status").write_text("Name:\tkubelet\nUid:\t65534\t65534\t65534\t65534\n")
    assert find(tmp_path) is None, "somebody who calls himself a kubelet"


def test_an_installed_launcher_tells_its_version(tmp_path: Path) -> None:
    plugin = install_plugin(tmp_path, tmp_path / "s.sock", interpreter=find_interpreter().path)
    found = installed(plugin.launcher)
    assert found is not None and found.settings is not None and not found.problem
    assert (found.current, found.settings.socket) == (True, str(tmp_path / "s.sock"))
    assert plugin.modules is not None
    stamp = plugin.modules / STAMP
    stamp.write_text(stamp.read_text().replace('"sources": "', '"sources": "0'))
    other = installed(plugin.launcher)
    assert other is not None and other.current is False
    stamp.unlink()
    unknown = installed(plugin.launcher)
    assert unknown is not None and (unknown.current, unknown.problem) == (None, "")


@pytest.mark.parametrize(
    ("content", "mode", "problem"),
    [
        (b"#!/no/such/python -I\n", 0o755, "needs /no/such/python"),
        (b"#!", 0o755, "needs /nowhere"),
        (b"\x7fELF something else", 0o755, "is not ipamd's plugin"),
        (b"", 0o755, "is not ipamd's plugin"),
        (b"#!/bin/sh\n", 0o644, "is not executable"),
    ],
)
def test_a_plugin_that_cannot_run_is_named(tmp_path: Path, content: bytes, mode: int, problem: str) -> None:
    plugin = tmp_path / "ipamd-cni"
    plugin.write_bytes(content)
    plugin.chmod(mode)
    found = installed(plugin)
    assert found is not None and found.problem.startswith(problem)


def test_no_plugin_is_none(tmp_path: Path) -> None:
    assert installed(tmp_path / "ipamd-cni") is None


def test_proxies_are_shown_without_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy:3128")
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8")
    answer = cloud_facts.ask(Settings(), None, answers=False)
    assert answer.proxies == {"HTTPS_PROXY": "http://...@proxy:3128", "NO_PROXY": "10.0.0.0/8"}
    assert answer.environment_of == "this command"
    assert cloud_facts.ask(Settings(), os.getpid(), answers=False).environment_of == "the daemon"
