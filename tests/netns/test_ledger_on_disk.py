"""What becomes of a node whose ledger is damaged, of another version or boot, or has no room, through the daemon."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import grpc
import pytest

from ipamd.api.v1 import ipam_pb2
from ipamd.ledger import Ledger, LedgerCause, LedgerError
from ipamd.pool.model import Attachment, AttachmentKey, Cooling, Owner, PutAttachment, PutCooling
from ipamd.sim import netns
from tests.netns.boxed import Daemon, add_route, box, cni_call, plain, refused

pytestmark = pytest.mark.netns


@asynccontextmanager
async def small_disk(dir: Path) -> AsyncIterator[Path]:
    """A real file system of 512 KiB."""
    disk = dir / "disk"
    disk.mkdir()
    await netns.command("mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk))
    try:
        yield disk
    finally:
        await netns.command("umount", str(disk))


def fill(disk: Path, free_pages: int = 0) -> Path:
    """Leaves so many pages of 4 KiB free; returns the file to remove."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file, pytest.raises(OSError) as caught:
        while True:
            file.write(b"\0" * 512)
    assert caught.value.errno == errno.ENOSPC
    os.truncate(ballast, ballast.stat().st_size - free_pages * 4096)
    return ballast


def attachment(number: int) -> Attachment:
    key = AttachmentKey("pods", f"c{number}", "eth0")
    return Attachment(key, f"10.0.0.{number}", "eni-1", 1.0, Owner(netns="/run/netns/" + "x" * 500))


async def fails(daemon: Daemon) -> str:
    """The last line of a daemon that ends by itself."""
    await daemon.start()
    assert daemon.process is not None
    try:
        async with asyncio.timeout(20):
            assert await daemon.process.wait() == 1
    finally:
        await daemon.kill()
    log = daemon.log.read_text()
    assert "Traceback" not in log
    return log.splitlines()[-1]


def damage(file: Path) -> None:
    size = file.stat().st_size
    file.write_bytes(b"no ledger at all".ljust(size, b"\xff"))


def from_the_future(file: Path) -> None:
    with closing(sqlite3.connect(file)) as ledger:
        ledger.execute("PRAGMA user_version = 99")


def as_version_1(file: Path) -> None:
    """What that version lacked is taken away."""
    with closing(sqlite3.connect(file)) as ledger:
        ledger.executescript(
            "DROP TABLE own; DROP TABLE learnt_limit; DROP TABLE drained; ALTER TABLE intents DROP COLUMN addresses;"
            "ALTER TABLE boot DROP COLUMN instance; ALTER TABLE boot DROP COLUMN clock;"
            "PRAGMA user_version = 1;"
        )


def of_an_earlier_boot(file: Path) -> None:
    with closing(sqlite3.connect(file)) as ledger:
        ledger.execute("UPDATE boot SET id = '00000000-0000-0000-0000-000000000000'")
        ledger.commit()


def version(file: Path) -> int:
    with closing(sqlite3.connect(file)) as ledger:
        return int(ledger.execute("PRAGMA user_version").fetchone()[0])


def another_boot(file: Path) -> None:
    of_an_earlier_boot(file)
    with closing(sqlite3.connect(file)) as ledger:
        ledger.execute("UPDATE boot SET instance = 'i-0000000000other'")
        ledger.commit()


@pytest.mark.parametrize(("spoil", "word"), [(damage, "damaged"), (from_the_future, "version-99")])
async def test_a_ledger_that_can_not_be_used_is_set_aside_and_rebuilt(
    tmp_path: Path, prefix: str, spoil: Callable[[Path], None], word: str
) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        await daemon.ready()
        held = {name: await daemon.address(name) for name in "ab"}
        for name in held:
            await add_route(daemon.node, name, held[name])
        await daemon.settled(free=5)
        await daemon.stop()
        ledger = daemon.node.dir / "ledger.db"
        spoil(ledger)
        spoilt = ledger.read_bytes()

        await daemon.ready()
        (event,) = daemon.events("ledger.set_aside")
        kept = Path(event["file"])
        assert (event["level"], event["path"]) == ("error", str(ledger))
        assert kept.name.startswith(f"ledger.db.{word}-") and kept.read_bytes() == spoilt
        # The routes of the pods say what they hold, and nobody else gets it.
        assert {event["ip"] for event in daemon.events("attachment.recovered")} == set(held.values())
        assert await daemon.address("c") not in held.values()
        await daemon.stop()

        await daemon.ready()
        assert not daemon.events("ledger.set_aside")
        assert set(held.values()) < set((await daemon.held()).values())


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE cooling",
        "ALTER TABLE attachments ADD COLUMN further TEXT",
        "UPDATE attachments SET since = -5.0",
        "CREATE TABLE theirs (x)",
    ],
)
async def test_odd_tables_cost_no_pod_its_name(tmp_path: Path, prefix: str, statement: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        await daemon.ready()
        held = {name: await daemon.address(name) for name in "ab"}
        await daemon.stop()
        with closing(sqlite3.connect(daemon.node.dir / "ledger.db")) as ledger:
            ledger.execute(statement)
            ledger.commit()

        await daemon.ready()
        assert daemon.events("ledger.set_aside")
        assert await daemon.held() == held
        assert await daemon.address("c") not in held.values()
        await daemon.stop()


async def test_a_ledger_deleted_in_use_is_there_again(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        await daemon.ready()
        held = {"a": await daemon.address("a")}
        for file in daemon.node.dir.glob("ledger.db*"):
            file.unlink()
        held["b"] = await daemon.address("b")
        await daemon.seen("ledger.renewed")
        await daemon.kill()

        await daemon.ready()
        assert not daemon.events("ledger.set_aside")
        assert await daemon.held() == held
        await daemon.stop()


async def test_another_nodes_ledger_is_not_adopted(tmp_path: Path, prefix: str) -> None:
    """The disk image of a used and drained node."""
    async with box(tmp_path, prefix) as (daemon, _):
        await daemon.ready()
        await daemon.address("a")
        await daemon.stop()
        file = daemon.node.dir / "ledger.db"
        another_boot(file)
        with closing(sqlite3.connect(file)) as ledger:
            ledger.execute("INSERT INTO drained VALUES (1, 1.0)")
            ledger.commit()

        await daemon.ready()
        (event,) = daemon.events("ledger.set_aside")
        assert "i-0000000000other" in event["error"] and Path(event["file"]).exists()
        assert await daemon.held() == {}
        assert await daemon.address("b")
        await daemon.stop()


async def test_a_del_answered_without_room_survives_a_kill(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _), small_disk(daemon.node.dir) as disk:
        daemon.settings["IPAMD_LEDGER_PATH"] = str(disk / "ledger.db")
        daemon.settings["IPAMD_CNI_SPOOL_DIR"] = str(disk / "released")
        try:
            await daemon.ready()
            await daemon.settled(free=5)
            for name in "abc":
                await daemon.address(name)
            await daemon.settled(free=5)
            ballast = fill(disk)
            assert (await daemon.release("a")).released
            assert (await daemon.release("b")).released
            await daemon.kill()
            ballast.unlink()

            await daemon.ready()
            assert set(await daemon.held()) == {"c"}
            await daemon.stop()
        finally:
            await daemon.kill()


async def test_a_del_that_nothing_keeps_is_left_to_the_spool(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _), small_disk(daemon.node.dir) as disk:
        daemon.settings["IPAMD_LEDGER_PATH"] = str(disk / "ledger.db")
        try:
            await daemon.ready()
            for name in "ab":
                await daemon.address(name)
            await daemon.settled(free=5)
            fill(disk)
            (disk / "ledger.db.owed").unlink()
            ballast = fill(disk)
            # The plugin keeps the release in the spool after this answer.
            code, info, _ = await refused(daemon.release("a"))
            assert (code, info.reason) == (grpc.StatusCode.UNAVAILABLE, "LEDGER_UNWRITABLE")
            request = ipam_pb2.ReleaseRequest(attachment=plain("a"))
            spool = daemon.node.dir / "released"
            hidden = spool / ".release-1"
            hidden.write_bytes(request.SerializeToString())
            hidden.rename(spool / "release-1")
            await daemon.kill()
            ballast.unlink()

            await daemon.ready()
            assert set(await daemon.held()) == {"b"}
            await daemon.stop()
        finally:
            await daemon.kill()


async def test_a_ledger_of_an_older_version_is_taken_along(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        await daemon.ready()
        held = {name: await daemon.address(name) for name in "ab"}
        await daemon.stop()
        ledger = daemon.node.dir / "ledger.db"
        newest = version(ledger)
        as_version_1(ledger)

        await daemon.ready()
        assert not daemon.events("ledger.set_aside")
        assert await daemon.held() == held
        await daemon.stop()
        assert version(ledger) == newest


async def test_what_pods_held_before_a_reboot_is_free_again(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        await daemon.ready()
        for name in "abc":
            await daemon.address(name)
        await daemon.release("c")
        await daemon.settled(free=5)
        await daemon.stop()
        of_an_earlier_boot(daemon.node.dir / "ledger.db")

        await daemon.ready()
        assert await daemon.held() == {}
        counts = await daemon.counts()
        assert (counts.assigned, counts.cooling, counts.free) == (0, 0, 8)


async def test_without_room_new_grants_are_refused_and_releases_served(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _), small_disk(daemon.node.dir) as disk:
        daemon.settings["IPAMD_LEDGER_PATH"] = str(disk / "ledger.db")
        try:
            await daemon.ready()
            await daemon.settled(free=5)
            await daemon.address("a")
            ballast = fill(disk)

            request = ipam_pb2.AllocateRequest(cni=cni_call("b"), deadline_ms=3000)
            code, info, error = await refused(daemon.ipam.Allocate(request, timeout=8))
            assert (code, info.reason) == (grpc.StatusCode.UNAVAILABLE, "LEDGER_UNWRITABLE")
            assert error is not None and "free space on that file system" in error["msg"]
            event = await daemon.seen("ledger.unwritable")
            assert event["level"] == "error" and "free space on that file system" in event["error"]
            assert (await daemon.release("a")).released
            assert "a" not in await daemon.held()

            ballast.unlink()
            await daemon.seen("ledger.writable_again")
            assert await daemon.address("c")
            held = await daemon.held()
            assert set(held) == {"c"}
            await daemon.stop()
            await daemon.ready()
            assert await daemon.held() == held
            await daemon.stop()
        finally:
            await daemon.kill()


async def test_start_without_disk_room_says_so_and_spoils_nothing(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _), small_disk(daemon.node.dir) as disk:
        ledger = disk / "ledger.db"
        daemon.settings["IPAMD_LEDGER_PATH"] = str(ledger)
        try:
            ballast = fill(disk)
            line = await fails(daemon)
            assert line.startswith("ipamd: ledger ") and "free space on that file system" in line
            ballast.unlink()

            await daemon.ready()
            held = {"a": await daemon.address("a")}
            await daemon.stop()
            as_version_1(ledger)
            ballast = fill(disk)
            assert "free space on that file system" in await fails(daemon)
            ballast.unlink()
            assert version(ledger) == 1, "no step of the way to the newest version was taken"
            await daemon.ready()
            assert not daemon.events("ledger.set_aside")
            assert await daemon.held() == held
            await daemon.stop()
        finally:
            await daemon.kill()


async def test_with_any_little_room_a_commit_is_whole_or_refused(tmp_path: Path) -> None:
    """Straight at the ledger: each number of free pages ends it at another point."""
    outcomes = []
    async with small_disk(tmp_path) as disk:
        for pages in range(16):
            path = disk / f"{pages}.db"
            ledger = Ledger.open(path)
            ledger.commit([PutAttachment(attachment(0))])
            ballast = fill(disk, pages)
            refused_for = None
            try:
                ledger.commit(
                    [PutCooling(Cooling("10.0.1.1", 1.0)), *map(PutAttachment, map(attachment, range(1, 40)))]
                )
            except LedgerError as error:
                refused_for = error.cause
            count = len(ledger.load().attachments)
            ballast.unlink()
            assert (refused_for, count) in ((None, 40), (LedgerCause.FULL, 1))
            ledger.commit([PutAttachment(attachment(50))])
            ledger.close()
            outcomes.append(count)
            again = Ledger.open(path)
            assert again.set_aside is None
            assert len(again.load().attachments) == count + 1
            assert len(again.load().cooling) == (count == 40)
            again.close()
            path.unlink()
    assert set(outcomes) == {1, 40}, "both were reached"


async def test_older_ledger_is_migrated_or_left_whole_with_little_room(tmp_path: Path) -> None:
    outcomes = []
    async with small_disk(tmp_path) as disk:
        path = disk / "ledger.db"
        for pages in range(24):
            ledger = Ledger.open(path)
            ledger.commit([PutAttachment(attachment(0))])
            ledger.close()
            newest = version(path)
            as_version_1(path)
            ballast = fill(disk, pages)
            try:
                Ledger.open(path).close()
            except LedgerError as error:
                assert error.cause is LedgerCause.FULL
            ballast.unlink()
            outcomes.append(version(path) == newest)
            assert version(path) in (1, newest)
            ledger = Ledger.open(path)
            assert ledger.set_aside is None
            assert ledger.load().attachments == (attachment(0),)
            ledger.close()
    assert set(outcomes) == {False, True}, "both were reached"
