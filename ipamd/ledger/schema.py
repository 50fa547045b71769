"""The tables: how each version of the file came from the one before, and whether a file has the tables it should."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

APPLICATION_ID = 0x69706D64  # "ipmd": whose file it is (sqlite.org/fileformat2.html, section 1.3.18)

# Step i leads from version i to version i + 1, and a new file, of version 0, takes them all. A step that was released
# never changes again.
# UNIQUE on the address is the last line of defence: whatever goes wrong above, one address never has two holders.
STEPS: tuple[tuple[str, ...], ...] = (
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
    (
        # Whose records they are, and by which clock: the wall clock's lead over the monotonic one.
        "ALTER TABLE boot ADD COLUMN instance TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE boot ADD COLUMN clock REAL",
    ),
)
VERSION = len(STEPS)

# What a reboot takes along.
OF_A_BOOT = ("attachments", "cooling", "learnt_limit")


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Every step from this version on, or none: the number of the version is part of the transaction, too."""
    connection.execute("BEGIN IMMEDIATE")
    for step in STEPS[version:]:
        for statement in step:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def is_sound(connection: sqlite3.Connection, version: int) -> bool:
    """Whether the file has the tables of this version, and nothing else."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as model:
        for step in STEPS[:version]:
            for statement in step:
                model.execute(statement)
        return set(_shape(connection)) == set(_shape(model))


def columns(connection: sqlite3.Connection, table: str) -> list[str]:
    """Their names, none when there is no such table. Raises `sqlite3.Error`."""
    found = connection.execute("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?", (table,)).fetchone()
    return [] if found is None else [name for _, name, *_ in connection.execute(f"PRAGMA table_xinfo({table})")]


def _shape(connection: sqlite3.Connection) -> Iterator[tuple[object, ...]]:
    """Whatever makes a difference to our statements, and not how it is spelled."""
    entries = connection.execute("SELECT type, name FROM sqlite_schema").fetchall()
    for kind, name in entries:
        yield kind, name
        if kind == "table":
            quoted = str(name).replace('"', '""')
            yield (name, *(row[4:6] for row in connection.execute(f'PRAGMA table_list("{quoted}")')))
            for column in connection.execute(f'PRAGMA table_xinfo("{quoted}")'):
                yield name, *column
            for _, index, unique, origin, partial in connection.execute(f'PRAGMA index_list("{quoted}")'):
                yield name, index, unique, origin, partial
