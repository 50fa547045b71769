"""The plugins after ours in the network configuration: as the setting names them, as far as they can work."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ipamd.__main__ import main
from ipamd.config.error import SettingsError
from ipamd.config.load import load
from ipamd.neighbours.chain import Binaries, Binary, Chain, absent, chain, faults, folder_of_plugins

OLD, NEW = ("0.3.0", "0.4.0", "1.0.0"), ("0.4.0", "1.0.0", "1.1.0")
FOLDER = Path("/opt/cni/bin")
SYSCTLS = {"type": "tuning", "sysctl": {"net.core.somaxconn": "512"}}


def plugin(folder: Path, name: str, *versions: str, script: str = "") -> Path:
    """An executable that answers VERSION."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    answer = json.dumps({"cniVersion": "1.0.0", "supportedVersions": versions})
    path.write_text(script or f"#!/bin/sh\n[ \"$CNI_COMMAND\" = VERSION ] && echo '{answer}'\n")
    path.chmod(0o755)
    return path


def planned(wanted: list[Any], **binaries: tuple[str, ...]) -> Chain:
    return chain(wanted, {name: Binary(versions) for name, versions in binaries.items()}, FOLDER)


def test_a_name_gets_what_the_plugin_needs() -> None:
    found = planned(
        ["portmap", "bandwidth", SYSCTLS, "firewall"], portmap=NEW, bandwidth=NEW, tuning=NEW, firewall=NEW
    )
    assert json.loads(found.conflist()) == {
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "ipamd",
        "plugins": [
            {"type": "ipamd-cni"},
            {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
            {"type": "bandwidth", "capabilities": {"bandwidth": True}},
            SYSCTLS,
            {"type": "firewall"},
        ],
    }
    assert found.left_out == ()


def test_a_table_beats_what_its_name_would_get() -> None:
    given = {"type": "portmap", "snat": False, "backend": "nftables"}
    (_, found) = planned([given], portmap=NEW).plugins
    assert found == {"type": "portmap", "capabilities": {"portMappings": True}, "snat": False, "backend": "nftables"}


@pytest.mark.parametrize(
    ("binaries", "versions", "names"),
    [
        ({}, ("1.0.0", "1.1.0"), ()),
        ({"portmap": NEW}, ("1.0.0", "1.1.0"), ("portmap",)),
        ({"portmap": OLD}, ("1.0.0",), ("portmap",)),
        ({"portmap": OLD, "tuning": NEW}, ("1.0.0",), ("portmap", "tuning")),
        ({"portmap": ("0.3.1", "0.4.0")}, ("0.4.0",), ("portmap",)),
        ({"portmap": ("0.3.1", "0.4.0"), "tuning": ("1.0.0",)}, ("0.4.0",), ("portmap",)),
        ({"portmap": ("1.1.0",)}, ("1.0.0", "1.1.0"), ()),
        ({"portmap": ("0.3.1",), "tuning": OLD}, ("1.0.0",), ("tuning",)),
    ],
)
def test_the_list_has_the_versions_that_all_speak(
    binaries: dict[str, tuple[str, ...]], versions: tuple[str, ...], names: tuple[str, ...]
) -> None:
    found = planned(["portmap", "tuning"], **binaries)
    assert (found.versions, found.names) == (versions, names)
    assert len(found.left_out) == 2 - len(names)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("ipamd-cni", "by itself"),
        ("portmap", "portmap is there twice"),
        ({"type": "portmap", "snat": False}, "portmap is there twice"),
        ("bridge", "can't come after"),
        ("aws-cni", "can't come after"),
        ("host-local", "can't come after"),
        ("", "not the name"),
        ("../evil", "not the name"),
        ("a\x00b", "not the name"),
        ({"sysctl": {}}, "has no `type`"),
        ({"type": 3}, "has no `type`"),
        ({"type": "tuning", "capabilities": ["mac"]}, "`capabilities` must be"),
        ({"type": "tuning", "capabilities": {"mac": "yes"}}, "`capabilities` must be"),
        ({"type": "tuning", "name": "x"}, "`name` is not for"),
        ({"type": "tuning", "ipam": 3}, "`ipam` is not for"),
        ({"type": "tuning", "dns": []}, "`dns` is not for"),
    ],
)
def test_what_works_on_no_node_is_refused_and_left_out(
    entry: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (fault,) = faults(["portmap", entry])
    assert words in fault
    found = planned(["portmap", entry], portmap=NEW, tuning=NEW, bridge=NEW)
    assert found.names == ("portmap",) and found.left_out == (fault,)
    monkeypatch.setenv("IPAMD_CNI_CHAIN", json.dumps(["portmap", entry]))
    assert main(["config", "check", "--config", "/dev/null"]) == 1
    assert f"environment IPAMD_CNI_CHAIN: cni.chain: {fault}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "chain = 3",
        'chain = "portmap"',
        "chain = [3]",
        "chain = [[]]",
        'chain = [{type = "x", at = 2026-01-01}]',
        'chain = [{type = "x", rate = nan}]',
        "bin_dirs = []",
        'bin_dirs = ["x"]',
    ],
)
def test_what_no_conflist_can_hold_is_no_setting(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f"[cni]\n{text}\n")
    with pytest.raises(SettingsError, match=r"c\.toml:2: cni\."):
        load(file, environ={})


def test_the_chain_can_be_set_in_a_file_and_a_variable(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[cni]\nchain = ["portmap", { type = "tuning", sysctl = { "net.core.somaxconn" = "512" } }]\n')
    assert load(file, environ={}).settings.cni.chain == ["portmap", SYSCTLS]
    environ = {"IPAMD_CNI_CHAIN": json.dumps([SYSCTLS])}
    assert load(file, environ=environ).settings.cni.chain == [SYSCTLS]
    file.write_text("[cni]\nchain = []\n")
    assert load(file, environ={}).settings.cni.chain == []


def test_a_check_on_the_host_doubts_a_plugin_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.toml"
    text = f'[cni]\nbin_dirs = ["{tmp_path}/a", "{tmp_path}/bin"]\n'
    file.write_text(text + 'chain = ["portmap", "no-such"]\n')
    assert main(["config", "check", "--config", str(file)]) == 0
    assert "Doubtful: cni.chain: no folder of cni.bin_dirs has ipamd-cni" in capsys.readouterr().out
    plugin(tmp_path / "bin", "ipamd-cni")
    plugin(tmp_path / "bin", "portmap")
    assert main(["config", "check", "--config", str(file)]) == 0
    out = capsys.readouterr().out
    assert (
        f"Doubtful: cni.chain: no-such is not in {tmp_path}/bin on this host" in out and "portmap is not" not in out
    )
    file.write_text(text)
    assert main(["config", "check", "--config", str(file)]) == 0
    assert "Doubtful" not in capsys.readouterr().out, "the default is what a node may do without"
    assert absent(["x" * 300], tmp_path) == ["x" * 300]


def test_an_absent_plugin_is_said_where_it_was_asked_for() -> None:
    assert chain(["portmap"], {}, FOLDER, ()).left_out == ()
    assert chain(["portmap"], {}, FOLDER).left_out == ("portmap is not in /opt/cni/bin",)
    (sentence,) = chain(["portmap"], {}, None).left_out
    assert "cni.bin_dirs have no ipamd-cni" in sentence
    broken = chain(["portmap"], {"portmap": Binary(problem="/x is not executable")}, FOLDER, ())
    assert broken.names == () and broken.left_out == ("portmap: /x is not executable",)


def test_the_folder_of_our_plugin_counts(tmp_path: Path) -> None:
    """Others may be of no runtime: Debian's package for podman, beside containerd's own."""
    plugin(tmp_path / "a", "portmap", *NEW)
    folders = [tmp_path / "none", tmp_path / "a", tmp_path / "b"]
    assert folder_of_plugins(folders) is None
    plugin(tmp_path / "b", "ipamd-cni")
    assert folder_of_plugins(folders) == tmp_path / "b"
    assert Binaries().look(["portmap"], tmp_path / "b") == {}


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("", "does not run"),
        ("#!/bin/sh\nexit 3\n", "ended with status 3"),
        ("#!/bin/sh\necho '{}'\n", "does not tell its versions"),
        ("#!/bin/sh\necho '[' ; exit 0\n", "does not tell its versions"),
        ("\x7fELF nonsense", "does not run"),
    ],
)
def test_a_plugin_that_can_not_be_run_is_named(tmp_path: Path, script: str, words: str) -> None:
    path = plugin(tmp_path, "portmap", script=script or " ")
    found = Binaries().look(["portmap"], tmp_path)["portmap"]
    assert str(path) in found.problem and words in found.problem and not found.versions
    path.chmod(0o644)
    assert "not executable" in Binaries().look(["portmap"], tmp_path)["portmap"].problem


def test_a_plugin_whose_loader_is_missing_speaks_what_all_do(tmp_path: Path) -> None:
    """It is the host's, and we are in a container that lacks its libraries."""
    plugin(tmp_path, "portmap", script="#!/no/such/loader\n")
    assert Binaries().look(["portmap"], tmp_path) == {"portmap": Binary(("0.4.0", "1.0.0"))}


def test_a_plugin_is_asked_again_when_its_file_changes(tmp_path: Path) -> None:
    binaries = Binaries()
    count = tmp_path / "count"
    text = f'#!/bin/sh\necho >> {count}\necho \'{{"supportedVersions": ["1.0.0"]}}\'\n'
    path = plugin(tmp_path, "portmap", script=text)
    for _ in range(3):
        assert binaries.look(["portmap"], tmp_path)["portmap"].versions == ("1.0.0",)
    assert count.read_text() == "\n"
    os.utime(path, ns=(1, 1))
    binaries.look(["portmap"], tmp_path)
    assert count.read_text() == "\n\n"


def test_folders_and_pipes_are_no_plugins(tmp_path: Path) -> None:
    (tmp_path / "portmap").mkdir()
    os.mkfifo(tmp_path / "tuning")
    assert Binaries().look(["portmap", "tuning", "x" * 300], tmp_path) == {}
