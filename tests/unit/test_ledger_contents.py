"""A ledger is judged by its contents: what can't be true is set aside, what is plausible is kept, nothing is lost."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ipamd.ledger import Contents, Ledger, LedgerCause, LedgerError, place, schema
from ipamd.pool.model import (
    Attachment,
    AttachmentKey,
    Cooling,
    DropAttachment,
    Intent,
    LearntLimit,
    OwnAddresses,
    Owner,
    PutAttachment,
    PutCooling,
    PutDrained,
    PutIntent,
    PutLimit,
    PutOwn,
)

BASE = 1_700_000_000.0


def attachment(number: int) -> Attachment:
    owner = Owner(f"/run/netns/p{number}", f"web-{number}", "shop", f"u-{number}")
    return Attachment(AttachmentKey("pods", f"c{number}", "eth0"), f"10.0.0.{number}", "eni-1", BASE + number, owner)


ATTACHMENTS = tuple(attachment(number) for number in range(1, 5))
INTENT = Intent("t-1", "CreateNetworkInterface", BASE, subnet_id="subnet-1", count=9)
OWN = OwnAddresses("eni-1", tuple(f"10.0.0.{n}" for n in range(1, 10)), ("10.0.0.77",))
LIMIT = LearntLimit(2, BASE)
FULL = Contents(ATTACHMENTS, (Cooling("10.0.0.8", BASE),), (INTENT,), (OWN,), LIMIT, BASE)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Of a ledger that has a record of every kind."""
    file = tmp_path / "ledger.db"
    ledger = Ledger.open(file)
    ledger.belongs_to("i-1")
    ledger.commit([*map(PutAttachment, ATTACHMENTS), PutCooling(FULL.cooling[0]), PutIntent(INTENT)])
    ledger.commit([PutOwn(OWN), PutLimit(LIMIT), PutDrained(BASE)])
    ledger.close()
    yield file


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def loosen(path: Path) -> None:
    """The same tables without types and constraints, so that a cell can hold anything."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        for name in names:
            connection.execute(f"CREATE TABLE loose AS SELECT * FROM {name}")
            connection.execute(f"DROP TABLE {name}")
            connection.execute(f"ALTER TABLE loose RENAME TO {name}")


def reopened(path: Path) -> Contents:
    ledger = Ledger.open(path)
    try:
        assert same(ledger.contents(), ledger.load()), "what was read is what stands there now"
        return ledger.contents()
    finally:
        ledger.close()


def same(one: Contents, other: Contents) -> bool:
    """Whatever the order."""
    return sorted(map(repr, one.records())) == sorted(map(repr, other.records()))


def keys(contents: Contents) -> set[AttachmentKey]:
    return {each.key for each in contents.attachments}


def without(number: int) -> set[AttachmentKey]:
    return {each.key for each in ATTACHMENTS} - {attachment(number).key}


@pytest.mark.parametrize("table", ["attachments", "cooling", "intents", "own", "learnt_limit", "drained", "boot"])
def test_a_missing_table_costs_no_other(path: Path, table: str) -> None:
    change(path, f"DROP TABLE {table}")
    with capture_logs() as logs:
        kept = reopened(path)
    assert [entry["event"] for entry in logs] == ["ledger.row_rejected", "ledger.set_aside"]
    assert logs[0]["table"] == table and Path(logs[1]["file"]).exists()
    assert set(kept.attachments) == (set() if table == "attachments" else set(ATTACHMENTS))
    assert kept.intents == (() if table == "intents" else (INTENT,))
    assert (kept.drained is None) == (table == "drained")
    with capture_logs() as logs:
        assert reopened(path) == kept
    assert not logs, "the new file is sound"


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE attachments ADD COLUMN further TEXT",
        "ALTER TABLE attachments DROP COLUMN pod_uid",
        "ALTER TABLE cooling RENAME COLUMN released_at TO gone_at",
        "CREATE TABLE theirs (x)",
        "CREATE VIEW theirs AS SELECT 1",
        "CREATE TRIGGER theirs BEFORE INSERT ON attachments BEGIN SELECT RAISE(FAIL, 'no'); END",
        "CREATE INDEX theirs ON attachments (pod_name)",
        "PRAGMA user_version = 1",
        "PRAGMA user_version = 2",
    ],
)
def test_other_tables_than_ours_are_set_aside(path: Path, statement: str) -> None:
    change(path, statement)
    kept = reopened(path)
    assert {each.address for each in kept.attachments} == {each.address for each in ATTACHMENTS}
    ledger = Ledger.open(path)
    assert ledger.set_aside is None
    ledger.commit([PutAttachment(attachment(9))])
    ledger.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("address", "'banana'"),
        ("address", "'10.0.0.01'"),
        ("address", "'10.0.0.1 '"),
        ("address", "''"),
        ("address", "'127.0.0.1'"),
        ("address", "'0.0.0.0'"),
        ("address", "NULL"),
        ("address", "17"),
        ("address", "X'00ff'"),
        ("address", "CAST(X'ff' AS TEXT)"),
        ("container_id", "''"),
        ("container_id", "NULL"),
        ("container_id", "X'31'"),
        ("network", "CAST(X'fffe' AS TEXT)"),
        ("ifname", "NULL"),
    ],
)
def test_a_row_that_can_not_be_true_is_left_out(path: Path, column: str, value: str) -> None:
    loosen(path)
    change(path, f"UPDATE attachments SET {column} = {value} WHERE container_id = 'c2'")
    with capture_logs() as logs:
        kept = reopened(path)
    assert keys(kept) == without(2)
    (named,) = [entry for entry in logs if entry["event"] == "ledger.row_rejected"]
    assert named["table"] == "attachments" and column in named["error"] + named["row"]
    assert (kept.cooling, kept.intents, kept.own, kept.limit) == (FULL.cooling, FULL.intents, FULL.own, FULL.limit)


@pytest.mark.parametrize("column", ["eni_id", "netns", "pod_name", "pod_namespace", "pod_uid"])
@pytest.mark.parametrize("value", ["NULL", "3", "X'00'", "CAST(X'ff' AS TEXT)"])
def test_a_damaged_label_costs_no_pod_its_record(path: Path, column: str, value: str) -> None:
    loosen(path)
    change(path, f"UPDATE attachments SET {column} = {value} WHERE container_id = 'c2'")
    assert keys(reopened(path)) == {each.key for each in ATTACHMENTS}


@pytest.mark.parametrize("value", ["-1.0", "1e300", "9e999", "-9e999", "NULL", "'yesterday'"])
def test_an_impossible_time_is_mended(path: Path, value: str) -> None:
    loosen(path)
    for table, column in (("attachments", "since"), ("cooling", "released_at"), ("drained", "at"), ("intents", "at")):
        change(path, f"UPDATE {table} SET {column} = {value}")
    kept = reopened(path)
    times = [
        *(each.since for each in kept.attachments),
        kept.cooling[0].released_at,
        kept.drained,
        kept.intents[0].at,
    ]
    assert len(times) == 7 and all(time is not None and time > BASE for time in times)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE intents SET action = 'TerminateInstances'",
        "UPDATE intents SET count = -1",
        "UPDATE intents SET count = 1e9",
        "UPDATE intents SET subnet_id = ''",
        "UPDATE intents SET device_index = 'x'",
        "UPDATE intents SET addresses = '10.0.0.1 banana'",
        "UPDATE intents SET token = NULL",
    ],
)
def test_a_call_that_nobody_makes_is_left_out(path: Path, statement: str) -> None:
    loosen(path)
    change(path, statement)
    kept = reopened(path)
    assert kept.intents == () and set(kept.attachments) == set(ATTACHMENTS)


def test_one_address_is_kept_for_its_latest_holder(path: Path) -> None:
    loosen(path)
    change(path, "UPDATE attachments SET address = '10.0.0.2' WHERE container_id = 'c3'")
    assert keys(reopened(path)) == without(2)


def test_a_held_address_does_not_cool(path: Path) -> None:
    change(path, "INSERT INTO cooling VALUES ('10.0.0.1', 5.0)")
    kept = reopened(path)
    assert kept.cooling == FULL.cooling and set(kept.attachments) == set(ATTACHMENTS)


def test_what_is_not_surely_our_address_counts_as_foreign(path: Path) -> None:
    change(path, "UPDATE own SET addresses = '10.0.0.1 10.0.0.77 banana'")
    assert reopened(path).own == (OwnAddresses("eni-1", ("10.0.0.1",), ("10.0.0.77",)),)


def test_only_so_many_files_are_set_aside(path: Path) -> None:
    for number in range(9):
        change(path, f"CREATE TABLE further{number} (x)")
        reopened(path)
    kept = [each for each in path.parent.iterdir() if ".implausible-" in each.name]
    assert len(kept) == place.MOST_SET_ASIDE
    assert set(reopened(path).attachments) == set(ATTACHMENTS)


# Boots, clocks and instances


@pytest.mark.parametrize(
    "statement", ["DELETE FROM boot", "UPDATE boot SET id = ''", "INSERT INTO boot VALUES ('x', '', 1.0)"]
)
def test_records_of_an_unknown_boot_are_kept(path: Path, statement: str) -> None:
    change(path, statement)
    assert set(reopened(path).attachments) == set(ATTACHMENTS)


@pytest.mark.parametrize("step", [-10 * 365 * 86400.0, -3600.0, 3600.0, 10 * 365 * 86400.0])
def test_times_go_with_the_clock(path: Path, step: float) -> None:
    lead = place.clock_lead()
    ledger = Ledger.open(path, lead)
    before = ledger.contents()
    ledger.close()
    ledger = Ledger.open(path, lead + step)
    for old, new in zip(before.attachments, ledger.contents().attachments, strict=True):
        assert new.since - old.since == pytest.approx(step, abs=1e-3)
    assert ledger.contents().cooling[0].released_at == pytest.approx(before.cooling[0].released_at + step, abs=1e-3)
    assert ledger.load() == ledger.contents()
    ledger.close()


def test_another_instances_ledger_is_set_aside(path: Path) -> None:
    ledger = Ledger.open(path)
    ledger.belongs_to("i-1")
    assert ledger.contents() == FULL
    with capture_logs() as logs:
        ledger.belongs_to("i-2")
    assert [entry["event"] for entry in logs] == ["ledger.set_aside"] and "i-1" in logs[0]["error"]
    assert ledger.contents() == ledger.load() == Contents((), (), ())
    ledger.commit([PutAttachment(attachment(1))])
    ledger.close()
    ledger = Ledger.open(path)
    ledger.belongs_to("i-2")
    assert ledger.contents().attachments == (attachment(1),)
    ledger.close()


def test_a_ledger_from_before_there_were_instances_is_adopted(path: Path) -> None:
    change(path, "UPDATE boot SET instance = ''")
    for _ in range(2):
        ledger = Ledger.open(path)
        ledger.belongs_to("i-9")
        assert ledger.contents() == FULL
        ledger.close()


# While it is in use


def deleted(path: Path) -> None:
    path.unlink()


def without_its_log(path: Path) -> None:
    Path(f"{path}-wal").unlink()


def truncated(path: Path) -> None:
    os.truncate(path, 0)


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


def replaced(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    copy.rename(path)


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def without_a_table(path: Path) -> None:
    change(path, "DROP TABLE cooling")


def with_another_holder(path: Path) -> None:
    change(path, "UPDATE attachments SET address = '10.0.0.9' WHERE container_id = 'c3'")


def all_gone(path: Path) -> None:
    shutil.rmtree(path.parent)


HARM = [deleted, without_its_log, truncated, garbage, replaced, a_directory, without_a_table, with_another_holder]
HARM += [all_gone]


@pytest.mark.parametrize("harm", HARM, ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_file_that_breaks_in_use_is_renewed(path: Path, harm: Callable[[Path], None], checkpointed: bool) -> None:
    ledger = Ledger.open(path)
    ledger.commit([PutAttachment(attachment(7))])
    if checkpointed:
        ledger._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    harm(path)
    ledger._connection.execute("PRAGMA shrink_memory")
    with capture_logs() as logs:
        ledger.commit([PutAttachment(attachment(9)), PutCooling(Cooling("10.0.0.10", BASE))])
    assert [entry["event"] for entry in logs] == ["ledger.renewed"]
    assert same(ledger.load(), ledger.contents())
    wanted = {*(each.key for each in ATTACHMENTS), attachment(7).key, attachment(9).key}
    assert keys(ledger.load()) == wanted
    with pytest.raises(LedgerError) as caught:
        Ledger.open(path)
    assert caught.value.cause is LedgerCause.IN_USE, "the lock is kept, or taken anew"
    ledger.close()
    assert keys(reopened(path)) == wanted


def test_a_renewed_ledger_survives_a_kill(path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from ipamd.ledger import Ledger
from ipamd.pool.model import Cooling, PutCooling
path = Path(sys.argv[1])
ledger = Ledger.open(path)
path.unlink()
ledger.commit([PutCooling(Cooling("10.0.0.11", 1.0))])
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script, str(path)], check=False, capture_output=True)
    kept = reopened(path)
    assert set(kept.attachments) == set(ATTACHMENTS) and len(kept.cooling) == 2


# No room


def full(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> None:
        raise LedgerError(LedgerCause.FULL, ledger.path, "database or disk is full")

    monkeypatch.setattr(ledger, "_write", refuse)


def test_a_release_without_room_survives_a_kill(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger.open(path)
    full(ledger, monkeypatch)
    records = [DropAttachment(attachment(2).key), PutCooling(Cooling("10.0.0.2", BASE + 100))]
    with pytest.raises(LedgerError):
        ledger.commit(records)
    assert ledger.owe(records)
    more = [*records, DropAttachment(attachment(3).key)]
    assert ledger.owe(more) and ledger.owe(more), "each once"
    ledger._connection.close()  # as a kill does, and nothing else
    os.close(ledger._lock)
    kept = reopened(path)
    assert keys(kept) == without(2) - {attachment(3).key}
    assert Cooling("10.0.0.2", BASE + 100) in kept.cooling
    assert same(reopened(path), kept)


def test_what_was_owed_and_recorded_is_not_applied_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger.open(path)
    records = [DropAttachment(attachment(2).key), PutCooling(Cooling("10.0.0.2", BASE + 100))]
    assert ledger.owe(records)
    monkeypatch.setattr(ledger._owed, "clear", lambda: None)  # killed right after the commit
    later = Attachment(attachment(2).key, "10.0.0.2", "eni-1", BASE + 200)
    ledger.commit([*records, PutAttachment(later)])
    ledger._connection.close()
    os.close(ledger._lock)
    assert later in reopened(path).attachments


def test_more_releases_than_fit_are_refused(path: Path) -> None:
    ledger = Ledger.open(path)
    many = [
        Attachment(AttachmentKey("pods", f"{n:064}", "eth0"), f"10.1.{n // 250}.{n % 250 + 1}", "eni-1", BASE)
        for n in range(2000)
    ]
    ledger.commit([PutAttachment(each) for each in many])
    records = [DropAttachment(each.key) for each in many]
    assert ledger.owe(records[:740]), "all pods of the largest node"
    assert not ledger.owe(records)
    ledger.commit(())
    assert ledger.owe(records[:740]), "a commit makes room"
    ledger.close()


def test_a_reserve_that_somebody_removed_keeps_nothing(path: Path) -> None:
    ledger = Ledger.open(path)
    Path(f"{path}.owed").unlink()
    assert not ledger.owe([DropAttachment(attachment(2).key)])
    path.unlink()
    ledger.commit(())
    assert ledger.owe([DropAttachment(attachment(2).key)]), "it is made again with the ledger"
    ledger._connection.close()
    os.close(ledger._lock)
    assert keys(reopened(path)) == without(2)


@pytest.mark.parametrize("cut", [1, 20, 40])
def test_a_line_that_was_cut_off_was_not_answered(path: Path, cut: int) -> None:
    ledger = Ledger.open(path)
    assert ledger.owe([DropAttachment(attachment(2).key)])
    assert ledger.owe([DropAttachment(attachment(2).key), DropAttachment(attachment(3).key)])
    end = ledger._owed._end
    ledger._connection.close()
    os.close(ledger._lock)
    with Path(f"{path}.owed").open("r+b") as file:
        file.seek(end - cut)
        file.write(b"\0" * cut)
    assert keys(reopened(path)) == without(2)


def test_the_newest_version_is_what_is_written(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert schema.is_sound(connection, schema.VERSION)
        assert connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)


@pytest.mark.parametrize("offset", [18, 19])
@pytest.mark.parametrize("value", [0, 3, 255])
def test_a_file_in_a_format_to_come_is_set_aside(path: Path, offset: int, value: int) -> None:
    """SQLite only reads a file whose write version it does not know, and does not read one of such a read version."""
    change(path, "PRAGMA journal_mode = DELETE")
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes([value]))
    ledger = Ledger.open(path)
    ledger.commit([PutAttachment(attachment(9))])
    ledger.close()
    assert attachment(9) in reopened(path).attachments
