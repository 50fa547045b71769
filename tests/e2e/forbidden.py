"""Run on a booted machine: tries what the daemon has no business with, and prints as JSON how each try ended.

Outside of the unit all of it is allowed to root; what fails inside is what the unit forbids.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000  # <linux/sched.h>
libc = ctypes.CDLL(None, use_errno=True)


def write(folder: str) -> None:
    file = Path(folder, "ipamd-was-here")
    file.write_text("")
    file.unlink()


def call(name: str, *arguments: object) -> None:
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), name)


def mount() -> None:
    call("mount", b"none", b"/mnt", b"tmpfs", 0, None)
    call("umount", b"/mnt")


def change_owner() -> None:
    file = Path("/run/ipamd/owned")
    file.write_text("")
    try:
        os.chown(file, 65534, 65534)
    finally:
        file.unlink()


def set_uid_bit() -> None:
    file = Path("/run/ipamd/setuid")
    file.write_text("")
    try:
        file.chmod(0o4755)
    finally:
        file.unlink()


def raw_socket(family: int) -> None:
    socket.socket(family, socket.SOCK_RAW, 1).close()


TRIES: dict[str, Callable[[], object]] = {
    "write /usr": lambda: write("/usr"),
    "write /etc": lambda: write("/etc"),
    "write /opt": lambda: write("/opt"),
    "write /var/lib": lambda: write("/var/lib"),
    "read /root": lambda: Path("/root/secret").read_text(),
    "mount": mount,
    "new namespaces": lambda: call("unshare", CLONE_NEWNS | CLONE_NEWNET),
    "chown": change_owner,
    "setuid file": set_uid_bit,
    "become another user": lambda: os.setuid(65534),
    "packet socket": lambda: raw_socket(socket.AF_PACKET),
    "raw socket": lambda: raw_socket(socket.AF_INET),
    "writable code": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close(),
    "look into systemd": lambda: Path("/proc/1/cwd").readlink(),
}


def outcome(attempt: Callable[[], object]) -> str:
    """ "done", or the name of the error. In a process of its own, which ends with the error's number."""
    child = os.fork()
    if child == 0:
        try:
            attempt()
        except OSError as error:
            os._exit(error.errno or 255)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return "done" if code == 0 else errno.errorcode.get(code, str(code))


json.dump({name: outcome(attempt) for name, attempt in TRIES.items()}, sys.stdout)
