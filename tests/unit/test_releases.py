"""DELs in the spool: applied to the ledger at a start, and to the pool before their attachment is granted anew."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from ipamd.api.spool import Spool
from ipamd.daemon.releases import SpooledReleases, settle
from ipamd.host.veth import host_link, recovered_key
from ipamd.ledger import Ledger, LedgerCause, LedgerError
from ipamd.pool.model import Attachment, AttachmentKey, Owner, PutAttachment
from ipamd.shell.turn import GIVEN_UP, Refused
from ipamd.telemetry.conditions import Conditions
from tests.unit.test_spool import leave

KEY = AttachmentKey("net", "c", "eth0")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(tmp_path / "run" / "ledger.db")
    yield opened
    opened.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "released"


def held(key: AttachmentKey = KEY, since: float = 1000.0) -> PutAttachment:
    return PutAttachment(Attachment(key, "10.0.0.7", "eni-1", since, Owner("/n", "web", "shop", "u")))


def stamped(seconds_ago: float) -> str:
    return f"{host_link(KEY)}-{time.monotonic_ns() - int(seconds_ago * 1e9)}-7"


@pytest.mark.parametrize("since", [0.0, 1000.0, 2000.0, 1e12], ids=["long ago", "before", "now", "in the future"])
@pytest.mark.parametrize("mtime", [1, 2**33], ids=["old file", "new file"])
def test_a_del_counts_whatever_the_wall_clock_said(ledger: Ledger, folder: Path, since: float, mtime: int) -> None:
    ledger.commit([held(since=since)])
    os.utime(leave(folder, stamped(30), "c"), (mtime, mtime))
    settle(ledger, Spool(folder), now=2000.0)
    kept = ledger.load()
    assert list(kept.attachments) == [] and list(folder.iterdir()) == []
    (cooling,) = kept.cooling
    assert cooling.address == "10.0.0.7" and 1960 < cooling.released_at <= 1970


def test_a_del_finds_what_was_recovered_from_its_route(ledger: Ledger, folder: Path) -> None:
    ledger.commit([held(recovered_key(KEY))])
    leave(folder, stamped(1), "c")
    settle(ledger, Spool(folder), now=2000.0)
    assert list(ledger.load().attachments) == []


def test_more_than_one_batch_is_settled(ledger: Ledger, folder: Path) -> None:
    for number in range(300):
        leave(folder, f"f{number}", f"c{number}")
    settle(ledger, Spool(folder), now=2000.0)
    assert list(folder.iterdir()) == []


def test_what_can_not_be_recorded_stays_in_the_spool(
    ledger: Ledger, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.commit([held()])
    left = leave(folder, stamped(1), "c")

    def refuse(records: object) -> None:
        raise LedgerError(LedgerCause.FULL, Path("ledger.db"), "the disk is full")

    monkeypatch.setattr(ledger, "commit", refuse)
    with capture_logs() as logs:
        settle(ledger, Spool(folder), now=2000.0)
    assert left.exists() and [entry["event"] for entry in logs] == ["ledger.unwritable"]


class Runner:
    """Holds attachments until they are released; `failed` as a runner that contradicts itself."""

    def __init__(self, *keys: AttachmentKey) -> None:
        self.held = set(keys)
        self.asked: list[AttachmentKey] = []
        self.failed = False

    async def release(self, request: str, key: AttachmentKey, recovered: AttachmentKey) -> Attachment | None:
        if self.failed:
            raise Refused(GIVEN_UP)
        self.asked.append(key)
        await asyncio.sleep(0)
        if key not in self.held:
            return None
        self.held.remove(key)
        return Attachment(key, "10.0.0.7", "eni-1", 0.0)


async def test_a_del_is_applied_before_its_attachment_is_granted_anew(folder: Path) -> None:
    runner = Runner(KEY)
    releases = SpooledReleases(Spool(folder), cast(Any, runner), Conditions())
    leave(folder, stamped(1), "c")
    leave(folder, "other-1-1", "other")
    await releases.before_grant(KEY)
    assert runner.held == set() and runner.asked == [KEY]
    assert [file.name for file in folder.iterdir()] == ["other-1-1"]


async def test_del_that_was_read_before_is_not_applied_after_new_grant(folder: Path) -> None:
    """Two look at once: the one that comes second finds the file gone, and leaves the new attachment alone."""
    runner = Runner(KEY)
    spool = Spool(folder)
    releases = SpooledReleases(spool, cast(Any, runner), Conditions())
    leave(folder, stamped(1), "c")
    (stale,) = spool.read()
    await releases.before_grant(KEY)
    runner.held.add(KEY)
    await releases._apply(stale)
    assert runner.held == {KEY}


async def test_what_comes_is_applied_and_trouble_is_a_condition(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipamd.daemon.releases.INTERVAL", 0.01)
    conditions = Conditions()
    runner = Runner(KEY)
    folder.write_text("a file where the folder should be")
    releases = SpooledReleases(Spool(folder), cast(Any, runner), conditions)
    running = asyncio.create_task(releases.run(lambda: conditions.end("spool.unusable")))
    async with asyncio.timeout(20):
        while not conditions.active():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert conditions.active()[0].name == "spool.unusable"
        folder.unlink()
        while conditions.active():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        leave(folder, stamped(1), "c")
        while runner.held:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        runner.failed = True
        leave(folder, stamped(1), "c")
        await running


async def test_many_dels_do_not_keep_the_loop_to_themselves(folder: Path) -> None:
    for number in range(600):
        leave(folder, f"f{number}", f"c{number}")
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    runner = Runner()
    releases = SpooledReleases(Spool(folder), cast(Any, runner), Conditions())
    done = asyncio.Event()
    running = asyncio.create_task(releases.run(done.set))
    await asyncio.wait_for(done.wait(), 60)
    assert len(runner.asked) == 600 and turns > 600
    for task in (counting, running):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
