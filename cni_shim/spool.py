"""Releases for a daemon that does not answer: one file each, holding the ReleaseRequest that it would have got.

The daemon reads every file whose name does not begin with a dot, when it appears and when the daemon starts. A file
appears whole, by renaming. It is not synced to disk: it speaks of a network namespace, which does not outlive the
machine either. Its name holds when the DEL came, by the clock that all processes of one boot share.
"""

from posix import O_CLOEXEC, O_CREAT, O_EXCL, O_WRONLY, close, getpid, mkdir, open, rename, unlink, write
from time import monotonic_ns


def leave(directory: str, host_ifname: str, request: bytes) -> None:
    """Raises OSError when it can't be written."""
    make_folder(directory, 0o700)
    name = "%s-%d-%d" % (host_ifname, monotonic_ns(), getpid())
    hidden = "%s/.%s" % (directory, name)
    descriptor = open(hidden, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
    try:
        try:
            rest = request
            while rest:
                rest = rest[write(descriptor, rest) :]
        finally:
            close(descriptor)
        rename(hidden, "%s/%s" % (directory, name))
    except OSError:
        unlink(hidden)
        raise


def make_folder(path: str, mode: int) -> None:
    """After a boot /run is empty, and the daemon that makes its folders may never have run. Those above are made for
    everybody to pass through. Raises OSError."""
    try:
        mkdir(path, mode)
    except FileExistsError:
        pass
    except FileNotFoundError:
        parent = path.rstrip("/").rpartition("/")[0]
        if not parent:
            raise
        make_folder(parent, 0o755)
        make_folder(path, mode)
