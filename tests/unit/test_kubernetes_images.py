"""The table of images, and what of their contents can be judged without Go and without a network."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from ipamd.sim.runtimes.docker_archive import Layer
from ipamd.sim.runtimes.image import busybox
from tests.kubernetes import debian_system, images, ipamd_image
from tests.kubernetes.store import Store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    made = Store(tmp_path)
    monkeypatch.setattr(images.Store, "of", lambda kind: made)
    return made


def configs(path: Path) -> dict[str, dict[str, object]]:
    """The configuration of each image by its first name."""
    with tarfile.open(path) as archive:

        def content(name: str) -> bytes:
            file = archive.extractfile(name)
            assert file is not None
            return file.read()

        return {
            each["RepoTags"][0]: json.loads(content(each["Config"]))["config"]
            for each in json.loads(content("manifest.json"))
        }


def test_every_image_is_in_one_archive() -> None:
    assert sorted(name for group in images.ARCHIVES for name in group) == sorted(images.IMAGES)


def test_references_are_whole_and_their_own() -> None:
    references = [each for image in images.IMAGES.values() for each in image.references]
    assert len(set(references)) == len(references)
    for each in references:
        assert re.fullmatch(r"(registry\.k8s\.io|localhost|docker\.io)/[a-z0-9/.-]+:[a-z0-9.-]+", each)


def test_the_image_of_ipamd_is_the_one_the_daemonset_names() -> None:
    objects = yaml.safe_load_all((ROOT / "deploy/kubernetes/ipamd.yaml").read_text())
    spec = next(each for each in objects if each["kind"] == "DaemonSet")["spec"]["template"]["spec"]
    named = {each["image"] for each in (*spec["initContainers"], *spec["containers"])}
    assert {f"docker.io/library/{each}" for each in named} == {images.reference("ipamd")}


def test_the_image_of_ipamd_starts_as_its_containerfile_says() -> None:
    text = (ROOT / "deploy/image/Containerfile").read_text()
    image = ipamd_image.IMAGE
    assert f"ENTRYPOINT {json.dumps(list(image.entrypoint))}" in text
    assert f"CMD {json.dumps(list(image.command))}" in text
    assert f"ENV PATH={image.path}\n" in text


def test_the_image_of_ipamd_has_what_it_needs_and_no_more() -> None:
    names = {each.name.lower() for each in ipamd_image.needed()}
    assert {"ipamd", "grpcio", "aiobotocore", "pydantic", "pydantic_core"} <= names
    assert not names & {"pytest", "moto", "matplotlib", "mypy", "opentelemetry-sdk", "pip"}


async def test_an_archive_is_written_once_and_shared(store: Store, tmp_path: Path) -> None:
    first = await images.archive("pause", tmp_path)
    before = first.stat()
    assert await images.archive("busybox", tmp_path) == first
    assert first.stat().st_mtime_ns == before.st_mtime_ns
    found = configs(first)
    assert set(found) == {images.reference(name) for name in ("pause", "busybox", "nginx", "httpd")}
    assert found[images.reference("pause")]["Entrypoint"] == list(images.IMAGES["pause"].entrypoint)


def test_a_container_that_waits_ends_at_sigterm() -> None:
    shell, *words = images.until_terminated("echo up; sleep 1000")
    assert shell == "/bin/sh"
    with subprocess.Popen([busybox(), "sh", *words], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            process.terminate()
            assert process.wait() == 0, "by its handler: the first process of a container is not ended otherwise"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


async def test_an_archive_changes_with_the_program_in_it(store: Store, tmp_path: Path) -> None:
    (tmp_path / "coredns").write_text("one")
    first = await images.archive("coredns", tmp_path)
    (tmp_path / "coredns").write_text("another")
    assert await images.archive("coredns", tmp_path) != first


async def test_a_failed_archive_leaves_nothing(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await images.archive("coredns", tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {".lock-coredns"}


def test_busybox_fills_what_a_system_lacks(tmp_path: Path) -> None:
    executable = tmp_path / "busybox"
    executable.write_text("#!/bin/sh\nprintf '%s\\n' busybox ls nc wget arp\n")
    executable.chmod(0o755)
    layer = Layer()
    layer.file("usr/bin/nc", b"its own")
    layer.file("usr/sbin/arp", b"its own")
    images.add_busybox(layer, executable)
    with tarfile.open(fileobj=layer.closed()) as archive:
        assert {each.name: each.linkname for each in archive} == {
            "usr/bin/nc": "",
            "usr/sbin/arp": "",
            "usr/bin/busybox": "",
            "usr/bin/ls": "busybox",
            "usr/bin/wget": "busybox",
        }


async def test_a_python_of_no_debian_release_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(debian_system.SYSTEMS, "python", ("", ("python3",)))
    with pytest.raises(debian_system.Unfetched, match=r"no Debian release has Python 3\.\d+, as \.venv does"):
        await debian_system.root("python")


def test_the_certificate_is_pem_with_its_key(tmp_path: Path) -> None:
    certificate, key = images.certificate()
    assert key.startswith(b"-----BEGIN PRIVATE KEY-----")
    (tmp_path / "crt").write_bytes(certificate)
    said = subprocess.run(
        ["openssl", "x509", "-in", tmp_path / "crt", "-noout", "-subject"], capture_output=True, check=True
    )
    assert b"localhost" in said.stdout
