"""ipamctl support-bundle: what is in it, what is not, and that nothing keeps it from being made."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import grpc
import pytest

from ipamd.ctl import bundle
from ipamd.ctl.redaction import redacted
from ipamd.ledger import Ledger
from tests.unit.ctl_daemon import event, ipamctl, serving

# Made up, in the forms that real ones have.
KEY_ID, KEY = "AKIA" + "IOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPx" + "RfiCYEXAMPLEKEY"
JWT = "eyJhbGciOiJSUzI1NiJ9." + "eyJzdWIiOiJwb2QifQ" + ".c2lnbmF0dXJlLW9mLWl0"
PEM = "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEowIBAAKCAQEA\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"aws_secret_access_key = {KEY}", "aws_secret_access_key = REMOVED"),
        (f"AWS_SESSION_TOKEN={KEY}/more", "AWS_SESSION_TOKEN=REMOVED"),
        ('{"password": "hunter \\"2\\"", "user": "me"}', '{"password": "REMOVED", "user": "me"}'),
        ("api_key: 'x y'", "api_key: 'REMOVED'"),
        (f"Authorization: Bearer {JWT}", "Authorization: REMOVED REMOVED"),
        (f"refused {JWT} for it", "refused REMOVED for it"),
        (f"found {KEY_ID} with {KEY}.", "found REMOVED with REMOVED."),
        (f"x\n{PEM}\ny", "x\nREMOVED\ny"),
        ("-----BEGIN PRIVATE KEY-----\ncut", "REMOVED"),
        ("proxy http://me:hunter2@10.0.0.1:3128/", "proxy http://REMOVED@10.0.0.1:3128/"),
    ],
)
def test_secrets_go_by_name_and_by_looks(text: str, left: str) -> None:
    assert redacted(text) == left
    assert redacted(redacted(text)) == left


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1 dev ipm0123456789ab scope link table 1500 proto 158",
        "container 4f1c9d1f2a6b4f1c9d1f2a6b4f1c9d1f2a6b4f1c9d1f2a6b4f1c9d1f2a6b4f1c of shop/web-0",
        "boot 2f3c1a52-9f6e-4b6c-8d9e-0c1d2e3f4a5b on i-0123456789abcdef0, eni-0123456789abcdef0",
        "NOT_AUTHORIZED: UnauthorizedOperation: You are not authorized to perform this operation",
        "commit 0a1b2c3d4e5f60718293a4b5c6d7e8f901234567",
        "/run/netns/cni-0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


def unpacked(file: Path) -> dict[str, bytes]:
    with tarfile.open(file) as tar:
        found = {entry.name.partition("/")[2]: tar.extractfile(entry) for entry in tar}
        return {name: content.read() for name, content in found.items() if content is not None}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "net.d").mkdir()
    (tmp_path / "net.d" / "10-other.conflist").write_text(json.dumps({"name": "other", "token": JWT}))
    (tmp_path / "net.d" / "other-kubeconfig").write_text(f"token: {JWT}\n")
    file = tmp_path / "config.toml"
    file.write_text(
        f'[ec2]\ntags = {{ owner = "hunter2", "{KEY_ID}" = "x" }}\n'
        f'[ledger]\npath = "{tmp_path}/ledger.db"\n[cni]\nconf_dir = "{tmp_path}/net.d"\n'
    )
    return file


def test_a_bundle_has_it_all_and_no_secret(tmp_path: Path, config: Path) -> None:
    Ledger.open(tmp_path / "ledger.db").close()
    file = tmp_path / "x.tar.gz"
    with serving(tmp_path / "s") as daemon:
        daemon.events = [event(1, "ec2.failed", error=f"Authorization: AWS4 {JWT}", note=f"{KEY_ID} is not {KEY}")]
        daemon.explanation.because.append(f"password={KEY}")
        words = ("support-bundle", "--file", file, "--config", config, "--socket", tmp_path / "s")
        secrets = {
            "AWS_SECRET_ACCESS_KEY": KEY,
            "AWS_SESSION_TOKEN": JWT,
            "IPAMD_EC2_TAGS": '{"owner": "hunter2"}',
            "SOME_PASSWORD": "hunter2",
            "HTTPS_PROXY": "http://me:hunter2@10.0.0.1:3128",
        }
        done = ipamctl(*words, environment=secrets)
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = unpacked(file)
    assert {"daemon/status.json", "daemon/pods.json", "daemon/events.json", "daemon/settings.json", "versions.txt",
            "kernel/rules.txt", "kernel/routes.txt", "kernel/sysctls.txt", "doctor.json", "ledger.db", "config.toml",
            "environment.txt", "cni/10-other.conflist"} <= found.keys()  # fmt: skip
    for name, content in found.items():
        for secret in (KEY, KEY_ID, JWT, "hunter2"):
            assert secret.encode() not in content, f"{name}: {secret}"
    assert json.loads(found["daemon/pods.json"])[0]["ip"] == "10.0.0.0"
    assert (
        b'owner = "REMOVED"' in found["config.toml"] and b"AWS_SECRET_ACCESS_KEY=REMOVED" in found["environment.txt"]
    )
    settings = {setting["key"]: setting["value"] for setting in json.loads(found["daemon/settings.json"])}
    assert settings["ec2.tags"] == {"note": "REMOVED"}
    (tmp_path / "copy.db").write_bytes(found["ledger.db"])
    assert sqlite3.connect(tmp_path / "copy.db").execute("SELECT count(*) FROM attachments").fetchone() == (0,)
    assert "cni/other-kubeconfig" not in found and b"other-kubeconfig" in found["cni/files.txt"]
    assert "Addresses and names of pods are in it" in done.stdout and "ledger.db" in done.stdout


def test_it_is_made_with_the_daemon_dead_and_the_settings_broken(tmp_path: Path, config: Path) -> None:
    config.write_text('[ec2]\ntags = { owner = "hunter2"\n')
    file = tmp_path / "x.tar.gz"
    done = ipamctl("support-bundle", "--file", file, "--config", config, "--socket", tmp_path / "none")
    found = unpacked(file)
    assert done.returncode == 0 and "kernel/links.txt" in found
    problems = found["problems.txt"].decode()
    assert "daemon/status.json: no daemon at" in problems and "config.toml: " in problems
    assert "config.toml" not in found and b"hunter2" not in b"".join(found.values())
    assert "not in it: daemon/status.json" in done.stderr


def test_a_daemon_that_refuses_is_one_problem_a_piece(tmp_path: Path, config: Path) -> None:
    file = tmp_path / "x.tar.gz"
    with serving(tmp_path / "s") as daemon:
        daemon.error = (grpc.StatusCode.INTERNAL, "out of order")
        ipamctl("support-bundle", "--file", file, "--config", config, "--socket", tmp_path / "s")
    assert b"daemon/enis.json: out of order\n" in unpacked(file)["problems.txt"]


def test_what_fails_in_the_middle_leaves_no_file(tmp_path: Path) -> None:
    file = tmp_path / "x.tar.gz"
    file.write_text("mine")
    done = ipamctl("support-bundle", "--file", file, "--socket", tmp_path / "none")
    assert done.returncode == 1 and "is there already" in done.stderr and file.read_text() == "mine"
    done = ipamctl("support-bundle", "--file", tmp_path / "no" / "x", "--socket", tmp_path / "none")
    assert done.returncode == 1 and "No such file" in done.stderr

    def broken() -> bytes:
        raise KeyError

    problems: list[str] = []
    with Path(os.devnull).open("wb") as out:
        assert set(bundle._write(out, "n", iter([("a", broken), ("b", lambda: b"x")]), problems)) == {
            "b",
            "problems.txt",
        }
    assert problems == ["a: KeyError"]


def test_standard_output_takes_it_where_no_file_can_be(config: Path, tmp_path: Path) -> None:
    """As from the DaemonSet's pod, whose file system is read-only: `kubectl exec` hands the bytes through."""
    words = ["support-bundle", "--file", "-", "--config", str(config), "--socket", str(tmp_path / "none")]
    piped = subprocess.Popen([sys.executable, "-m", "ipamd.ctl", *words], stdout=subprocess.PIPE, cwd=tmp_path)
    with piped:
        assert piped.stdout is not None
        (tmp_path / "got.tar.gz").write_bytes(piped.stdout.read())
    assert piped.returncode == 0
    found = unpacked(tmp_path / "got.tar.gz")
    assert "kernel/links.txt" in found and "problems.txt" in found
    assert not list(tmp_path.glob("ipamd-support-*"))
