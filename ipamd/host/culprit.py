"""Which process is behind a change of the kernel's tables, as well as that can be told afterwards.

A netlink event carries the port of the socket that asked for the change. While that socket is open,
/proc/net/netlink (netlink(7)) knows its inode, and one process has it among its files. A command such as ip(8) has
ended by then.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ENDED = "a command that has ended, such as ip"
PROC = Path("/proc")


def process_behind(port: int) -> str:
    """Such as "systemd-network (pid 412)"."""
    if port == 0:
        return "the kernel"
    inode = _inode(port)
    if inode is None:
        return ENDED
    link = f"socket:[{inode}]"
    for pid in _likely_first(port):
        if _has(pid, link):
            return named(pid)
    return ENDED


def named(pid: int, name: str = "") -> str:
    """With the name that it has by now, unless it has ended: then with that which it had."""
    try:
        name = (PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        pass
    return f"{name or 'a process that has ended'} (pid {pid})"


def _inode(port: int) -> int | None:
    # sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode: "Pid" is the port, Eth the netlink protocol
    try:
        lines = (PROC / "thread-self/net/netlink").read_text().splitlines()[1:]
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        if len(fields) >= 10 and fields[1] == "0" and fields[2] == str(port):
            return int(fields[9])
    return None


def _likely_first(port: int) -> Iterator[int]:
    """A process's first netlink socket gets its pid for a port."""
    pids = [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]
    if port in pids:
        yield port
    yield from (pid for pid in pids if pid != port)


def _has(pid: int, link: str) -> bool:
    try:
        return any(str(entry.readlink()) == link for entry in (PROC / str(pid) / "fd").iterdir())
    except OSError:
        return False
