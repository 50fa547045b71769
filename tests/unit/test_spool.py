"""Releases left as files: read whole, in order, and never a reason to stop."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ipamd.api.spool import REJECTED, Spool
from ipamd.api.v1 import ipam_pb2
from ipamd.host import HostError

CONFIG = b'{"cniVersion":"1.0.0","name":"net","type":"ipamd-cni"}'


def leave(directory: Path, name: str, container: str, at: float | None = None) -> Path:
    """As the plugin does: written under a hidden name, then renamed."""
    request = ipam_pb2.ReleaseRequest(cni=ipam_pb2.CniCall(container_id=container, ifname="eth0", config=CONFIG))
    (directory / f".{name}").write_bytes(request.SerializeToString())
    if at is not None:
        os.utime(directory / f".{name}", (at, at))
    return (directory / f".{name}").rename(directory / name)


def test_the_oldest_comes_first_and_carries_its_time(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    leave(tmp_path, "a", "young", 200.0)
    leave(tmp_path, "b", "old", 100.0)
    found = spool.read()
    assert [(item.key.container_id, item.released_at) for item in found] == [("old", 100.0), ("young", 200.0)]
    assert found[0].key.network == "net"


def test_what_is_done_is_gone_and_may_be_gone_already(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    leave(tmp_path, "a", "c")
    (item,) = spool.read()
    spool.done(item)
    spool.done(item)
    assert spool.read() == []


def test_a_file_that_is_still_being_written_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".half").write_bytes(b"\x0a")
    assert Spool(tmp_path).read() == []
    assert (tmp_path / ".half").exists()


@pytest.mark.parametrize("content", [b"", b"\xff\xff", b"\x0a\x00"], ids=["empty", "no protobuf", "no container"])
def test_nonsense_is_kept_out_of_the_way(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    spool = Spool(tmp_path)
    with capture_logs() as logs:
        assert spool.read() == []
        assert spool.read() == []
    assert [entry["event"] for entry in logs] == ["spool.rejected"]
    assert [file.name for file in tmp_path.iterdir()] == ["x" + REJECTED]


def test_a_directory_in_the_spool_is_no_release(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with capture_logs() as logs:
        assert Spool(tmp_path).read() == []
    assert logs[0]["event"] == "spool.rejected"


def test_a_missing_directory_is_made_for_root_alone(tmp_path: Path) -> None:
    Spool(tmp_path / "run" / "released")
    assert (tmp_path / "run" / "released").stat().st_mode & 0o777 == 0o700


def test_a_place_that_can_not_be_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match=r"cni\.spool_dir .*file can't be used: File exists"):
        Spool(tmp_path / "file")
    with pytest.raises(HostError, match="Not a directory"):
        Spool(tmp_path / "file" / "below")


async def test_the_watch_sees_what_waits_what_comes_and_a_directory_made_anew(tmp_path: Path) -> None:
    directory = tmp_path / "released"
    spool = Spool(directory)
    leave(directory, "a", "first")
    seen: list[str] = []

    async def watch() -> None:
        async for waiting in spool.watch():
            for item in waiting:
                seen.append(item.key.container_id)
                spool.done(item)

    async def until(count: int) -> None:
        async with asyncio.timeout(10):
            while len(seen) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch())
    await until(1)
    leave(directory, "b", "second")
    await until(2)
    with capture_logs() as logs:
        directory.rmdir()
        async with asyncio.timeout(10):
            while not logs:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert logs[0]["event"] == "spool.removed"
    leave(directory, "c", "third")
    await until(3)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert seen == ["first", "second", "third"]
