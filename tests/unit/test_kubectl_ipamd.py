"""`kubectl ipamd`: the right node is asked, kubectl's flags are passed on, and a failure comes with a way out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ipamd.kubectl import plugin
from ipamd.kubectl.plugin import ATTENTION, DONE, NOT_DONE, USAGE, main
from tests.unit.fake_kubectl import FakeKubectl

ROOT = Path(__file__).resolve().parents[2]
STAND_ALONE = ROOT / "deploy/kubernetes/kubectl-ipamd"


def daemon_pod(node: str, name: str = "", **changes: Any) -> dict[str, Any]:
    metadata = {
        "name": name or f"ipamd-{node}",
        "namespace": "kube-system",
        "ownerReferences": [{"kind": "DaemonSet", "name": "ipamd"}],
    }
    state = {"name": "ipamd", "state": changes.pop("state", {"running": {}})}
    status = {"phase": changes.pop("phase", "Running"), "containerStatuses": [state]}
    return {"metadata": metadata | changes, "spec": {"nodeName": node}, "status": status}


def node(name: str, address: str = "10.0.0.250") -> dict[str, Any]:
    return {"metadata": {"name": name}, "status": {"addresses": [{"type": "InternalIP", "address": address}]}}


def status(**changes: Any) -> dict[str, Any]:
    counts = {"free": 5, "assigned": 3, "cooling": 1, "waiting": 0, "total": 9}
    return {"attention": [], "ready": True, "start": None, "drained": None, "version": "0.1.0", **counts} | changes


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKubectl:
    """A cluster of two nodes with a daemon each, in order, and one that has none."""
    fake = FakeKubectl(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    fake.answers("get", "nodes", out={"items": [node("n1", "10.0.0.11"), node("n2"), node("cp")]})
    fake.answers("get", "pods", plugin.LABEL, out={"items": [daemon_pod("n2"), daemon_pod("n1")]})
    fake.answers("exec", "status", out=status())
    fake.answers("exec", "--version", out="ipamctl 0.1.0\n")
    return fake


def execs(kubectl: FakeKubectl) -> list[list[str]]:
    """What ran in pods: [pod, words of ipamctl]."""
    found = [call for call in kubectl.calls if "exec" in call]
    return [[call[call.index("-c") - 1], *call[call.index("ipamctl") + 1 :]] for call in found]


def test_all_nodes_are_shown_and_asked_in_their_pods(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["nodes"]) == DONE
    head, n1, n2, cp, _, note = capsys.readouterr().out.splitlines()
    assert head.split() == ["NODE", "STATE", "FREE", "ASSIGNED", "COOLING", "WAITING", "TOTAL", "VERSION"]
    assert n1.split() == ["n1", "ready", "5", "3", "1", "0", "9", "0.1.0"]
    assert n2.split()[:2] == ["n2", "ready"] and cp.split()[:3] == ["cp", "no", "pod"]
    assert "kubectl debug node/NODE" in note
    assert sorted(execs(kubectl)) == [[f"ipamd-{n}", "status", "-o", "json"] for n in ("n1", "n2")]
    assert main(["status"]) == DONE
    assert capsys.readouterr().out.startswith("NODE")


def test_a_node_that_calls_for_attention_is_named(kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]) -> None:
    starting = {"phase": "ec2", "text": "asking EC2"}
    kubectl.answers(
        "exec", "status", "ipamd-n1", out=status(attention=["Starting: asking EC2"], start=starting), code=3
    )
    kubectl.answers("exec", "status", "ipamd-n2", out=status(drained="2026-01-31T12:00:00Z"))
    assert main(["nodes"]) == ATTENTION
    out = capsys.readouterr().out
    assert "! n1: Starting: asking EC2" in out
    assert [line.split()[1] for line in out.splitlines()[1:3]] == ["starting", "drained"]


@pytest.mark.parametrize(
    ("state", "err", "words"),
    [
        ({"running": {}}, "Error from server: error dialing backend: dial tcp: timeout\n", "error dialing backend"),
        ({"waiting": {"reason": "CrashLoopBackOff"}}, "error: container not found\n", "ipamd: CrashLoopBackOff: "),
        ({"terminated": {"reason": "OOMKilled"}}, "error: container not found\n", "ipamd: OOMKilled: "),
        ({"running": {}}, "", "no reason given"),
    ],
)
def test_a_node_out_of_reach_is_shown_as_such(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str], state: dict[str, Any], err: str, words: str
) -> None:
    pods = {"items": [daemon_pod("n1", state=state), daemon_pod("n2")]}
    kubectl.answers("get", "pods", plugin.LABEL, out=pods)
    kubectl.answers("exec", "ipamd-n1", err=err, code=1)
    assert main(["nodes"]) == NOT_DONE
    out = capsys.readouterr().out
    assert out.splitlines()[1].split()[:2] == ["n1", "unreachable"] and words in out
    assert out.splitlines()[2].split()[:2] == ["n2", "ready"]
    assert main(["nodes", "-o", "json"]) == NOT_DONE
    first, second, third = json.loads(capsys.readouterr().out)
    assert (first["status"], second["error"], third["pod"]) == (None, None, None) and words in first["error"]


def test_a_daemon_that_hangs_does_not_hold_up_the_table(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "PATIENCE", 0.0)
    assert main(["nodes"]) == NOT_DONE
    assert "no answer within 0 s" in capsys.readouterr().out


def test_of_two_pods_on_a_node_the_one_that_stays_is_asked(kubectl: FakeKubectl) -> None:
    old = daemon_pod("n1", "ipamd-old", deletionTimestamp="2026-01-31T12:00:00Z")
    stranger = daemon_pod("n1", "stranger", ownerReferences=[{"kind": "ReplicaSet"}])
    for items in ([old, daemon_pod("n1")], [daemon_pod("n1"), old], [stranger, daemon_pod("n1")]):
        kubectl.answers("get", "pods", plugin.LABEL, out={"items": items})
        kubectl.answers("exec", "status", out="well\n")
        assert main(["status", "n1"]) == DONE
        assert execs(kubectl)[-1] == ["ipamd-n1", "status"]


@pytest.mark.parametrize("code", [0, 1, 3])
def test_one_node_is_shown_with_the_code_of_ipamctl(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    err = f"ipamctl: words\ncommand terminated with exit code {code}\n"
    kubectl.answers("exec", "status", "ipamd-n2", out="one screen\n", err=err, code=code)
    assert main(["status", "n2"]) == code
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("one screen\n", "ipamctl: words\n")


def test_a_pod_is_explained_on_its_node(kubectl: FakeKubectl) -> None:
    pod = {"metadata": {"name": "web-0", "namespace": "shop"}, "spec": {"nodeName": "n2"}}
    kubectl.answers("get", "pod", "web-0", out=pod)
    kubectl.answers("exec", "explain", code=3)
    for words in (
        ["pod", "shop/web-0"],
        ["shop/web-0"],
        ["web-0", "-n", "shop"],
        ["pod", "web-0", "--namespace=shop"],
    ):
        assert main(["explain", *words]) == ATTENTION
        asked = next(call for call in reversed(kubectl.calls) if "web-0" in call)
        assert asked == ["get", "pod", "web-0", "-n", "shop", "-o", "json"]
        assert execs(kubectl)[-1] == ["ipamd-n2", "explain", "pod", "shop/web-0"]
    assert main(["explain", "web-0"]) == ATTENTION  # the namespace of the context is kubectl's to know
    assert ["get", "pod", "web-0", "-o", "json"] in kubectl.calls


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, "on no node yet"),
        ({"nodeName": "n1", "hostNetwork": True}, "hostNetwork"),
        ({"nodeName": "cp"}, "chroot /host ipamctl explain pod shop/web-0"),
    ],
)
def test_a_pod_without_a_daemon_to_ask_is_explained_in_words(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str], spec: dict[str, Any], words: str
) -> None:
    kubectl.answers("get", "pod", "web-0", out={"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec})
    assert main(["explain", "pod", "shop/web-0"]) == NOT_DONE
    assert words in capsys.readouterr().err and not execs(kubectl)


def test_the_pool_of_a_node_is_explained(kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]) -> None:
    kubectl.answers("exec", "explain", out="steady\n")
    assert main(["explain", "pool", "n1"]) == DONE
    assert execs(kubectl) == [["ipamd-n1", "explain", "pool"]]
    assert main(["explain", "pool"]) == USAGE and "name the node" in capsys.readouterr().err
    assert main(["explain", "pod"]) == USAGE and main(["explain", "a", "b"]) == USAGE


def test_an_address_is_explained_by_the_node_that_has_it(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    kubectl.answers("exec", "addresses", "ipamd-n1", out=[{"ip": "10.0.3.17"}])
    kubectl.answers("exec", "addresses", "ipamd-n2", out=[{"ip": "10.0.3.18"}])
    kubectl.answers("exec", "explain", out="cools since 3 s\n")
    assert main(["whois", "10.0.3.18"]) == DONE
    assert capsys.readouterr().out == "node n2\ncools since 3 s\n"
    assert execs(kubectl)[-1] == ["ipamd-n2", "explain", "10.0.3.18"]


def test_an_address_of_nobody_names_who_could_not_be_asked(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    kubectl.answers("exec", "addresses", "ipamd-n1", out=[])
    kubectl.answers("exec", "addresses", "ipamd-n2", err="error: dial\n", code=1)
    assert main(["whois", "10.0.3.19"]) == NOT_DONE
    err = capsys.readouterr().err
    assert "1 of 2 asked" in err and "n2: error: dial" in err and "describe-network-interfaces" in err
    assert main(["whois", "10.0.0.11"]) == NOT_DONE
    assert "node n1's own address" in capsys.readouterr().err
    with pytest.raises(SystemExit) as wrong:
        main(["whois", "web-0"])
    assert wrong.value.code == USAGE


def test_any_command_runs_on_a_node(kubectl: FakeKubectl, capfd: pytest.CaptureFixture[str]) -> None:
    kubectl.answers("exec", "events", out="an event\n", code=0)
    assert main(["on", "n1", "events", "-n", "5", "-o", "json"]) == DONE
    assert execs(kubectl) == [["ipamd-n1", "events", "-n", "5", "-o", "json"]]
    assert capfd.readouterr().out == "an event\n"
    kubectl.answers("exec", "top", code=0)
    assert main(["top", "n2"]) == DONE and execs(kubectl)[-1] == ["ipamd-n2", "top"]


def test_flags_of_kubectl_go_with_each_call(kubectl: FakeKubectl) -> None:
    assert main(["--context", "prod", "nodes", "--kubeconfig=/etc/k", "--as", "me"]) == DONE
    for call in kubectl.calls:
        assert call[:3] == ["--context=prod", "--kubeconfig=/etc/k", "--as=me"]


def test_without_a_daemon_set_it_says_how_hosts_are_asked(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    kubectl.answers("get", "pods", plugin.LABEL, out={"items": []})
    for words in (["nodes"], ["status", "n1"], ["whois", "10.0.0.1"], ["explain", "pool", "n1"]):
        assert main(words) == NOT_DONE
        err = capsys.readouterr().err
        assert "no pod of ipamd's DaemonSet" in err and "ssh NODE ipamctl" in err and "kubectl debug node/NODE" in err


def test_a_node_without_a_daemon_is_named_with_what_to_run(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "cp"]) == NOT_DONE
    assert "ssh cp ipamctl status" in capsys.readouterr().err


def test_a_pod_out_of_reach_is_named_with_what_to_look_at(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    kubectl.answers("exec", err="error: unable to upgrade connection\n", code=1)
    assert main(["status", "n1"]) == NOT_DONE
    err = capsys.readouterr().err
    assert "unable to upgrade" in err and "kubectl describe pod -n kube-system ipamd-n1" in err


def test_what_kubectl_refuses_is_passed_on(kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]) -> None:
    kubectl.answers("get", "pods", err="Error from server (Forbidden): pods is forbidden\n", code=1)
    assert main(["nodes"]) == NOT_DONE
    assert "Forbidden" in capsys.readouterr().err
    kubectl.answers("get", "pods", out="no JSON")
    assert main(["nodes"]) == NOT_DONE
    assert "no JSON" in capsys.readouterr().err


def test_without_kubectl_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["nodes"]) == NOT_DONE
    assert capsys.readouterr().err == (
        "kubectl ipamd: kubectl can't be run: No such file or directory; is it on the PATH?\n"
    )


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == USAGE
    assert "examples:" in capsys.readouterr().out


def test_the_page_has_every_command_and_no_other() -> None:
    page = (ROOT / "docs/kubernetes.md").read_text()
    documented = re.findall(r"^\$ kubectl ipamd (?:-o json )?(\w+)", page, re.M)
    known = next(action.choices for action in plugin.make_parser()._actions if action.dest == "command")
    assert known is not None and set(documented) == set(known)


def test_the_file_runs_alone_and_by_kubectl(kubectl: FakeKubectl, tmp_path: Path) -> None:
    """Copied to another machine, which has none of the project's packages."""
    copy = tmp_path / "elsewhere" / "kubectl-ipamd"
    copy.parent.mkdir()
    copy.write_bytes(STAND_ALONE.read_bytes())
    environment = os.environ | {"PATH": str(kubectl.folder)}
    run = [sys.executable, "-IS", str(copy), "status", "n1"]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (DONE, "") and json.loads(done.stdout) == status()
    assert os.access(STAND_ALONE, os.X_OK) and STAND_ALONE.read_text().startswith("#!/usr/bin/env python3\n")


def test_names_of_others_do_not_move_the_cursor(kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]) -> None:
    kubectl.answers("exec", "status", out=status(attention=["pod \x1b[2J"]), code=3)
    assert main(["nodes"]) == ATTENTION
    assert "\x1b" not in capsys.readouterr().out
