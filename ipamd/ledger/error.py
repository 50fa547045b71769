"""Typed causes of a ledger failure, with the sentence that tells an operator what to do about each.

SQLite reports a result code with each failure (https://www.sqlite.org/rescode.html); the causes here follow from its
low byte, the class. One class is too coarse: no room for the index of the WAL counts as an I/O error.
"""

from __future__ import annotations

import errno
import sqlite3
from enum import StrEnum
from pathlib import Path


class LedgerCause(StrEnum):
    NOT_WRITABLE = "not-writable"  # permission, read-only file system, a directory in the way
    FULL = "full"  # no space left
    IN_USE = "in-use"  # another process holds it
    NO_FILE = "no-file"  # something else has its name or that of its log
    DAMAGED = "damaged"  # the file is malformed, or its tables are not as they were made
    GONE = "gone"  # the file was deleted, replaced or cut short while it is in use
    CONFLICT = "conflict"  # the records contradict what is recorded, such as one address for two containers
    IO = "io"  # the device failed


_REMEDIES = {
    LedgerCause.NOT_WRITABLE: "make its directory writable for the user that runs ipamd, or set ledger.path to a "
    "place that is",
    LedgerCause.FULL: "free space on that file system, or set ledger.path to another one",
    LedgerCause.IN_USE: "another process has locked it (fuser names it): end that one, or, if it is another ipamd, "
    "give this one its own ledger.path",
    LedgerCause.NO_FILE: "remove it, or set ledger.path to a file",
    LedgerCause.DAMAGED: "restart ipamd: it sets the file aside and rebuilds its records from EC2 and the kernel",
    LedgerCause.GONE: "leave the file to ipamd, which writes it anew as soon as it can",
    LedgerCause.CONFLICT: "this is a fault of ipamd itself: please report it with its log",
    LedgerCause.IO: "check the device of that file system (dmesg), or set ledger.path to another one",
}

_BY_SQLITE_CODE = {
    sqlite3.SQLITE_ERROR: LedgerCause.DAMAGED,  # such as a table that is not there: our statements are right
    sqlite3.SQLITE_SCHEMA: LedgerCause.DAMAGED,
    0: LedgerCause.DAMAGED,  # the sqlite3 module could not make sense of what SQLite read
    sqlite3.SQLITE_MISMATCH: LedgerCause.DAMAGED,
    sqlite3.SQLITE_FULL: LedgerCause.FULL,
    sqlite3.SQLITE_READONLY: LedgerCause.NOT_WRITABLE,
    sqlite3.SQLITE_PERM: LedgerCause.NOT_WRITABLE,
    sqlite3.SQLITE_CANTOPEN: LedgerCause.NOT_WRITABLE,
    sqlite3.SQLITE_BUSY: LedgerCause.IN_USE,
    sqlite3.SQLITE_LOCKED: LedgerCause.IN_USE,
    sqlite3.SQLITE_CORRUPT: LedgerCause.DAMAGED,
    sqlite3.SQLITE_NOTADB: LedgerCause.DAMAGED,
    sqlite3.SQLITE_CONSTRAINT: LedgerCause.CONFLICT,
}

_BY_EXTENDED_CODE = {
    sqlite3.SQLITE_IOERR_SHMSIZE: LedgerCause.FULL,
    sqlite3.SQLITE_READONLY_DBMOVED: LedgerCause.GONE,
    sqlite3.SQLITE_IOERR_SHORT_READ: LedgerCause.GONE,
}

_BY_ERRNO = {
    errno.ENOSPC: LedgerCause.FULL,
    errno.EDQUOT: LedgerCause.FULL,
    errno.EIO: LedgerCause.IO,
}


class LedgerError(Exception):
    """The ledger could not do what was asked; nothing was done by half. `detail` is the message without path and
    remedy."""

    def __init__(self, cause: LedgerCause, path: Path, detail: str) -> None:
        super().__init__(f"ledger {path}: {detail}; {_REMEDIES[cause]}")
        self.cause = cause
        self.detail = detail
        self.path = path


def from_sqlite(error: sqlite3.Error, path: Path) -> LedgerError:
    cause = _BY_EXTENDED_CODE.get(_code(error)) or _BY_SQLITE_CODE.get(primary_code(error), LedgerCause.IO)
    return LedgerError(cause, path, str(error))


def from_os(error: OSError, path: Path) -> LedgerError:
    cause = _BY_ERRNO.get(error.errno or 0, LedgerCause.NOT_WRITABLE)
    return LedgerError(cause, path, error.strerror or str(error))


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's result code without the extension; 0 for an error that SQLite itself did not raise."""
    return _code(error) & 0xFF


def _code(error: sqlite3.Error) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code
