"""Whether this node has served pods since its boot, by the daemon's own record: a file beside its socket that holds
the boot's id (random(4)). It is there from the moment that the daemon can do its work, also while there is no daemon;
the daemon takes it away when it finds that it can't.

STATUS is answered from it. A runtime that gets an error reports the node as not ready, and Kubernetes then evicts
what runs there. But running pods need no daemon, so one that restarts, hangs or is gone must not take them down.

Only root can make the record: a file of another user, or one that others may write, does not count. In a folder that
outlives the boot it does not count either, for the id is another one then.
"""

from posix import O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, close, fstat, geteuid, open, read

from cni_shim.names import served_record

BOOT_ID = "/proc/sys/kernel/random/boot_id"

_TYPE, _REGULAR, _WRITABLE_BY_OTHERS = 0o170000, 0o100000, 0o022  # inode(7)


def since_boot(socket: str) -> bool:
    """`socket`: the daemon's. What can't be read is no record."""
    try:
        boot = _content(BOOT_ID, False)
        return len(boot) == 36 and _content(served_record(socket), True) == boot
    except OSError:
        return False


def _content(path: str, private: bool) -> bytes:
    """Without the white space at its end. Raises OSError; empty for what is not as private as asked for."""
    descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
    try:
        if private:
            found = fstat(descriptor)
            plain = found.st_mode & _TYPE == _REGULAR and not found.st_mode & _WRITABLE_BY_OTHERS
            if not plain or found.st_uid != geteuid():
                return b""
        return read(descriptor, 64).strip()
    finally:
        close(descriptor)
