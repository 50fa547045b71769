"""What the doctor says of host ports and of the chain: by what the files say, not by what they are called."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ipamd.doctor import chained, neighbours
from ipamd.doctor.facts import Facts
from ipamd.doctor.report import Finding
from ipamd.install.files import CONFLIST, write_conflist
from ipamd.neighbours.chain import Binaries, chain
from ipamd.settings import Settings
from tests.unit.test_chain import NEW, OLD, plugin

PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
OURS = {"type": "ipamd-cni"}


class Node:
    def __init__(self, root: Path, **cni: Any) -> None:
        self.bin_dir, self.conf_dir = root / "opt/cni/bin", root / "etc/cni/net.d"
        self.conf_dir.mkdir(parents=True)
        self.facts = Facts(root, Settings.model_validate({"cni": cni}))
        plugin(self.bin_dir, "ipamd-cni", *NEW)

    def file(self, name: str, *plugins: dict[str, Any], version: str = "1.1.0") -> None:
        (self.conf_dir / name).write_text(json.dumps({"cniVersion": version, "name": "x", "plugins": plugins}))

    def written(self) -> None:
        """As the daemon does it."""
        wanted = self.facts.settings.cni.chain
        write_conflist(self.conf_dir, chain(wanted, Binaries().look(wanted, self.bin_dir), self.bin_dir))

    def found(self) -> dict[str, Finding]:
        return {finding.check: finding for finding in chained.chained(self.facts)}


def test_portmap_in_the_conflist_makes_host_ports_work(tmp_path: Path) -> None:
    node = Node(tmp_path)
    plugin(node.bin_dir, "portmap", *NEW)
    assert "when it starts" in node.found()["host ports"].found and node.found()["host ports"].state == "ok"
    node.written()
    (finding,) = node.found().values()
    assert (finding.state, finding.found) == ("ok", f"{CONFLIST} chains portmap")


def test_an_old_plugin_costs_status_and_gc(tmp_path: Path) -> None:
    node = Node(tmp_path)
    plugin(node.bin_dir, "portmap", *OLD)
    node.written()
    found = node.found()
    assert found["host ports"].state == "ok"
    assert found["CNI version"].state == "note" and "neither STATUS nor GC" in found["CNI version"].found


def test_no_portmap_is_said_with_its_remedy(tmp_path: Path) -> None:
    node = Node(tmp_path)
    for _ in range(2):
        (finding,) = node.found().values()
        assert finding.state == "warn" and "portmap is not in /opt/cni/bin" in finding.found
        assert "hostPort of a pod does nothing" in finding.found and "containernetworking" in finding.remedy
        node.written()


def test_a_chain_without_portmap_is_a_note(tmp_path: Path) -> None:
    node = Node(tmp_path, chain=[])
    node.written()
    (finding,) = node.found().values()
    assert finding.state == "note" and "cni.chain has no portmap" in finding.found


def test_a_named_plugin_that_is_left_out_is_a_warning(tmp_path: Path) -> None:
    node = Node(tmp_path, chain=["portmap", "bandwidth", "bandwidth"])
    plugin(node.bin_dir, "portmap", *NEW)
    node.written()
    assert [(finding.state, finding.found) for finding in chained.chained(node.facts)][:2] == [
        ("warn", "bandwidth is not in /opt/cni/bin: pods start without it"),
        ("warn", "bandwidth is there twice: pods start without it"),
    ]


@pytest.mark.parametrize("name", [CONFLIST, "05-mine.conflist"])
def test_a_plugin_in_the_file_that_is_gone_is_a_failure(tmp_path: Path, name: str) -> None:
    node = Node(tmp_path)
    node.file(name, OURS, PORTMAP)
    finding = node.found()["host ports"]
    assert finding.state == "fail" and "portmap, not in /opt/cni/bin: no pod can start" in finding.found
    assert ("take it out of" in finding.remedy) == (name != CONFLIST)


def test_a_file_of_the_operators_own_is_judged_by_its_content(tmp_path: Path) -> None:
    node = Node(tmp_path)
    plugin(node.bin_dir, "portmap", *NEW)
    node.written()
    node.file("05-mine.conflist", OURS, PORTMAP)
    assert node.found()["host ports"].state == "ok"
    (finding,) = neighbours.conflists(node.facts)
    assert finding.state == "ok", "it is no other network"
    node.file("05-mine.conflist", OURS)
    finding = node.found()["host ports"]
    assert finding.state == "warn" and "05-mine.conflist chains no plugin" in finding.found
    assert '"portMappings": true' in finding.remedy
    node.file("05-mine.conflist", OURS, {"type": "portmap"})
    assert node.found()["host ports"].state == "warn", "without the capability a runtime tells it of no ports"


def test_what_can_not_be_told_is_said_to_be_so(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.file("05-calico.conflist", {"type": "calico"})
    assert "could not tell: runtimes take 05-calico" in node.found()["host ports"].found
    (node.conf_dir / "05-calico.conflist").unlink()
    (node.bin_dir / "ipamd-cni").unlink()
    assert "could not tell: no folder" in node.found()["host ports"].found
    empty = Settings.model_validate({"cni": {"conf_dir": ""}})
    node.facts = replace(node.facts, settings=empty)
    assert "could not tell: cni.conf_dir is empty" in node.found()["host ports"].found
