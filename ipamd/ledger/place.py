"""The file system under the ledger: what kind it is, who holds the file, and how a file is set aside."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import stat
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from ipamd.ledger.error import LedgerCause, LedgerError

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MOUNTS = Path("/proc/self/mountinfo")
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})

# What belongs to a database (sqlite.org/wal.html), itself last.
COMPANIONS = ("-wal", "-shm", "")

MOST_SET_ASIDE = 5


def boot_id() -> str:
    """The kernel's identity of this boot (random(4))."""
    return _BOOT_ID.read_text().strip()


def in_memory(directory: Path) -> bool:
    """Whether a power failure takes the directory's contents with it anyway, so that syncing them is pointless.

    Looks the directory's device up in /proc/self/mountinfo (proc(5): the third field is `major:minor`, the file
    system type follows the lone hyphen). A device that is not listed counts as persistent.
    """
    device = directory.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in _MOUNTS.read_text().splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split(" ", 3)[2] == wanted:
            return source.split(" ", 1)[0] in _IN_MEMORY
    return False


def create(path: Path) -> None:
    """Make the file with mode 0600, which SQLite gives to its companions too. Raises OSError."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def expect_files(path: Path) -> None:
    """SQLite waits for ever for the other end of a pipe, and blames the directory's permissions for the rest. What
    somebody put there may be needed, such as a directory that ledger.path was to name a file of: it is left alone.
    Raises `LedgerError`."""
    for suffix in COMPANIONS:
        name = Path(f"{path}{suffix}")
        try:
            regular = stat.S_ISREG(name.stat().st_mode)
        except FileNotFoundError:
            regular = not name.is_symlink()
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            regular = False
        if not regular:
            raise LedgerError(LedgerCause.NO_FILE, path, f"{name} is no file, and no link to one")


def open_own(path: Path) -> int:
    """A descriptor of a file that is ours alone, which is made when it is missing. What else has its name, such as a
    pipe, a directory or a link, is renamed. Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
    path.rename(f"{path}.odd")
    return os.open(path, flags, 0o600)


def writable_format(path: Path) -> bool:
    """Whether SQLite would write to the file: it only reads one whose write version, byte 18, is newer than it knows
    (sqlite.org/fileformat2.html, section 1.3.3). To be asked before there is a connection: closing any descriptor of
    the file drops the locks of all. Raises OSError."""
    with path.open("rb") as file:
        header = file.read(19)
    return len(header) < 19 or header[18] <= 2


def lock(path: Path) -> int:
    """Make the directory (0755) and keep a second daemon out, while readers remain welcome.

    Returns the descriptor that holds the lock: of a file of its own, because closing any descriptor of the database
    would drop SQLite's own locks on it (fcntl(2), "Record locks"), and because the database may be set aside while
    the lock stays. Raises OSError, and `LedgerError` when another process holds it.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = open_own(Path(f"{path}.lock"))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise LedgerError(LedgerCause.IN_USE, path, "locked by another process") from None
        raise  # such as ENOLCK, of a file system that has no locks
    return descriptor


def clock_lead() -> float:
    """By how many seconds the wall clock is ahead of the monotonic one. It changes when somebody sets the clock."""
    return time.time() - time.monotonic()


def identity(name: str) -> tuple[int, int, int] | None:
    """Device, inode and size; None if there is no such file. Called at each commit."""
    try:
        found = os.stat(name)  # noqa: PTH116 - a third of pathlib's time
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size


def sync(path: Path) -> None:
    """Write a file's contents, or a directory's entries, to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove the database and its companions. Raises OSError."""
    for suffix in COMPANIONS:
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def move_aside(path: Path, why: str) -> Path:
    """Rename the database with its companions, so that SQLite can open it under the new name; the oldest of too many
    such files are removed, so that they never fill the file system. Raises OSError."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    aside = path.with_name(f"{path.name}.{why}-{stamp}")
    for suffix in COMPANIONS:
        companion = Path(f"{path}{suffix}")
        if companion.exists():
            companion.rename(f"{aside}{suffix}")
    kept = sorted(_set_aside(path), key=lambda each: each.name.rpartition("-")[2])
    for old in kept[:-MOST_SET_ASIDE]:
        with suppress(OSError):  # such as a directory that somebody put in the ledger's place
            remove(old)
    return aside


def _set_aside(path: Path) -> list[Path]:
    return [each for each in path.parent.glob(f"{glob.escape(path.name)}.*-*Z") if each.suffix != ".lock"]
