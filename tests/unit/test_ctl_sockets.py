"""Which socket ipamctl asks, and what it says of one that can't be asked."""

from __future__ import annotations

import os
import socket as unix
from pathlib import Path

import pytest

from ipamd.ctl import sockets
from tests.unit.ctl_daemon import Daemon, as_nobody, ipamctl, serving


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("IPAMD_API_SOCKET", raising=False)
    monkeypatch.delenv("IPAMD_API_READ_SOCKET", raising=False)
    monkeypatch.setattr(sockets, "SETTINGS", tmp_path / "config.toml")
    return tmp_path / "config.toml"


def test_the_default_serves_where_nothing_is_set(settings: Path) -> None:
    assert sockets.daemon_socket() == sockets.DEFAULT_SOCKET
    assert sockets.read_socket(sockets.DEFAULT_SOCKET) == sockets.DEFAULT_READ_SOCKET


def test_the_settings_file_names_both_sockets(settings: Path) -> None:
    settings.write_text('[api]\nsocket = "/run/x/a.sock"\nread_socket = "/run/y/r.sock"\n')
    assert sockets.daemon_socket() == Path("/run/x/a.sock")
    assert sockets.read_socket(Path("/run/x/a.sock")) == Path("/run/y/r.sock")
    assert sockets.read_socket(Path("/elsewhere/a.sock")) == Path("/elsewhere/read/ipamd.sock")


def test_the_environment_comes_before_the_file(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.write_text('[api]\nsocket = "/run/x/a.sock"\n')
    monkeypatch.setenv("IPAMD_API_SOCKET", "/run/z/a.sock")
    assert sockets.daemon_socket() == Path("/run/z/a.sock")


def test_a_socket_is_written_as_in_the_settings(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.write_bytes(b"\xff\xfe" + '[api]\nsocket = "unix:///run/x/a.sock"\n'.encode("utf-16-le"))
    assert sockets.daemon_socket() == Path("/run/x/a.sock")
    monkeypatch.setenv("IPAMD_API_SOCKET", "unix:///run/z/a.sock")
    assert sockets.daemon_socket() == Path("/run/z/a.sock")
    done = ipamctl("status", "--socket", "unix:///run/nowhere.sock")
    assert done.stderr.startswith("ipamctl: no daemon at /run/nowhere.sock: ")


def test_a_path_that_is_too_long_is_one_line() -> None:
    for command in (["status"], ["drain"]):
        done = ipamctl(*command, "--socket", "/" + "x" * 107)
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert done.stderr.endswith("has 108 bytes, and a Unix socket's path at most 107\n")


@pytest.mark.parametrize(
    "text", [b"x = [", b"\xff\xfe\x00", b"api = 3", b"[api]\nsocket = 3", b'[api]\nsocket = ""', b"[[api]]\n"]
)
def test_a_file_that_says_nothing_useful_is_passed_over(settings: Path, text: bytes) -> None:
    settings.write_bytes(text)
    assert sockets.daemon_socket() == sockets.DEFAULT_SOCKET


def test_ipamctl_asks_the_socket_of_the_environment(at: Path, daemon: Daemon) -> None:
    done = ipamctl("pods", environment={"IPAMD_API_SOCKET": str(at)})
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_in_place_of_the_socket_is_named(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("")
    done = ipamctl("status", "--socket", tmp_path / "s")
    assert done.returncode == 1 and done.stderr == (
        f"ipamctl: {tmp_path / 's'} is no socket: name the daemon's with --socket (/run/ipamd/ipamd.sock is usual)\n"
    )


def test_who_holds_a_silent_socket_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.sock"
    with unix.socket(unix.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(16)
        done = ipamctl("pods", "--socket", path)
    assert done.returncode == 1
    assert f"at {path} did not answer in time (process " in done.stderr
    assert f"(pid {os.getpid()})" in done.stderr and done.stderr.count("\n") == 1


def test_a_grpc_server_of_others_is_named(tmp_path: Path) -> None:
    from concurrent import futures

    import grpc

    server = grpc.server(futures.ThreadPoolExecutor(1))
    path = tmp_path / "containerd.sock"
    server.add_insecure_port(f"unix:{path}")
    server.start()
    try:
        done = ipamctl("pods", "--socket", path)
    finally:
        server.stop(0).wait()
    assert done.returncode == 1
    assert f"(pid {os.getpid()}) at {path} does not know this command: it is another program" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give it away")
def test_a_closed_folder_is_permission_denied(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o700)
    with serving(folder / "s"):
        done = as_nobody("pods", "--socket", folder / "s")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "permission denied: its folder is closed to this user. Use sudo" in done.stderr
