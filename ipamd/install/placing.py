"""How a file is put in place, whole and in one step, or taken away; and a message that helps if that fails."""

from __future__ import annotations

import os
import shutil
import sysconfig
import tempfile
import time
from pathlib import Path

# Seconds after which a folder for one small file is nobody's any more.
_LEFT_AFTER = 60.0


class InstallError(Exception):
    """The installation can't be done; the message says why and what to do."""


def replace(path: Path, content: bytes, mode: int) -> bool:
    """Replace the file in one step; it is on disk before its name is. False: it was right already, and stays."""
    if _is_right(path, content, mode):
        return False
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        _fill(descriptor, content, mode)
        Path(name).replace(path)
        return True
    except BaseException:
        Path(name).unlink()
        raise


def replace_in_watched(path: Path, content: bytes, mode: int) -> bool:
    """As `replace`, in a folder where a container runtime waits for events of inotify(7).

    containerd reads the folder's files when one of them is written, moved away or deleted, and logs an error when it
    finds none that is whole. It ignores files that are created or moved in. So the file is written in a folder of its
    own, which containerd does not watch, and moved in; when that folder is removed, containerd reads.
    """
    if _is_right(path, content, mode):
        return False
    _remove_left(path)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        new = Path(folder, path.name)
        _fill(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), content, mode)
        new.replace(path)
    return True


def _remove_left(path: Path) -> None:
    """What a writer that was killed has left beside it."""
    for left in path.parent.glob(f".{path.name}-*"):
        if left.is_dir() and time.time() - left.stat().st_mtime > _LEFT_AFTER:
            shutil.rmtree(left, ignore_errors=True)


def _is_right(path: Path, content: bytes, mode: int) -> bool:
    return path.is_file() and path.stat().st_mode & 0o7777 == mode and path.read_bytes() == content


def _fill(descriptor: int, content: bytes, mode: int) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())


def below(root: Path, path: Path) -> Path:
    """A path of the node whose file system is at `root`. Raises InstallError for one that depends on the folder in
    which the command runs."""
    if not path.is_absolute():
        raise InstallError(f"{path}: write the whole path, from / on")
    return root / path.relative_to(path.anchor)


def remove(path: Path) -> bool:
    """False: it was not there. Raises InstallError."""
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise not_writable(path.parent, error) from None
    return True


def not_writable(folder: Path, error: OSError) -> InstallError:
    return InstallError(f"{error.filename or folder}: {error.strerror}; is {folder} writable, and are you root?")


def shipped(in_tree: str, in_wheel: str) -> Path | None:
    """A file of the source tree, or from where the wheel's data files went; None if it is in neither."""
    tree = Path(__file__).resolve().parents[2] / in_tree
    data = Path(sysconfig.get_path("data")) / in_wheel
    return next((path for path in (tree, data) if path.is_file()), None)
