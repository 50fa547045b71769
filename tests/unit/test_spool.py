"""Releases left as files: read whole, in order, and never a reason to stop."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ipamd.api import spool as module
from ipamd.api.spool import BATCH, LARGEST, REJECTED, Spool
from ipamd.api.v1 import ipam_pb2

CONFIG = b'{"cniVersion":"1.0.0","name":"net","type":"ipamd-cni"}'


def leave(directory: Path, name: str, container: str) -> Path:
    """As the plugin does: written under a hidden name, then renamed."""
    directory.mkdir(parents=True, exist_ok=True)
    request = ipam_pb2.ReleaseRequest(cni=ipam_pb2.CniCall(container_id=container, ifname="eth0", config=CONFIG))
    (directory / f".{name[:50]}").write_bytes(request.SerializeToString())
    return (directory / f".{name[:50]}").rename(directory / name)


def stamped(seconds_ago: float, link: str = "ipm0") -> str:
    return f"{link}-{time.monotonic_ns() - int(seconds_ago * 1e9)}-1"


def test_the_oldest_comes_first_by_a_clock_that_nobody_sets(tmp_path: Path) -> None:
    young, old = leave(tmp_path, stamped(2), "young"), leave(tmp_path, stamped(60), "old")
    os.utime(young, (0, 0))
    os.utime(old, (2**33, 2**33))
    found = Spool(tmp_path).read()
    assert [item.key.container_id for item in found] == ["old", "young"]
    assert 60 <= found[0].age < 70 and 2 <= found[1].age < 12
    assert found[0].key.network == "net"


@pytest.mark.parametrize(
    "name", ["x", "ipm0-x-1", "ipm0-²-1", "ipm0-1764000000000000000-1", "ipm0-" + "9" * 200 + "-1"]
)
def test_a_name_that_tells_no_age_means_just_now(tmp_path: Path, name: str) -> None:
    leave(tmp_path, name, "c")
    (item,) = Spool(tmp_path).read()
    assert item.age == 0.0


def test_what_is_done_is_gone_and_may_be_gone_already(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    leave(tmp_path, "a", "c")
    (item,) = spool.read()
    assert spool.waits(item)
    spool.done(item)
    spool.done(item)
    assert not spool.waits(item) and spool.read() == [] and spool.trouble() == ""


def test_a_file_that_is_still_being_written_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".half").write_bytes(b"\x0a")
    assert Spool(tmp_path).read() == []
    assert (tmp_path / ".half").exists()


@pytest.mark.parametrize("content", [b"", b"\xff\xff", b"\x0a\x00"], ids=["empty", "no protobuf", "no container"])
def test_nonsense_is_kept_out_of_the_way(tmp_path: Path, content: bytes) -> None:
    name = stamped(1)
    (tmp_path / name).write_bytes(content)
    spool = Spool(tmp_path)
    with capture_logs() as logs:
        assert spool.read() == []
        assert spool.read() == []
    assert [entry["event"] for entry in logs] == ["spool.rejected"]
    assert [file.name for file in tmp_path.iterdir()] == [name + REJECTED]


@pytest.mark.parametrize("name", ["ledger.db", "ledger.db-wal", "passwd", "config.toml", "ipm0-x-1", "a-1-²"])
def test_a_file_with_a_name_of_others_is_left_where_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"somebody's")
    spool = Spool(tmp_path)
    with capture_logs() as logs:
        assert spool.read() == [] and spool.read() == []
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert [entry["event"] for entry in logs] == ["spool.rejected"]
    assert name in spool.trouble() and "cni.spool_dir" in spool.trouble()


def test_json_nested_too_deeply_is_rejected_like_any_nonsense(tmp_path: Path) -> None:
    request = ipam_pb2.ReleaseRequest(cni=ipam_pb2.CniCall(container_id="c", ifname="eth0", config=b"[" * 100_000))
    name = stamped(1)
    (tmp_path / name).write_bytes(request.SerializeToString())
    spool = Spool(tmp_path)
    assert spool.read() == [] and (tmp_path / f"{name}{REJECTED}").exists()


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 << 30)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


ODD: dict[str, Callable[[Path], object]] = {
    "directory": lambda path: path.mkdir(),
    "directory with contents": lambda path: (path / "below").mkdir(parents=True),
    "pipe": os.mkfifo,
    "socket": _socket,
    "device": lambda path: os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5)),  # /dev/zero
    "loop": lambda path: path.symlink_to(path),
    "link to a file": lambda path: path.symlink_to("/etc/passwd"),
    "3 GiB of nothing": _sparse,
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_file_is_moved_aside_and_hides_nothing(tmp_path: Path, odd: str) -> None:
    name = stamped(1, "odd")
    ODD[odd](tmp_path / name)
    leave(tmp_path, stamped(1), "c")
    spool = Spool(tmp_path)
    with capture_logs() as logs:
        assert [item.key.container_id for item in spool.read()] == ["c"]
        spool.read()
    assert [entry["event"] for entry in logs] == ["spool.rejected"]
    assert os.path.lexists(tmp_path / f"{name}{REJECTED}") and not os.path.lexists(tmp_path / name)


@pytest.mark.parametrize("length", [246, 250, 255])
def test_nonsense_with_a_long_name_is_moved_aside(tmp_path: Path, length: int) -> None:
    (tmp_path / ("n" * (length - 4) + "-1-2")).write_bytes(b"nonsense")
    spool = Spool(tmp_path)
    assert spool.read() == [] and spool.read() == []
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(REJECTED) and spool.trouble() == ""


def test_nonsense_that_can_not_be_renamed_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = stamped(1)
    (tmp_path / name).write_bytes(b"nonsense")
    spool = Spool(tmp_path)
    monkeypatch.setattr(Path, "rename", _refusing(errno.EPERM))
    with capture_logs() as logs:
        assert spool.read() == [] and spool.read() == []
    assert [entry["event"] for entry in logs] == ["spool.rejected"]
    assert "can't be removed" in spool.trouble()
    (tmp_path / name).unlink()
    spool.read()
    assert spool.trouble() == ""


def test_a_release_that_can_not_be_removed_is_not_applied_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(tmp_path, "a", "c")
    spool = Spool(tmp_path)
    (item,) = spool.read()
    monkeypatch.setattr(Path, "unlink", _refusing(errno.EROFS))
    spool.done(item)
    assert spool.read() == [] and not spool.waits(item)
    assert "can't be removed" in spool.trouble()


def test_what_was_left_by_many_odd_files_is_one_event(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"x{number}").write_bytes(b"nonsense")
    with capture_logs() as logs:
        Spool(tmp_path).read()
    assert [(entry["event"], entry["files"]) for entry in logs] == [("spool.rejected", 50)]


def test_batches_are_bounded_ordered_and_list_the_folder_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3 * BATCH):
        leave(tmp_path, stamped(1000 - number), f"c{number}")
    listings: list[Path] = []
    listdir = os.listdir

    def counted(path: Path) -> list[str]:
        listings.append(path)
        return listdir(path)

    monkeypatch.setattr(module.os, "listdir", counted)
    seen = []
    spool = Spool(tmp_path)
    for batch in spool.batches():
        assert len(batch) <= BATCH
        seen += [item.key.container_id for item in batch]
        for item in batch:
            spool.done(item)
    assert seen == [f"c{number}" for number in range(3 * BATCH)]
    assert listings == [tmp_path] and not any(tmp_path.iterdir())


def test_what_makes_no_sense_hides_nothing_behind_it(tmp_path: Path) -> None:
    for number in range(2 * BATCH):
        (tmp_path / stamped(1000 + number)).write_bytes(b"nonsense")
    leave(tmp_path, stamped(1), "c")
    found = [item.key.container_id for batch in Spool(tmp_path).batches() for item in batch]
    assert found == ["c"]


def test_the_largest_file_that_is_read_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(LARGEST + 1))
    with capture_logs() as logs:
        assert Spool(tmp_path).read() == []
    assert f"at most {LARGEST}" in logs[0]["error"]


def test_trouble_of_the_process_rejects_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(tmp_path, "a", "c")
    spool = Spool(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(module.os, "open", _refusing(errno.EMFILE))
        assert spool.read() == []
    assert "Too many open files" in spool.trouble()
    assert len(spool.read()) == 1 and spool.trouble() == ""


def test_only_the_releases_of_one_attachment_can_be_asked_for(tmp_path: Path) -> None:
    leave(tmp_path, stamped(1, "ipm0"), "a")
    leave(tmp_path, stamped(1, "ipm00"), "b")
    assert [[item.key.container_id for item in batch] for batch in Spool(tmp_path).batches("ipm0")] == [["a"]]


def test_the_folder_beside_the_socket_is_read_too(tmp_path: Path) -> None:
    configured, beside = tmp_path / "configured", tmp_path / "released"
    spool = Spool(configured, beside)
    spool.make()
    leave(configured, "1", "a")
    leave(beside, "2", "b")
    assert {item.key.container_id for item in spool.read()} == {"a", "b"}


def test_a_missing_directory_is_made_for_root_alone_and_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "run" / "released")
    spool.make()
    assert (tmp_path / "run" / "released").stat().st_mode & 0o777 == 0o700
    (tmp_path / "run" / "released").rmdir()
    with capture_logs() as logs:
        spool.make()
        spool.make()
    assert [entry["event"] for entry in logs] == ["spool.removed"] and spool.read() == []


@pytest.mark.parametrize("below", ["", "below"])
def test_place_that_can_not_be_directory_is_trouble_until_it_can(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    spool = Spool(tmp_path / "file" / below)
    spool.make()
    assert spool.read() == [] and "Not a directory" in spool.trouble()
    (tmp_path / "file").unlink()
    spool.make()
    spool.read()
    assert spool.trouble() == ""


def _refusing(number: int) -> Callable[..., None]:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse
