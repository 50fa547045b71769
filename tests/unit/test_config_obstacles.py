"""What stands where a setting's file or folder has to be is found before the daemon's next start."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from ipamd.__main__ import main
from ipamd.config.load import load
from ipamd.config.obstacles import obstacles
from ipamd.ledger import Ledger, LedgerError


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/null")


def a_link(path: Path) -> None:
    path.symlink_to("nowhere")


def a_loop(path: Path) -> None:
    path.symlink_to(path.name)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def a_file(path: Path) -> None:
    path.write_text("")


FILES = [a_folder, a_pipe, a_device, a_link, a_loop, a_socket]
CASES = [
    *(("ledger.path", suffix, make) for suffix in ("", "-wal", "-shm") for make in FILES),
    *((key, "", make) for key in ("api.socket", "api.read_socket") for make in (a_folder, a_file, a_pipe, a_loop)),
    *((key, "", make) for key in ("cni.spool_dir", "cni.conf_dir") for make in (a_file, a_device, a_link, a_socket)),
]


def checked(folder: Path, key: str, path: Path) -> Path:
    """A settings file that places everything below `folder`, and the setting of that key at `path`."""
    paths = {
        "ledger.path": folder / "ledger.db",
        "api.socket": folder / "s",
        "api.read_socket": folder / "r",
        "cni.spool_dir": folder / "released",
        "cni.conf_dir": folder / "net.d",
        key: path,
    }
    file = folder / "config.toml"
    lines = [f'{dotted} = "{value}"' for dotted, value in paths.items()]
    file.write_text("\n".join([*lines, 'api.read_group = "root"', ""]))
    return file


@pytest.mark.parametrize(("key", "suffix", "make"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_check_refuses_what_is_in_a_files_place(
    tmp_path: Path, key: str, suffix: str, make: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "it"
    file = checked(tmp_path, key, path)
    assert main(["config", "check", "--config", str(file)]) == 0
    make(Path(f"{path}{suffix}"))
    capsys.readouterr()
    assert main(["config", "check", "--config", str(file)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{file}: {key} {path}{suffix}: " in line and "has to be" in line
    (found,) = obstacles(load(file, environ={}).settings)
    if key == "ledger.path":
        with pytest.raises(LedgerError):
            Ledger.open(path, 0.0)
    assert found.ends_the_start is (key in ("ledger.path", "api.socket"))


@pytest.mark.parametrize("key", ["ledger.path", "api.socket", "cni.spool_dir", "cni.conf_dir"])
def test_check_refuses_a_place_below_a_file(tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    file = checked(tmp_path, key, tmp_path / "file/a/b")
    assert main(["config", "check", "--config", str(file)]) == 1
    assert f"{tmp_path / 'file'} is a file, and has to be a folder" in capsys.readouterr().err


def test_what_a_daemon_has_made_is_in_nobodys_way(tmp_path: Path) -> None:
    file = checked(tmp_path, "ledger.path", tmp_path / "ledger.db")
    ledger = Ledger.open(tmp_path / "ledger.db", 0.0)
    a_socket(tmp_path / "s")
    (tmp_path / "released").mkdir()
    assert list(obstacles(load(file, environ={}).settings)) == []
    ledger.close()
