"""The records in one SQLite file, in WAL mode: one transaction for everything that one turn of the loop decided.

What a commit survives: the death of this process, always. On tmpfs nothing more is asked, since a reboot empties it
and with it every container whose address it holds. On a persistent file system each commit is synced, and the boot
that wrote the records is kept beside them: after a reboot the containers are gone, so their records are dropped. So
is what EC2 refused, since an instance changes its type only while it is stopped. Intents and own addresses stay: what
EC2 was asked to do, and what it assigned, outlives the boot, and so does an operator's wish that the node be empty.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipamd.histogram import MILLISECONDS, Histogram
from ipamd.ledger import place
from ipamd.ledger.error import LedgerError, from_os, from_sqlite, primary_code
from ipamd.pool.model import (
    Attachment,
    AttachmentKey,
    Cooling,
    DropAttachment,
    DropCooling,
    DropDrained,
    DropIntent,
    DropLimit,
    DropOwn,
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
    Record,
)

APPLICATION_ID = 0x69706D64  # "ipmd": whose file it is (sqlite.org/fileformat2.html, section 1.3.18)

# Step i leads from version i to version i + 1, and a new file, of version 0, takes them all. A step that was released
# never changes again.
# UNIQUE on the address is the last line of defence: whatever goes wrong above, one address never has two holders.
_STEPS = (
    (
        """CREATE TABLE attachments (
            network TEXT NOT NULL, container_id TEXT NOT NULL, ifname TEXT NOT NULL,
            address TEXT NOT NULL UNIQUE, eni_id TEXT NOT NULL, since REAL NOT NULL,
            netns TEXT NOT NULL, pod_name TEXT NOT NULL, pod_namespace TEXT NOT NULL, pod_uid TEXT NOT NULL,
            PRIMARY KEY (network, container_id, ifname)) STRICT, WITHOUT ROWID""",
        "CREATE TABLE cooling (address TEXT PRIMARY KEY, released_at REAL NOT NULL) STRICT, WITHOUT ROWID",
        """CREATE TABLE intents (
            token TEXT PRIMARY KEY, action TEXT NOT NULL, at REAL NOT NULL, eni_id TEXT NOT NULL,
            subnet_id TEXT NOT NULL, count INTEGER NOT NULL, device_index INTEGER) STRICT, WITHOUT ROWID""",
        "CREATE TABLE boot (id TEXT NOT NULL) STRICT",
        f"PRAGMA application_id = {APPLICATION_ID}",
    ),
    (
        # All of an ENI's addresses in one text, separated by spaces: they are always written and read together.
        """CREATE TABLE own (
            eni_id TEXT PRIMARY KEY, addresses TEXT NOT NULL, others TEXT NOT NULL) STRICT, WITHOUT ROWID""",
        "ALTER TABLE intents ADD COLUMN addresses TEXT NOT NULL DEFAULT ''",
        """CREATE TABLE learnt_limit (
            only_row INTEGER PRIMARY KEY CHECK (only_row = 1), max_enis INTEGER NOT NULL, at REAL NOT NULL) STRICT""",
    ),
    ("CREATE TABLE drained (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), at REAL NOT NULL) STRICT",),
)
SCHEMA_VERSION = len(_STEPS)

_PUT_ATTACHMENT = """INSERT INTO attachments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (network, container_id, ifname) DO UPDATE SET
    address = excluded.address, eni_id = excluded.eni_id, since = excluded.since, netns = excluded.netns,
    pod_name = excluded.pod_name, pod_namespace = excluded.pod_namespace, pod_uid = excluded.pod_uid"""
_DROP_ATTACHMENT = "DELETE FROM attachments WHERE network = ? AND container_id = ? AND ifname = ?"
_PUT_COOLING = "INSERT OR REPLACE INTO cooling VALUES (?, ?)"
_DROP_COOLING = "DELETE FROM cooling WHERE address = ?"
_PUT_INTENT = "INSERT OR REPLACE INTO intents VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_DROP_INTENT = "DELETE FROM intents WHERE token = ?"
_PUT_OWN = "INSERT OR REPLACE INTO own VALUES (?, ?, ?)"
_DROP_OWN = "DELETE FROM own WHERE eni_id = ?"
_PUT_LIMIT = "INSERT OR REPLACE INTO learnt_limit VALUES (1, ?, ?)"
_DROP_LIMIT = "DELETE FROM learnt_limit"
_PUT_DRAINED = "INSERT OR REPLACE INTO drained VALUES (1, ?)"
_DROP_DRAINED = "DELETE FROM drained"

_TABLES_OF_A_BOOT = ("attachments", "cooling", "learnt_limit", "boot")


@dataclass(frozen=True, slots=True)
class Contents:
    """All records, as a start of the daemon reads them."""

    attachments: tuple[Attachment, ...]
    cooling: tuple[Cooling, ...]
    intents: tuple[Intent, ...]
    own: tuple[OwnAddresses, ...] = ()
    limit: LearntLimit | None = None
    drained: float | None = None


class _Unusable(Exception):
    """The file is no ledger that this version can use; the argument is one word for why."""


class Ledger:
    """An open ledger. `set_aside` is where a damaged or newer file was moved to when this one was opened."""

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: int, set_aside: Path | None) -> None:
        self.path = path
        self.set_aside = set_aside
        self.commit_times = Histogram(MILLISECONDS)
        self._connection = connection
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Open the ledger, or begin a new one where there is none or none that can be used. Raises `LedgerError`."""
        set_aside = None
        lock = None
        try:
            lock = place.lock(path)
            place.create(path)
            try:
                connection = _connect(path)
            except _Unusable as reason:
                set_aside = place.move_aside(path, str(reason))
                place.create(path)
                connection = _connect(path)
        except (OSError, sqlite3.Error, LedgerError) as error:
            if lock is not None:
                os.close(lock)
            if isinstance(error, LedgerError):
                raise
            raise (from_os(error, path) if isinstance(error, OSError) else from_sqlite(error, path)) from error
        return cls(path, connection, lock, set_aside)

    def load(self) -> Contents:
        """Every record. Raises `LedgerError`."""
        execute = self._connection.execute
        try:
            limit = execute("SELECT max_enis, at FROM learnt_limit").fetchone()
            drained = execute("SELECT at FROM drained").fetchone()
            return Contents(
                tuple(map(_attachment, execute("SELECT * FROM attachments"))),
                tuple(Cooling(*row) for row in execute("SELECT * FROM cooling")),
                tuple(map(_intent, execute("SELECT * FROM intents"))),
                tuple(
                    OwnAddresses(eni_id, tuple(own.split()), tuple(others.split()))
                    for eni_id, own, others in execute("SELECT * FROM own")
                ),
                None if limit is None else LearntLimit(*limit),
                None if drained is None else drained[0],
            )
        except sqlite3.Error as error:
            raise from_sqlite(error, self.path) from error

    def commit(self, records: Sequence[Record]) -> None:
        """Record all of them, in this order, or none. Raises `LedgerError`."""
        connection = self._connection
        started = time.monotonic()
        try:
            connection.execute("BEGIN IMMEDIATE")
            for record in records:
                connection.execute(*_statement(record))
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise from_sqlite(error, self.path) from error
        finally:
            # SQLite itself ended the transaction for some errors (sqlite.org/lang_transaction.html, section 3).
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if records:  # none: only a question whether the ledger works
                self.commit_times.observe(time.monotonic() - started)

    def close(self) -> None:
        self._connection.close()
        os.close(self._lock)


def _connect(path: Path) -> sqlite3.Connection:
    """Raises `_Unusable`, `sqlite3.Error` or OSError, and leaves nothing open then."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=1.0)
    try:
        try:
            _check(connection)
        except sqlite3.DatabaseError as error:
            if primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise _Unusable("damaged") from error
            raise
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'NORMAL' if place.in_memory(path.parent) else 'FULL'}")
        _begin_boot(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection) -> None:
    if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise _Unusable("damaged")
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    new = (application, version, tables) == (0, 0, 0)
    if not new and application != APPLICATION_ID:
        raise _Unusable("foreign")
    if not new and not 1 <= version <= SCHEMA_VERSION:
        raise _Unusable(f"version-{version}")
    if version < SCHEMA_VERSION:
        _migrate(connection, version)


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    """Every step from this version on, or none: the number of the version is part of the transaction, too."""
    connection.execute("BEGIN IMMEDIATE")
    for step in _STEPS[version:]:
        for statement in step:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _begin_boot(connection: sqlite3.Connection) -> None:
    """Drop what an earlier boot took along."""
    current = place.boot_id()
    if connection.execute("SELECT id FROM boot").fetchall() == [(current,)]:
        return
    connection.execute("BEGIN IMMEDIATE")
    for table in _TABLES_OF_A_BOOT:
        connection.execute(f"DELETE FROM {table}")
    connection.execute("INSERT INTO boot VALUES (?)", (current,))
    connection.execute("COMMIT")


def _attachment(row: tuple[Any, ...]) -> Attachment:
    network, container_id, ifname, address, eni_id, since, *owner = row
    return Attachment(AttachmentKey(network, container_id, ifname), address, eni_id, since, Owner(*owner))


def _intent(row: tuple[Any, ...]) -> Intent:
    token, action, at, eni_id, subnet_id, count, device_index, addresses = row
    return Intent(token, action, at, eni_id, subnet_id, count, device_index, tuple(addresses.split()))


def _statement(record: Record) -> tuple[str, tuple[Any, ...]]:
    match record:
        case PutAttachment(Attachment(key, address, eni_id, since, owner)):
            place_of = (key.network, key.container_id, key.ifname)
            who = (owner.netns, owner.pod_name, owner.pod_namespace, owner.pod_uid)
            return _PUT_ATTACHMENT, (*place_of, address, eni_id, since, *who)
        case DropAttachment(key):
            return _DROP_ATTACHMENT, (key.network, key.container_id, key.ifname)
        case PutCooling(Cooling(address, released_at)):
            return _PUT_COOLING, (address, released_at)
        case DropCooling(address):
            return _DROP_COOLING, (address,)
        case PutIntent(Intent(token, action, at, eni_id, subnet_id, count, device_index, addresses)):
            return _PUT_INTENT, (token, action, at, eni_id, subnet_id, count, device_index, " ".join(addresses))
        case DropIntent(token):
            return _DROP_INTENT, (token,)
        case PutOwn(OwnAddresses(eni_id, addresses, foreign)):
            return _PUT_OWN, (eni_id, " ".join(addresses), " ".join(foreign))
        case DropOwn(eni_id):
            return _DROP_OWN, (eni_id,)
        case PutLimit(LearntLimit(max_enis, at)):
            return _PUT_LIMIT, (max_enis, at)
        case DropLimit():
            return _DROP_LIMIT, ()
        case PutDrained(at):
            return _PUT_DRAINED, (at,)
        case DropDrained():
            return _DROP_DRAINED, ()
