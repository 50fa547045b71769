"""One run at a time for one container's interface, and the last word to DEL.

A runtime that is killed in the middle of an ADD leaves the plugin running; restarted, it sends a DEL which can
arrive while that ADD still works (seen with containerd). A DEL that went through first would release an address that
the ADD then plumbs. So each run locks one byte of a file beside the daemon's socket: the byte whose number is the
interface's. The kernel frees it when its owner ends, however it ends, and no run leaves a file of its own.

A DEL that finds the byte locked changes the interface's mark, a byte at the beginning of the same file. An ADD
compares the mark before and after it plumbs with what it was at its start, and undoes itself if it changed: also an
ADD that was stopped for so long that the DEL did not wait for its end.

Only root can open the file. A name in a namespace that others share, such as that of an abstract socket, can be taken
and used by every process in it.
"""

from errno import EACCES, EAGAIN, EISDIR, ELOOP, ENXIO, EPERM
from posix import (
    F_TLOCK,
    O_CLOEXEC,
    O_CREAT,
    O_NOFOLLOW,
    O_NONBLOCK,
    O_RDWR,
    close,
    fstat,
    geteuid,
    lockf,
    lseek,
    open,
    posix_fallocate,
    pread,
    pwrite,
    rename,
)
from time import monotonic, sleep

from cni_shim.errors import IO_FAILURE, TRY_AGAIN_LATER, CniError

FILE = "turns"

# Bytes that can be locked: every file system takes a position of 32 bits. Two interfaces that share a byte or a mark
# cost a wait or an ADD at worst, which the runtime repeats.
LOCKS = 1 << 32

# Bytes for marks. They are on disk before the first lock: to change one needs no space, so that a DEL can do it when
# the disk is full.
MARKS = 65536

_PAUSE = 0.01  # seconds between attempts

_REGULAR = 0o100000  # the file's type in its mode, inode(7)

# Of `open`: it is others' too, or a symbolic link, a folder or a socket.
_NOT_OURS = (EPERM, ELOOP, EISDIR, ENXIO)


def begin_add(folder: str, host_ifname: str, until: float) -> "Turn":
    """Raises CniError."""
    try:
        turn = Turn(folder, host_ifname)
        taken = turn.take(until)
    except OSError as error:
        raise CniError(
            IO_FAILURE,
            "%s/%s can't be used: %s" % (folder, FILE, error.strerror),
            "the plugin has to run as root, and keeps calls for the same interface apart by this file",
        ) from None
    if not taken:
        raise CniError(
            TRY_AGAIN_LATER,
            "another call for this interface of the container does not end",
            "the runtime runs one call at a time for one container",
        )
    return turn


def begin_del(folder: str, host_ifname: str, until: float) -> None:
    """Tell an ADD that is under way to give up, wait for its end, and keep the next one waiting until this process
    ends. A DEL goes on without that: the release ends an ADD that waits for an address, and where the file can't be
    opened (a read-only or full disk) no ADD begins."""
    try:
        Turn(folder, host_ifname).take(until, overtake=True)
    except OSError:
        pass


class Turn:
    """It lasts as long as the process, or until `close`."""

    def __init__(self, folder: str, host_ifname: str) -> None:
        """Raises OSError when the file can't be used; it is made when it is missing, and so is the folder."""
        self._number = int(host_ifname.removeprefix("ipm"), 16)
        self._descriptor = _open(folder)
        self._mark = self._read_mark()

    def take(self, until: float, overtake: bool = False) -> bool:
        """Wait for the turn. False: another run still had it at `until` (a time of `time.monotonic`). `overtake`:
        tell that run to give up."""
        while True:
            lseek(self._descriptor, self._number % LOCKS, 0)
            try:
                lockf(self._descriptor, F_TLOCK, 1)
                return True
            except OSError as error:
                if error.errno not in (EACCES, EAGAIN):
                    raise
            if overtake:
                overtake = False
                mark = self._read_mark() or b"\0"
                pwrite(self._descriptor, bytes([(mark[0] + 1) % 256]), self._number % MARKS)
            if monotonic() >= until:
                return False
            sleep(_PAUSE)

    def overtaken(self) -> bool:
        """Whether a DEL came for what this run is making."""
        return self._read_mark() != self._mark

    def give_up_if_overtaken(self) -> None:
        """Raises CniError."""
        if self.overtaken():
            raise CniError(
                TRY_AGAIN_LATER,
                "a DEL for this interface of the container came before ADD had ended",
                "the runtime has given this ADD up",
            )

    def close(self) -> None:
        close(self._descriptor)

    def _read_mark(self) -> bytes:
        return pread(self._descriptor, 1, self._number % MARKS)


def _open(folder: str) -> int:
    """What stands in the file's place and is not root's alone is renamed: no run can have locked it, and ADDs would
    fail until somebody looked. Raises OSError."""
    path = "%s/%s" % (folder, FILE)
    try:
        return _open_file(path)
    except FileNotFoundError:  # after a boot the daemon, which makes the folder, may not have run yet
        from cni_shim import spool

        spool.make_folder(folder, 0o755)
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        rename(path, path + ".odd")
    return _open_file(path)


def _open_file(path: str) -> int:
    """Raises OSError."""
    descriptor = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0o600)
    try:
        status = fstat(descriptor)
        if status.st_uid != geteuid() or status.st_mode & ~0o700 != _REGULAR:
            raise PermissionError(EPERM, "it is not root's alone: remove it")
        if status.st_size < MARKS:
            posix_fallocate(descriptor, 0, MARKS)  # changes nothing that is there already
    except OSError:
        close(descriptor)
        raise
    return descriptor
