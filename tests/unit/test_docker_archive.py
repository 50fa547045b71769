"""The layout of docker archives, as containerd and podman read them."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ipamd.sim.runtimes.docker_archive import Image, Layer, write


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {each.name: file.read() for each in archive if (file := archive.extractfile(each))}


def listed(layer: Layer) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=layer.closed()) as archive:
        return {each.name: each for each in archive}


def small(name: str) -> Layer:
    layer = Layer()
    layer.file(name, name.encode())
    return layer


@pytest.fixture
def written(tmp_path: Path) -> dict[str, bytes]:
    images = (
        Image(("r.io/a:1", "r.io/a:2"), ("low", "high"), entrypoint=("/a",), command=("b",)),
        Image(("r.io/c:1",), ("low",), path="/bin"),
    )
    write(tmp_path / "image.tar", images, {"low": small("x"), "high": small("y")})
    return members(tmp_path / "image.tar")


def test_the_manifest_names_images_with_their_layers(written: dict[str, bytes]) -> None:
    first, second = json.loads(written["manifest.json"])
    assert first["RepoTags"] == ["r.io/a:1", "r.io/a:2"]
    assert second["RepoTags"] == ["r.io/c:1"]
    assert first["Layers"][0] == second["Layers"][0], "a shared layer is there once"
    assert len(written) == 1 + 2 + 2


def test_a_configuration_names_layers_by_their_digests(written: dict[str, bytes]) -> None:
    for each in json.loads(written["manifest.json"]):
        config: dict[str, Any] = json.loads(written[each["Config"]])
        assert each["Config"] == f"{hashlib.sha256(written[each['Config']]).hexdigest()}.json"
        digests = [f"sha256:{hashlib.sha256(written[layer]).hexdigest()}" for layer in each["Layers"]]
        assert config["rootfs"] == {"type": "layers", "diff_ids": digests}
        assert config["os"] == "linux"


def test_a_configuration_says_what_runs(written: dict[str, bytes]) -> None:
    first, second = (json.loads(written[each["Config"]])["config"] for each in json.loads(written["manifest.json"]))
    assert (first["Entrypoint"], first["Cmd"]) == (["/a"], ["b"])
    assert first["Env"] == ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    assert second == {"Env": ["PATH=/bin"]}


def test_the_first_of_two_files_with_one_name_counts(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("tree")
    (tmp_path / "b").write_text("tree")
    layer = Layer()
    layer.file("a", b"first", 0o600)
    layer.tree(tmp_path)
    layer.link("b", "a")
    found = listed(layer)
    assert (found["a"].size, found["a"].mode) == (len("first"), 0o600)
    assert found["b"].isfile()


def test_a_tree_keeps_modes_times_and_links(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(mode=0o711)
    (tmp_path / "d" / "file").write_text("x")
    (tmp_path / "d" / "file").chmod(0o751)
    os.utime(tmp_path / "d" / "file", (0, 1_700_000_000.75))
    (tmp_path / "link").symlink_to("d")
    (tmp_path / "not").touch()
    layer = Layer()
    layer.tree(tmp_path, wanted=lambda name: name != "not")
    found = listed(layer)
    assert set(found) == {"d", "d/file", "link"}
    assert (found["d"].mode, found["d/file"].mode, found["d/file"].mtime) == (0o711, 0o751, 1_700_000_000)
    assert (found["link"].issym(), found["link"].linkname) == (True, "d")
    assert {each.uid for each in found.values()} == {each.gid for each in found.values()} == {0}


def test_a_copied_link_becomes_the_file_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    layer = Layer()
    layer.copy(tmp_path / "link", "usr/bin/name")
    assert listed(layer)["usr/bin/name"].isfile()


def test_a_layer_extracts_to_a_folder(tmp_path: Path) -> None:
    small("x").extract(tmp_path / "new" / "root")
    assert (tmp_path / "new" / "root" / "x").read_text() == "x"
