"""A ledger with any damage: the daemon starts, no running pod's address is free, and what was not hit is kept."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipamd.host.veth import host_link, recovered_key
from ipamd.ledger import Contents, Ledger
from ipamd.pool import events as on
from ipamd.pool.model import (
    AddressState,
    Attachment,
    AttachmentKey,
    Cooling,
    Intent,
    LearntLimit,
    Limits,
    ObservedEni,
    OwnAddresses,
    Owner,
    PutAttachment,
    PutCooling,
    PutIntent,
    PutLimit,
    PutOwn,
    Targets,
)
from ipamd.pool.pool import Pool

NOW = 1_700_001_000.0
SUBNET = IPv4Network("10.0.0.0/16")
ON_ENI = {"eni-0": tuple(f"10.0.0.{n}" for n in range(10, 19)), "eni-1": tuple(f"10.0.1.{n}" for n in range(10, 19))}
KEYS = [AttachmentKey("pods", f"c{n}", "eth0") for n in range(6)]
# One of them was recovered from the kernel before.
KEYS[5] = recovered_key(KEYS[5])
PODS = {
    key: Attachment(
        key, ON_ENI[f"eni-{n % 2}"][n], f"eni-{n % 2}", NOW - 100 - n, Owner(f"/run/netns/{n}", f"web-{n}")
    )
    for n, key in enumerate(KEYS)
}
ENIS = tuple(
    ObservedEni(
        name, f"02:00:00:00:00:0{n}", "subnet-1", f"10.0.{n}.4", addresses, n, f"att-{n}", "attached", True, n == 0
    )
    for n, (name, addresses) in enumerate(ON_ENI.items())
)
ROUTES = tuple((pod.address, key.container_id if not key.network else host_link(key)) for key, pod in PODS.items())

COLUMNS = {
    "attachments": [
        "network",
        "container_id",
        "ifname",
        "address",
        "eni_id",
        "since",
        "netns",
        "pod_name",
        "pod_uid",
    ],
    "cooling": ["address", "released_at"],
    "intents": ["token", "action", "at", "eni_id", "subnet_id", "count", "device_index", "addresses"],
    "own": ["eni_id", "addresses", "others"],
    "learnt_limit": ["only_row", "max_enis", "at"],
    "drained": ["only_row", "at"],
    "boot": ["id", "instance", "clock"],
}
ADDRESSES = [*ON_ENI["eni-0"], *ON_ENI["eni-1"], "10.0.0.4", "192.0.2.1", "banana", "", "0.0.0.0", "fd00::1"]
VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.binary(max_size=20),
    st.sampled_from(ADDRESSES),
    st.sampled_from(["eni-0", "eni-9", "CreateNetworkInterface", "AssignPrivateIpAddresses", "pods", "c1"]),
)


@dataclass(frozen=True)
class Cell:
    table: str
    column: str
    row: int
    value: Any

    def apply(self, connection: sqlite3.Connection) -> None:
        rows = [rowid for (rowid,) in connection.execute(f"SELECT rowid FROM {self.table}")]
        if rows:
            row = rows[self.row % len(rows)]
            connection.execute(f"UPDATE {self.table} SET {self.column} = ? WHERE rowid = ?", (self.value, row))


@dataclass(frozen=True)
class Rows:
    """All of a table twice, or none."""

    table: str
    twice: bool

    def apply(self, connection: sqlite3.Connection) -> None:
        doubled = f"INSERT INTO {self.table} SELECT * FROM {self.table}"
        connection.execute(doubled if self.twice else f"DELETE FROM {self.table}")


@dataclass(frozen=True)
class Shape:
    table: str
    column: str
    statement: str

    def apply(self, connection: sqlite3.Connection) -> None:
        connection.execute(self.statement.format(table=self.table, column=self.column))


STATEMENTS = (
    "DROP TABLE {table}",
    "ALTER TABLE {table} ADD COLUMN further",
    "ALTER TABLE {table} DROP COLUMN {column}",
    "ALTER TABLE {table} RENAME COLUMN {column} TO other",
    "ALTER TABLE {table} RENAME TO other_{table}",
    "CREATE TRIGGER mine_{table} BEFORE INSERT ON {table} BEGIN SELECT RAISE(FAIL, 'no'); END",
    "CREATE VIEW view_{table} AS SELECT * FROM {table}",
    "PRAGMA user_version = 1",
    "PRAGMA user_version = 0",
    "PRAGMA user_version = -1",
    "PRAGMA user_version = 99",
    "PRAGMA application_id = 7",
    "PRAGMA journal_mode = DELETE",
)
TABLE = st.sampled_from(sorted(COLUMNS))
CELL = TABLE.flatmap(
    lambda table: st.builds(Cell, st.just(table), st.sampled_from(COLUMNS[table]), st.integers(0, 5), VALUES)
)
SHAPE = TABLE.flatmap(
    lambda table: st.builds(Shape, st.just(table), st.sampled_from(COLUMNS[table]), st.sampled_from(STATEMENTS))
)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as a daemon leaves it."""
    path = tmp_path_factory.mktemp("real") / "ledger.db"
    ledger = Ledger.open(path)
    ledger.belongs_to("i-1")
    ledger.commit([*map(PutAttachment, PODS.values()), PutCooling(Cooling("10.0.0.18", NOW - 5))])
    ledger.commit([PutOwn(OwnAddresses(eni, addresses)) for eni, addresses in ON_ENI.items()])
    ledger.commit([PutIntent(Intent("t-1", "AssignPrivateIpAddresses", NOW - 1, "eni-0", count=2))])
    ledger.commit([PutIntent(Intent("t-2", "CreateNetworkInterface", NOW - 1, subnet_id="subnet-1", count=9))])
    ledger.commit([PutIntent(Intent("t-3", "DetachNetworkInterface", NOW - 1, "eni-1", addresses=ON_ENI["eni-1"]))])
    ledger.commit([PutLimit(LearntLimit(3, NOW - 50))])
    ledger.close()
    return path


@contextmanager
def copy(real: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copy(real, folder))


def loosen(connection: sqlite3.Connection) -> None:
    """The same tables without types and constraints, so that a cell can hold anything."""
    for table in COLUMNS:
        connection.execute(f"CREATE TABLE loose AS SELECT * FROM {table}")
        connection.execute(f"DROP TABLE {table}")
        connection.execute(f"ALTER TABLE loose RENAME TO {table}")


def started(path: Path) -> Contents:
    """As the daemon does it; and once more, as a restart does, with what the first start recorded."""
    for _ in range(2):
        ledger = Ledger.open(path)
        try:
            ledger.belongs_to("i-1")
            kept = ledger.contents()
            ledger.load()
            pool = Pool(Targets(), Limits(4, 10), ("subnet-1",), Random(0), lambda: "token")
            event = on.Started(
                ENIS, kept.attachments, kept.cooling, kept.intents, ROUTES, own=kept.own, limit=kept.limit,
                drained=kept.drained,
            )  # fmt: skip
            effects = pool.handle(event, NOW).then
            for number in range(20):  # nobody who asks gets what a running pod has
                effects += pool.handle(
                    on.AllocationRequested(
                        f"r{number}", AttachmentKey("pods", f"new{number}", "eth0"), Owner(), NOW + 9
                    ),
                    NOW + number / 1000,
                ).then
            for name in ON_ENI:
                if pool.inventory.enis[name].busy:
                    effects += pool.handle(
                        on.LinkReady(pool.inventory.enis[name].busy, f"eth-{name}", SUBNET), NOW + 1
                    ).then
            granted = {effect.attachment.address for effect in effects if hasattr(effect, "attachment")}
            running = {pod.address for pod in PODS.values()}
            assert not granted & running
            for address in running:
                assert pool.inventory.addresses[address].state is AddressState.ASSIGNED
                assert pool.inventory.attachments[pool.inventory.holders[address]].address == address
            ledger.commit([effect.record for effect in effects if hasattr(effect, "record")])
        finally:
            ledger.close()
    return kept


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cells=st.lists(CELL, min_size=1, max_size=6))
def test_any_cells_value_is_survived(real: Path, cells: list[Cell]) -> None:
    with copy(real) as path:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            loosen(connection)
            for cell in cells:
                cell.apply(connection)
        ledger = Ledger.open(path)
        kept = {each.key: each for each in ledger.contents().attachments}
        ledger.close()
        if not any(cell.table in ("attachments", "boot") for cell in cells):
            assert kept == PODS
        elif len(cells) == 1 and cells[0].table == "attachments":
            same = [
                key for key, each in kept.items() if replace(each, since=0) == replace(PODS.get(key, each), since=0)
            ]
            assert len(same) >= len(PODS) - 2, "the row that was hit, and perhaps the one that it looks like now"
        started(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(damages=st.lists(st.one_of(SHAPE, CELL, st.builds(Rows, TABLE, st.booleans())), min_size=1, max_size=5))
def test_any_change_of_tables_is_survived(real: Path, damages: list[Cell | Rows | Shape]) -> None:
    with copy(real) as path:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            loosen(connection)
            for damage in damages:
                try:
                    damage.apply(connection)
                except sqlite3.Error:
                    continue  # an earlier one took its table away
        started(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(shape=SHAPE)
def test_one_change_of_a_sound_files_tables_is_survived(real: Path, shape: Shape) -> None:
    with copy(real) as path:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            try:
                shape.apply(connection)
            except sqlite3.Error:
                return  # SQLite does not take it: part of a key
        started(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), max_size=8),
    head=st.lists(st.tuples(st.integers(0, 107), st.integers(1, 255)), max_size=2),
    length=st.one_of(st.none(), st.integers(0, 1 << 16)),
)
def test_any_bytes_are_survived(
    real: Path, flips: list[tuple[int, int]], head: list[tuple[int, int]], length: int | None
) -> None:
    with copy(real) as path:
        data = bytearray(path.read_bytes())
        for offset, mask in (*flips, *head):
            data[offset % len(data)] ^= mask
        path.write_bytes(data[:length])
        started(path)
