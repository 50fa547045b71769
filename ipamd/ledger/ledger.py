"""The records in one SQLite file, in WAL mode: one transaction for everything that one turn of the loop decided.

What a commit survives: the death of this process, always. On tmpfs nothing more is asked, since a reboot empties it
and with it every container whose address it holds. On a persistent file system each commit is synced, and the boot
that wrote the records is kept beside them: after a reboot the containers are gone, so their records are dropped. So
is what EC2 refused, since an instance changes its type only while it is stopped. Intents and own addresses stay: what
EC2 was asked to do, and what it assigned, outlives the boot, and so does an operator's wish that the node be empty.
None of it outlives the instance: a disk image takes the file to other machines.

The file is judged by its contents, when it is opened and at each commit. One that can't be used is set aside under
another name; what is plausible in it goes into a new one. One that disappears or breaks while it is in use is written
anew from memory.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from ipamd.ledger import place, rows, schema
from ipamd.ledger.error import LedgerCause, LedgerError, from_os, from_sqlite
from ipamd.ledger.memory import Memory
from ipamd.ledger.owed import Owed, Release
from ipamd.ledger.rows import Boot, Contents, Reading
from ipamd.pool.model import Attachment, Cooling, DropAttachment, PutCooling, Record
from ipamd.telemetry.histogram import MILLISECONDS, Histogram

log = structlog.get_logger("ipamd.ledger")

# Seconds that a commit waits for a process that reads or copies the file. All pods wait with it.
_BUSY = 0.25

# Seconds by which the clock may have been set without the records' times being shifted: a correction, not a step.
_STEP = 1.0

# Pages of the write-ahead log before they are taken over into the database. SQLite's 1000 make 4 MiB, which on tmpfs
# count as the daemon's memory, beside a database of some 40 KiB.
_LOG_PAGES = 128

# Rows that can't be true are named one by one, up to so many: the file that was set aside has them all.
_MOST_NAMED = 50

# Causes that make a file unreadable.
_UNREADABLE = (LedgerCause.DAMAGED, LedgerCause.CONFLICT)

# Causes that a new file cures, if the file system takes one.
_MENDED_BY_A_NEW_FILE = (LedgerCause.DAMAGED, LedgerCause.GONE, LedgerCause.IO, LedgerCause.CONFLICT)


_Identity = tuple[int, int, int] | None


class _Unusable(Exception):
    """The file is no ledger that this version can use; the argument is one word for why."""


@dataclass(slots=True)
class _Opened:
    """`set_aside`: where the file was moved to, if it could not be used as it was."""

    connection: sqlite3.Connection
    reading: Reading
    set_aside: Path | None = None


class Ledger:
    """An open ledger. `set_aside` is where a file that could not be used was moved to when this one was opened."""

    def __init__(self, path: Path, opened: _Opened, lock: int, owed: Owed) -> None:
        self.path = path
        self.set_aside = opened.set_aside
        self.commit_times = Histogram(MILLISECONDS)
        self._connection = opened.connection
        self._boot = opened.reading.boot
        self._memory = Memory(opened.reading.contents)
        self._lock = lock
        self._owed = owed
        self._names = (str(path), f"{path}-wal")
        self._seen = _seen(self._names)

    @classmethod
    def open(cls, path: Path, clock_lead: float | None = None) -> Ledger:
        """Open the ledger, or begin a new one where there is none or none that can be used. `clock_lead` is that of
        the clock whose times are recorded (`place.clock_lead`). Raises `LedgerError`."""
        boot = Boot(place.boot_id(), "", place.clock_lead() if clock_lead is None else clock_lead)
        lock = None
        opened = None
        owed = None
        try:
            lock = place.lock(path)
            place.expect_files(path)
            opened = _open_any(path)
            step = _begin_boot(opened, boot)
            owed = Owed(Path(f"{path}.owed"), synced=not place.in_memory(path.parent))
            left = owed.open()
            ledger = cls(path, opened, lock, owed)
            ledger.commit(_released(left, step, ledger.contents().attachments))
            return ledger
        except (OSError, sqlite3.Error, LedgerError) as error:
            if opened is not None:
                opened.connection.close()
            if owed is not None:
                owed.close()
            if lock is not None:
                os.close(lock)
            raise _typed(error, path) from error

    def contents(self) -> Contents:
        """Every record, as it was committed."""
        return self._memory.contents()

    def load(self) -> Contents:
        """Every record, as it stands in the file now. Raises `LedgerError`."""
        try:
            return rows.read(self._connection, time.time()).contents
        except UnicodeError as error:
            raise LedgerError(LedgerCause.DAMAGED, self.path, str(error)) from error
        except sqlite3.Error as error:
            raise from_sqlite(error, self.path) from error

    def belongs_to(self, instance: str) -> None:
        """Called once the instance is known. Records of another instance are set aside: this disk was copied or moved
        from it, and nothing that it held or asked for is here. Raises `LedgerError`."""
        other = self._boot.instance
        if other == instance:
            return
        self._boot = replace(self._boot, instance=instance)
        if other:
            aside = self._renew(Contents((), (), ()), "other-instance")
            why = f"the records are of {other}, and this node is {instance}"
            log.error("ledger.set_aside", path=str(self.path), file=str(aside), error=why, kept=0)
            return
        try:
            _run(self._connection, rows.replace_boot(self._boot))
        except sqlite3.Error as error:
            raise from_sqlite(error, self.path) from error

    def commit(self, records: Sequence[Record]) -> None:
        """Record all of them, in this order, or none. Raises `LedgerError`."""
        started = time.monotonic()
        try:
            try:
                self._write(records)
            except LedgerError as error:
                if error.cause not in _MENDED_BY_A_NEW_FILE or self._memory.contradicted_by(records):
                    raise
                contents = self.contents()
                aside = self._renew(contents, error.cause.value)
                kept = len(contents.attachments)
                log.error("ledger.renewed", path=str(self.path), file=str(aside or ""), error=error.detail, kept=kept)
                self._write(records)
        finally:
            if records:  # no record: this only checks that the ledger works
                self.commit_times.observe(time.monotonic() - started)
        self._memory.apply(records)
        if self._owed.any:
            with suppress(OSError):  # the file repeats what the records say
                self._owed.clear()

    def owe(self, records: Sequence[Record]) -> bool:
        """Keep the releases among records that `commit` refused, beside the ledger, for the next start. Returns False
        if that failed, too."""
        cooling = {each.cooling.address: each.cooling for each in records if isinstance(each, PutCooling)}
        releases = []
        for record in records:
            held = self._memory.attachments.get(record.key) if isinstance(record, DropAttachment) else None
            if held is not None:
                since = cooling.get(held.address)
                releases.append(Release(held.key, held.address, held.since if since is None else since.released_at))
        try:
            if releases:
                self._owed.add(releases)
        except OSError as error:
            log.debug("ledger.not_owed", error=error.strerror)
            return False
        return True

    def close(self) -> None:
        self._connection.close()
        self._owed.close()
        os.close(self._lock)

    def _write(self, records: Iterable[Record]) -> None:
        self._expect_file()
        try:
            _run(self._connection, map(rows.statement, records))
        except sqlite3.Error as error:
            raise from_sqlite(error, self.path) from error

    def _expect_file(self) -> None:
        """SQLite goes on with a file that has no name any more, and nobody would find the records again."""
        found = _seen(self._names)
        if found == self._seen:
            return
        (file, log_file), (file_now, log_now) = self._seen, found
        # The log of writes is cut short when it was taken over into the file.
        if not _same(file, file_now) or not _same(log_file and (*log_file[:2], 0), log_now):
            raise LedgerError(LedgerCause.GONE, self.path, "it was deleted, replaced or cut short while in use")
        self._seen = found

    def _renew(self, contents: Contents, why: str) -> Path | None:
        """Go on in a new file with these contents. Returns where the one before was moved to, if it was there. It is
        as it was if this fails with `LedgerError`."""
        fresh = Reading(contents, self._boot)
        try:
            self._keep_lock()
            aside = _replace_file(self.path, fresh, why)
            # Closed after it was moved: on its way out SQLite removes its companions by their names.
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = _connect_for_use(self.path)
            self._owed.replace()
        except (OSError, sqlite3.Error) as problem:
            raise _typed(problem, self.path) from problem
        self._memory = Memory(contents)
        self._seen = _seen(self._names)
        return aside

    def _keep_lock(self) -> None:
        """Removing the directory, or all in it, removes the lock as well."""
        lock = place.identity(f"{self.path}.lock")
        held = os.fstat(self._lock)
        if lock is None or lock[:2] != (held.st_dev, held.st_ino):
            again = place.lock(self.path)
            os.close(self._lock)
            self._lock = again


def _typed(error: OSError | sqlite3.Error | LedgerError, path: Path) -> LedgerError:
    if isinstance(error, LedgerError):
        return error
    return from_os(error, path) if isinstance(error, OSError) else from_sqlite(error, path)


def _seen(names: tuple[str, str]) -> tuple[_Identity, _Identity]:
    return place.identity(names[0]), place.identity(names[1])


def _same(known: tuple[int, int, int] | None, found: tuple[int, int, int] | None) -> bool:
    """The same file, and no shorter. What was never there may come."""
    return known is None or (found is not None and found[:2] == known[:2] and found[2] >= known[2])


def _open_any(path: Path) -> _Opened:
    """The file at this path, or a new one. Raises OSError, `sqlite3.Error` or `LedgerError`."""
    place.create(path)
    try:
        reading, sound = _examine(path)
    except _Unusable as reason:
        nothing = Reading(Contents((), (), ()), Boot())
        aside = _replace_file(path, nothing, str(reason))
        log.error("ledger.set_aside", path=str(path), file=str(aside), error=str(reason), kept=0)
        return _Opened(_connect_for_use(path), nothing, aside)
    if sound:
        return _Opened(_connect_for_use(path), reading)
    aside = _replace_file(path, reading, "implausible")
    for row in reading.rejected[:_MOST_NAMED]:
        log.error("ledger.row_rejected", table=row.table, row=row.row, error=row.why)
    why = f"{len(reading.rejected)} rows can't be true, and {reading.mended} were mended"
    if not reading.rejected and not reading.mended:
        why = "its tables are not as ipamd made them"
    kept = len(reading.contents.attachments)
    log.error("ledger.set_aside", path=str(path), file=str(aside), error=why, kept=kept)
    return _Opened(_connect_for_use(path), reading, aside)


def _examine(path: Path) -> tuple[Reading, bool]:
    """What the file says, and whether it can be used as it is. Raises `_Unusable`, OSError or `sqlite3.Error`."""
    writable = place.writable_format(path)
    with closing(_connect(path)) as connection:
        with _readable(path):
            intact = writable and connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            new = (application, version, tables) == (0, 0, 0)
            if not new and application != schema.APPLICATION_ID:
                raise _Unusable("foreign")
            if not new and not 1 <= version <= schema.VERSION:
                raise _Unusable(f"version-{version}")
            sound = intact and schema.is_sound(connection, version)
        if sound and version < schema.VERSION:
            schema.migrate(connection, version)
        with _readable(path):
            reading = rows.read(connection, time.time())
        return reading, sound and not reading.rejected and not reading.mended


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raises `_Unusable` when it is the file's contents that keep SQLite from reading it."""
    try:
        yield
    except UnicodeError as error:  # a name in the file, or SQLite's message that quotes one
        raise _Unusable("damaged") from error
    except sqlite3.Error as error:
        if from_sqlite(error, path).cause in _UNREADABLE:
            raise _Unusable("damaged") from error
        raise


def _replace_file(path: Path, reading: Reading, why: str) -> Path | None:
    """Put a new file, with all that was read, in the place of what is there, which is set aside. Returns where to.
    Raises OSError or `sqlite3.Error`; what is there has its place then."""
    fresh = path.with_name(f"{path.name}.new")
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    place.remove(fresh)
    place.create(fresh)
    with closing(_connect(fresh)) as connection:
        connection.execute("PRAGMA journal_mode = MEMORY")
        schema.migrate(connection, 0)
        boot = rows.replace_boot(reading.boot) if reading.boot.id else ()
        _run(connection, [*boot, *map(rows.statement, reading.contents.records())])
    persistent = not place.in_memory(path.parent)
    if persistent:
        place.sync(fresh)
    aside = place.move_aside(path, why) if path.exists() or Path(f"{path}-wal").exists() else None
    fresh.rename(path)
    if persistent:
        place.sync(path.parent)
    return aside


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=_BUSY)
    connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    connection.execute("PRAGMA trusted_schema = OFF")  # runs no foreign trigger or view of the file
    return connection


def _connect_for_use(path: Path) -> sqlite3.Connection:
    """To a file that was found good. Raises `sqlite3.Error` or OSError, and leaves nothing open then."""
    connection = _connect(path)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'NORMAL' if place.in_memory(path.parent) else 'FULL'}")
        _bound_log(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _bound_log(connection: sqlite3.Connection) -> None:
    """While somebody reads the file the log grows beyond its bound; the next writer after that cuts it back."""
    (page,) = connection.execute("PRAGMA page_size").fetchone()
    connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {_LOG_PAGES * page}")


def _begin_boot(opened: _Opened, now: Boot) -> float:
    """Drop what an earlier boot took along, and bring what this one left to the clock that is used from now on.
    Returns by how many seconds that was set.

    Times are the monotonic clock's plus a lead that is read once, at a start. So the difference of two leads is how
    far the clock was set in between, exactly, and no age changes by it. Records that do not say which boot they are
    of are kept: pods that are gone are collected, those that are not keep their addresses.
    """
    before, contents = opened.reading.boot, opened.reading.contents
    step = 0.0
    statements: list[rows.Statement] = []
    if before.id and before.id != now.id:
        statements += rows.forget_boot()
        contents = replace(contents, attachments=(), cooling=(), limit=None)
    elif before.clock is not None and now.clock is not None and abs(now.clock - before.clock) > _STEP:
        step = now.clock - before.clock
        statements += rows.shift_times(step)
        contents = _shifted(contents, step)
        log.warning("ledger.clock_stepped", seconds=round(step, 3))
    boot = replace(now, instance=before.instance)
    _run(opened.connection, [*statements, *rows.replace_boot(boot)])
    opened.reading.contents, opened.reading.boot = contents, boot
    return step


def _shifted(contents: Contents, step: float) -> Contents:
    limit = contents.limit
    return replace(
        contents,
        attachments=tuple(replace(each, since=each.since + step) for each in contents.attachments),
        cooling=tuple(replace(each, released_at=each.released_at + step) for each in contents.cooling),
        limit=None if limit is None else replace(limit, at=limit.at + step),
    )


def _released(left: Iterable[Release], step: float, attachments: Iterable[Attachment]) -> list[Record]:
    """What the releases that were owed make of the records."""
    held = {attachment.key: attachment for attachment in attachments}
    records: list[Record] = []
    for release in left:
        attachment, at = held.get(release.key), release.at + step
        if attachment is not None and attachment.address == release.address and attachment.since <= at:
            records += [DropAttachment(release.key), PutCooling(Cooling(release.address, at))]
            log.info("attachment.released", key=str(release.key), ip=release.address, owed=True)
    return records


def _run(connection: sqlite3.Connection, statements: Iterable[rows.Statement]) -> None:
    """All in one transaction. Raises `sqlite3.Error`, and whatever can't be stored raises."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        for text, values in statements:
            connection.execute(text, values)
        connection.execute("COMMIT")
    finally:
        # SQLite itself ended the transaction for some errors (sqlite.org/lang_transaction.html, section 3).
        if connection.in_transaction:
            connection.execute("ROLLBACK")
