"""Which network configuration a runtime takes, and what is said when it is not ours."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ipamd.install.files import CONFLIST, write_conflist
from ipamd.install.network_files import others
from ipamd.process.conflist import compare
from ipamd.telemetry.conditions import Conditions

CALICO = json.dumps({"name": "k8s", "plugins": [{"type": "calico"}]})
CHAIN = json.dumps({"name": "mine", "plugins": [{"type": "ipamd-cni"}, {"type": "portmap"}]})
# Multus passes pods on to the network that it carries in itself, or names by its file (docs/configuration.md there).
MULTUS = json.dumps({"type": "multus", "delegates": [{"name": "x", "plugins": [{"type": "ipamd-cni"}]}]})
MULTUS_BY_FILE = json.dumps({"type": "multus-shim", "clusterNetwork": f"/host/etc/cni/net.d/{CONFLIST}"})
SINGLE = json.dumps({"name": "mine", "type": "ipamd-cni"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_conflist(tmp_path)
    return tmp_path


def said(folder: Path, conditions: Conditions | None = None) -> list[str]:
    conditions = conditions or Conditions()
    compare(folder, conditions)
    return [condition.text for condition in conditions.active()]


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("05-calico.conflist", CALICO, (["05-calico.conflist"], [])),
        ("10-aws.conflist", CALICO, (["10-aws.conflist"], [])),
        ("99-calico.conf", CALICO, ([], ["99-calico.conf"])),
        ("05-chain.conflist", CHAIN, ([], [])),
        ("05-single.conf", SINGLE, ([], [])),
        ("00-multus.conf", MULTUS, ([], [])),
        ("00-multus.conf", MULTUS_BY_FILE, ([], [])),
        ("00-multus.conf", MULTUS.replace("ipamd-cni", "calico"), (["00-multus.conf"], [])),
        ("05-odd.json", "{", (["05-odd.json"], [])),
        ("05-list.json", "[1]", (["05-list.json"], [])),
        ("05-deep.conflist", "[" * 100_000, (["05-deep.conflist"], [])),
        ("05-text.conf", '{"plugins": "x"}', (["05-text.conf"], [])),
        ("05-calico.conflist.off", CALICO, ([], [])),
    ],
)
def test_a_file_counts_by_its_name_and_its_plugins(
    folder: Path, name: str, text: str, places: tuple[list[str], list[str]]
) -> None:
    (folder / name).write_text(text)
    assert others(folder) == places


def test_a_pipe_among_the_files_holds_nothing_up(folder: Path) -> None:
    os.mkfifo(folder / "05-pipe.conf")
    assert others(folder) == (["05-pipe.conf"], [])


def test_a_folder_in_order_is_no_condition(folder: Path) -> None:
    (folder / "99-loopback.conf").write_text('{"type": "loopback"}')
    assert said(folder) == []


def test_a_file_that_comes_first_is_named_until_it_goes(folder: Path) -> None:
    conditions = Conditions()
    (folder / "05-calico.conflist").write_text(CALICO)
    (text,) = said(folder, conditions)
    assert f"take {folder}/05-calico.conflist before {CONFLIST}" in text and f"mv {folder}/05-calico" in text
    (folder / "05-calico.conflist").unlink()
    assert said(folder, conditions) == []


def test_a_conflist_that_was_removed_is_missed(folder: Path) -> None:
    (folder / CONFLIST).unlink()
    assert said(folder) == [
        f"{folder / CONFLIST} is gone: runtimes start no pods. A restart of ipamd writes it again."
    ]
    (folder / "99-calico.conf").write_text(CALICO)
    assert f"runtimes take {folder}/99-calico.conf." in said(folder)[0]


def test_a_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    assert "is gone" in said(tmp_path / "none")[0]
