"""The ledger: what was committed is there after anything, and what can't be used is set aside, not lost."""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from ipamd.ledger import Contents, Ledger, LedgerCause, LedgerError, place, schema
from ipamd.pool.model import (
    Attachment,
    AttachmentKey,
    Cooling,
    DropAttachment,
    DropCooling,
    DropIntent,
    DropLimit,
    DropOwn,
    Intent,
    LearntLimit,
    OwnAddresses,
    Owner,
    PutAttachment,
    PutCooling,
    PutIntent,
    PutLimit,
    PutOwn,
)

OWNER = Owner(netns="/run/netns/p1", pod_name="web-0", pod_namespace="shop", pod_uid="u-1")
INTENT = Intent("t-1", "CreateNetworkInterface", 1700000000.5, subnet_id="subnet-1", count=9, device_index=None)
OWN = OwnAddresses("eni-1", ("10.0.0.9", "10.0.0.7", "10.0.0.8"))
NONE_OWN = OwnAddresses("eni-2", ())
LIMIT = LearntLimit(2, 1700000002.75)
EMPTY = Contents((), (), ())


def attachment(number: int, owner: Owner = OWNER) -> Attachment:
    address = f"10.0.{number // 256}.{number % 256}"
    return Attachment(AttachmentKey("pods", f"c{number}", "eth0"), address, "eni-1", 1700000000.25 + number, owner)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.db"


def reopened(path: Path) -> Contents:
    ledger = Ledger.open(path)
    try:
        return ledger.load()
    finally:
        ledger.close()


def aside(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir() if entry.name.startswith(f"{path.name}."))


def test_records_come_back_as_they_were(path: Path) -> None:
    attach = Intent("t-2", "AttachNetworkInterface", 1.5, eni_id="eni-2", device_index=0)
    ledger = Ledger.open(path)
    assert ledger.load() == EMPTY
    assert ledger.set_aside is None
    ledger.commit([PutAttachment(attachment(1)), PutCooling(Cooling("10.0.9.9", 1700000001.125))])
    ledger.commit([PutIntent(INTENT), PutIntent(attach)])
    ledger.commit([PutOwn(OWN), PutOwn(NONE_OWN), PutLimit(LIMIT)])
    ledger.close()
    assert reopened(path) == Contents(
        (attachment(1),),
        (Cooling("10.0.9.9", 1700000001.125),),
        (INTENT, attach),
        (OWN, NONE_OWN),
        LIMIT,
    )


def test_put_replaces_and_drop_removes(path: Path) -> None:
    ledger = Ledger.open(path)
    key = attachment(1).key
    moved = Attachment(key, "10.0.0.77", "eni-2", 2.0)
    ledger.commit([PutAttachment(attachment(1)), PutCooling(Cooling("10.0.0.2", 1.0)), PutIntent(INTENT)])
    ledger.commit([PutAttachment(moved), PutCooling(Cooling("10.0.0.2", 2.0))])
    assert ledger.load() == Contents((moved,), (Cooling("10.0.0.2", 2.0),), (INTENT,))
    ledger.commit([DropAttachment(key), DropCooling("10.0.0.2"), DropIntent(INTENT.token)])
    assert ledger.load() == EMPTY
    ledger.commit([DropAttachment(key), DropCooling("10.0.0.2"), DropIntent(INTENT.token)])
    ledger.commit([PutOwn(OWN), PutOwn(NONE_OWN), PutLimit(LIMIT)])
    fewer, lower = OwnAddresses("eni-1", ("10.0.0.7",)), LearntLimit(1, 5.0)
    ledger.commit([PutOwn(fewer), DropOwn("eni-2"), PutLimit(lower)])
    assert ledger.load() == Contents((), (), (), (fewer,), lower)
    ledger.commit([DropOwn("eni-1"), DropLimit()])
    assert ledger.load() == EMPTY
    ledger.commit([DropOwn("eni-1"), DropLimit()])
    ledger.close()


def test_an_address_passes_on_within_one_commit_in_order(path: Path) -> None:
    ledger = Ledger.open(path)
    heir = Attachment(AttachmentKey("pods", "heir", "eth0"), attachment(1).address, "eni-1", 2.0)
    ledger.commit([PutAttachment(attachment(1))])
    ledger.commit([DropAttachment(attachment(1).key), PutAttachment(heir)])
    assert ledger.load().attachments == (heir,)
    ledger.close()


def test_address_has_one_holder_and_refused_commit_leaves_none(path: Path) -> None:
    ledger = Ledger.open(path)
    ledger.commit([PutAttachment(attachment(1))])
    thief = Attachment(AttachmentKey("pods", "thief", "eth0"), attachment(1).address, "eni-1", 2.0)
    with pytest.raises(LedgerError) as caught:
        ledger.commit([PutAttachment(attachment(2)), PutIntent(INTENT), PutAttachment(thief)])
    assert caught.value.cause is LedgerCause.CONFLICT
    assert ledger.load() == Contents((attachment(1),), (), ())
    ledger.commit([PutAttachment(attachment(2))])
    assert len(ledger.load().attachments) == 2
    ledger.close()


def test_a_record_that_cannot_be_stored_leaves_the_ledger_usable(path: Path) -> None:
    ledger = Ledger.open(path)
    with pytest.raises(UnicodeEncodeError):
        ledger.commit([PutAttachment(attachment(1)), PutCooling(Cooling("\ud800", 1.0))])
    ledger.commit([PutAttachment(attachment(2))])
    assert ledger.load().attachments == (attachment(2),)
    ledger.close()


def test_files_are_root_only_and_the_directory_is_readable(path: Path) -> None:
    ledger = Ledger.open(path)
    ledger.commit([PutAttachment(attachment(1))])
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()}
    ledger.close()
    assert set(modes) == {"ledger.db", "ledger.db-wal", "ledger.db-shm", "ledger.db.lock", "ledger.db.owed"}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755


def test_a_reader_is_welcome_while_the_daemon_runs(path: Path) -> None:
    ledger = Ledger.open(path)
    reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    ledger.commit([PutAttachment(attachment(1))])
    assert reader.execute("SELECT address FROM attachments").fetchall() == [("10.0.0.1",)]
    reader.close()
    ledger.close()


def test_a_second_daemon_is_kept_out_until_the_first_ends(path: Path) -> None:
    first = Ledger.open(path)
    with pytest.raises(LedgerError, match=r"if it is another ipamd, give this one its own") as caught:
        Ledger.open(path)
    assert caught.value.cause is LedgerCause.IN_USE
    first.commit([PutAttachment(attachment(1))])
    first.close()
    assert reopened(path).attachments == (attachment(1),)


def test_open_and_close_leave_no_descriptor(path: Path) -> None:
    reopened(path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        reopened(path)
    with pytest.raises(LedgerError):
        Ledger.open(path / "below-a-file" / "ledger.db")
    path.unlink()
    path.mkdir()
    with pytest.raises(LedgerError):
        Ledger.open(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_system_without_locks_leaves_no_descriptor(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(LedgerError, match=r"No locks available.* set ledger\.path"):
        Ledger.open(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# kill -9

WRITER = """
import sys
from contextlib import closing
from pathlib import Path
from ipamd.ledger import Ledger
from ipamd.pool.model import Attachment, AttachmentKey, Cooling, DropIntent, Intent
from ipamd.pool.model import PutAttachment, PutCooling, PutIntent
ledger = Ledger.open(Path(sys.argv[1]))
number = int(sys.argv[2])
while True:
    key = AttachmentKey("pods", f"c{number}", "eth0")
    ledger.commit([
        PutIntent(Intent("t", "AssignPrivateIpAddresses", 1.0, eni_id="eni-1", count=number)),
        PutAttachment(Attachment(key, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", "eni-1", 1.0)),
        PutCooling(Cooling(f"11.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1.0)),
        DropIntent("t"),
    ])
    print(number, flush=True)
    number += 1
"""


def test_what_was_acknowledged_survives_kill_9(path: Path) -> None:
    acknowledged = -1
    for _ in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(acknowledged + 2)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        with writer, writer.stdout:
            for line in writer.stdout:
                acknowledged = int(line)
                if acknowledged % 50 == 7:
                    writer.kill()
                    break
            acknowledged = int(([str(acknowledged), *writer.stdout.read().split()])[-1])
        contents = reopened(path)
        numbers = {int(found.key.container_id[1:]) for found in contents.attachments}
        assert acknowledged in numbers
        assert numbers <= set(range(acknowledged + 2))
        # One transaction: all of a commit or nothing.
        assert {found.address.partition(".")[2] for found in contents.cooling} == {
            found.address.partition(".")[2] for found in contents.attachments
        }
        assert contents.intents == ()
        assert aside(path) == ["ledger.db.lock"]


# The write-ahead log


def churn(ledger: Ledger, commits: int) -> None:
    """Each of them writes some 20 pages. Afterwards the ledger is empty."""
    owner = Owner(netns="/run/netns/" + "x" * 2000)
    for _ in range(commits // 2):
        ledger.commit([PutAttachment(attachment(number, owner)) for number in range(30)])
        ledger.commit([DropAttachment(attachment(number).key) for number in range(30)])


def test_the_log_of_writes_stays_small_over_many_pods(path: Path) -> None:
    ledger = Ledger.open(path)
    churn(ledger, commits=60)
    assert Path(f"{path}-wal").stat().st_size < 640 << 10
    ledger.close()


def test_the_log_of_writes_shrinks_once_a_reader_is_gone(path: Path) -> None:
    ledger = Ledger.open(path)
    log = Path(f"{path}-wal")
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM attachments").fetchone()
        churn(ledger, commits=60)
        assert log.stat().st_size > 1 << 20
    churn(ledger, commits=6)
    assert log.stat().st_size < 640 << 10
    assert ledger.load() == EMPTY
    ledger.close()


# No room


def test_a_full_file_system_is_reported_and_passes(path: Path) -> None:
    ledger = Ledger.open(path)
    ledger.commit([PutAttachment(attachment(0))])
    connection = ledger._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    long = Owner(netns="/run/netns/" + "x" * 9000)
    with pytest.raises(LedgerError, match="free space on that file system") as caught:
        ledger.commit([PutIntent(INTENT), *(PutAttachment(attachment(n, long)) for n in range(1, 30))])
    assert caught.value.cause is LedgerCause.FULL
    assert ledger.load() == Contents((attachment(0),), (), ())
    connection.execute("PRAGMA max_page_count = 100000")
    ledger.commit([PutAttachment(attachment(n, long)) for n in range(1, 30)])
    ledger.close()
    assert len(reopened(path).attachments) == 30


# Files that can't be used


@pytest.mark.parametrize("garbage", [b"not a database at all" * 400, b"SQLite format 3\0" + b"\xff" * 8192])
def test_a_damaged_file_is_set_aside_with_its_bytes(path: Path, garbage: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(garbage)
    ledger = Ledger.open(path)
    assert ledger.set_aside is not None
    assert ledger.set_aside.name.startswith("ledger.db.damaged-")
    assert ledger.set_aside.read_bytes() == garbage
    ledger.commit([PutAttachment(attachment(1))])
    ledger.close()
    assert reopened(path).attachments == (attachment(1),)


def test_damage_inside_the_tables_is_found_at_open(path: Path) -> None:
    ledger = Ledger.open(path)
    ledger.commit([PutAttachment(attachment(n)) for n in range(400)])
    ledger.close()
    with path.open("r+b") as file:
        file.seek(4096 * 6)
        file.write(os.urandom(4096 * 4))
    ledger = Ledger.open(path)
    assert ledger.set_aside is not None
    assert ledger.load() == EMPTY
    ledger.close()


def test_newer_ledger_is_set_aside_whole_with_its_wal(path: Path) -> None:
    ledger = Ledger.open(path)
    ledger.commit([PutAttachment(attachment(1))])
    ledger.close()
    newer = sqlite3.connect(path, isolation_level=None)
    newer.execute("PRAGMA user_version = 7")
    newer.execute("CREATE TABLE later (x)")
    newer.execute("INSERT INTO later VALUES (42)")
    ledger = Ledger.open(path)  # while its WAL is still there
    newer.close()
    assert ledger.set_aside is not None
    assert ".version-7-" in ledger.set_aside.name
    assert ledger.load() == EMPTY
    ledger.close()
    kept = sqlite3.connect(ledger.set_aside)
    assert kept.execute("SELECT x FROM later").fetchall() == [(42,)]
    assert kept.execute("SELECT address FROM attachments").fetchall() == [("10.0.0.1",)]
    kept.close()


def test_another_programs_database_is_set_aside(path: Path) -> None:
    path.parent.mkdir(parents=True)
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE precious (x)")
    other.close()
    ledger = Ledger.open(path)
    assert ledger.set_aside is not None
    assert ".foreign-" in ledger.set_aside.name
    ledger.close()


def test_an_empty_file_is_a_new_ledger(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.touch()
    ledger = Ledger.open(path)
    assert ledger.set_aside is None
    assert ledger.load() == EMPTY
    ledger.close()


def test_a_place_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for bad in (tmp_path / "file" / "ledger.db", Path("/proc/ledger/ledger.db")):
        with pytest.raises(LedgerError, match=r"make its directory writable .* or set ledger\.path") as caught:
            Ledger.open(bad)
        assert caught.value.cause is LedgerCause.NOT_WRITABLE


def plant(place: Path, kind: str) -> None:
    place.unlink(missing_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(place)
        case "folder":
            (place / "of somebody").mkdir(parents=True)
        case _:
            place.symlink_to(place)


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop"])
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_what_is_no_file_is_named_and_left_where_it_is(path: Path, suffix: str, kind: str) -> None:
    Ledger.open(path).close()
    odd = path.with_name(path.name + suffix)
    plant(odd, kind)
    with pytest.raises(LedgerError, match=f"{odd} is no file.*; remove it, or set ledger.path") as caught:
        Ledger.open(path)
    assert caught.value.cause is LedgerCause.NO_FILE and os.path.lexists(odd)


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop"])
@pytest.mark.parametrize("suffix", [".lock", ".owed"])
def test_what_has_the_name_of_a_file_beside_it_is_renamed(path: Path, suffix: str, kind: str) -> None:
    Ledger.open(path).close()
    odd = path.with_name(path.name + suffix)
    plant(odd, kind)
    ledger = Ledger.open(path)
    assert odd.is_file() and not odd.is_symlink() and os.path.lexists(f"{odd}.odd")
    ledger.close()


# Older files. VERSION_1 is what ipamd wrote before it knew of own addresses.

VERSION_1 = """
CREATE TABLE attachments (
    network TEXT NOT NULL, container_id TEXT NOT NULL, ifname TEXT NOT NULL,
    address TEXT NOT NULL UNIQUE, eni_id TEXT NOT NULL, since REAL NOT NULL,
    netns TEXT NOT NULL, pod_name TEXT NOT NULL, pod_namespace TEXT NOT NULL, pod_uid TEXT NOT NULL,
    PRIMARY KEY (network, container_id, ifname)) STRICT, WITHOUT ROWID;
CREATE TABLE cooling (address TEXT PRIMARY KEY, released_at REAL NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE intents (
    token TEXT PRIMARY KEY, action TEXT NOT NULL, at REAL NOT NULL, eni_id TEXT NOT NULL, subnet_id TEXT NOT NULL,
    count INTEGER NOT NULL, device_index INTEGER) STRICT, WITHOUT ROWID;
CREATE TABLE boot (id TEXT NOT NULL) STRICT;
PRAGMA application_id = 1768975716;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
INSERT INTO attachments VALUES
    ('pods', 'c1', 'eth0', '10.0.0.1', 'eni-1', 1700000001.25, '/run/netns/p1', 'web-0', 'shop', 'u-1');
INSERT INTO cooling VALUES ('10.0.0.2', 1.5);
INSERT INTO intents VALUES ('t-1', 'CreateNetworkInterface', 1700000000.5, '', 'subnet-1', 9, NULL);
"""
KEPT_OF_VERSION_1 = Contents((attachment(1),), (Cooling("10.0.0.2", 1.5),), (INTENT,))


def version_1(path: Path) -> None:
    path.parent.mkdir(parents=True)
    old = sqlite3.connect(path)
    old.executescript(VERSION_1)
    old.execute("INSERT INTO boot VALUES (?)", (place.boot_id(),))
    old.commit()
    old.close()


def version(path: Path) -> int:
    reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    (number,) = reader.execute("PRAGMA user_version").fetchone()
    reader.close()
    return int(number)


def test_an_older_file_is_taken_along_with_its_records(path: Path) -> None:
    version_1(path)
    ledger = Ledger.open(path)
    assert ledger.set_aside is None
    assert ledger.load() == KEPT_OF_VERSION_1
    ledger.commit([PutOwn(OWN), PutLimit(LIMIT)])
    ledger.close()
    assert version(path) == schema.VERSION
    assert (reopened(path).own, reopened(path).limit) == ((OWN,), LIMIT)
    assert aside(path) == ["ledger.db.lock"]


def test_an_older_file_and_a_new_one_end_up_the_same(path: Path, tmp_path: Path) -> None:
    def schema(file: Path) -> list[tuple[str, str]]:
        reader = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
        found = reader.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name").fetchall()
        found.append(("application_id", reader.execute("PRAGMA application_id").fetchone()[0]))
        reader.close()
        return [(name, " ".join(str(sql).split())) for name, sql in found]

    version_1(path)
    reopened(path)
    reopened(tmp_path / "new.db")
    assert schema(path) == schema(tmp_path / "new.db")


def test_a_step_that_fails_leaves_the_older_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version_1(path)
    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, ("CREATE TABLE own (twice)",)))
    monkeypatch.setattr(schema, "VERSION", len(schema.STEPS))
    with pytest.raises(LedgerError):
        Ledger.open(path)
    monkeypatch.undo()
    assert version(path) == 1
    assert reopened(path) == KEPT_OF_VERSION_1
    assert version(path) == schema.VERSION


# Boots and file systems


def test_records_of_an_earlier_boot_go_but_for_what_ec2_keeps(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger.open(path)
    ledger.commit([PutAttachment(attachment(1)), PutCooling(Cooling("10.0.0.2", 1.0)), PutIntent(INTENT)])
    ledger.commit([PutOwn(OWN), PutLimit(LIMIT)])
    ledger.close()
    kept = reopened(path)
    assert (len(kept.attachments), kept.limit) == (1, LIMIT)
    monkeypatch.setattr(place, "boot_id", lambda: "11111111-2222-3333-4444-555555555555")
    assert reopened(path) == Contents((), (), (INTENT,), (OWN,))
    ledger = Ledger.open(path)
    ledger.commit([PutAttachment(attachment(3))])
    ledger.close()
    assert reopened(path).attachments == (attachment(3),)


def test_commits_are_synced_where_power_failure_could_lose_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def synchronous() -> int:
        ledger = Ledger.open(path)
        try:
            (level,) = ledger._connection.execute("PRAGMA synchronous").fetchone()
            return int(level)
        finally:
            ledger.close()

    normal, full = 1, 2
    monkeypatch.setattr(place, "in_memory", lambda _: True)
    assert synchronous() == normal
    monkeypatch.setattr(place, "in_memory", lambda _: False)
    assert synchronous() == full


def test_the_kind_of_file_system_is_read_from_the_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(place, "_MOUNTS", mounts)
    other = "22 1 0:21 / /proc rw,nosuid shared:12 - proc proc rw\n"
    for kind, expected in (("tmpfs", True), ("ramfs", True), ("ext4", False), ("overlay", False)):
        mounts.write_text(f"{other}35 22 {number} / /odd\\040name rw,nosuid shared:1 - {kind} none rw,size=10%\n")
        assert place.in_memory(tmp_path) is expected
    mounts.write_text(other)
    assert place.in_memory(tmp_path) is False


def test_the_real_mount_table_can_be_read() -> None:
    assert place.in_memory(Path("/proc")) is False
    if Path("/dev/shm").is_mount():
        assert place.in_memory(Path("/dev/shm")) is True
