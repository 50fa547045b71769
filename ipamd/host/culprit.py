"""Finds the process behind a change of the kernel's tables, as far as it can be found afterwards.

A netlink event carries the port of the socket that asked for the change. While that socket is open,
/proc/net/netlink (netlink(7)) knows its inode, and one process has it among its files. A command such as ip(8) has
ended by then.

The files of processes with more capabilities than ours are shown only to those who may trace them (ptrace(2)), and
the daemon's unit leaves it no power for that. Then the port itself tells: a process's first netlink socket gets its
pid for a port, and further ones a negative number (netlink_autobind in net/netlink/af_netlink.c).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

ENDED = "a command that has ended, such as ip"
CLOSED = "a process that ipamd may not look into"
PROC = Path("/proc")

FIRST_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO in include/linux/proc_ns.h


def processes_behind(ports: Collection[int]) -> dict[int, str]:
    """Such as "systemd-network (pid 412)" for each of these netlink ports.

    Looks through the open files of all processes if need be, which takes a second where there are very many: not for
    an event loop, and not for each event.
    """
    told = {port: "the kernel" if port == 0 else ENDED for port in ports}
    sought = {_socket(inode): port for port, inode in _inodes() if port in told and port != 0}
    closed: set[int] = set()
    for pid in _likely_first(told):
        if not sought:
            break
        try:
            sockets = _sockets(pid)
        except PermissionError:
            closed.add(pid)
            continue
        for link in sockets & sought.keys():
            told[sought.pop(link)] = named(pid)
    # The socket is still there, so the process runs: it is not readable, or in another PID namespace.
    there = {_socket(inode) for _, inode in _inodes()} if sought else set()
    told |= {port: named(port) if port in closed else CLOSED for link, port in sought.items() if link in there}
    return told


def named_by_kernel(pid: int, name: str) -> str:
    """For a pid of the first PID namespace, which a daemon in a container of its own can't look up."""
    if _in_first_pid_namespace():
        return named(pid, name)
    return f"{name or 'a process'} (pid {pid} on the host)"


def named(pid: int, name: str = "") -> str:
    """With its present name, or with its former one if it has ended."""
    try:
        name = (PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        pass
    return f"{name or 'a process that has ended'} (pid {pid})"


def _in_first_pid_namespace() -> bool:
    try:
        return (PROC / "self/ns/pid").stat().st_ino == FIRST_PID_NAMESPACE
    except OSError:
        return False


def _socket(inode: int) -> str:
    """How a file descriptor's link names it."""
    return f"socket:[{inode}]"


def _inodes() -> Iterator[tuple[int, int]]:
    """(port, inode) of every rtnetlink socket in this network namespace."""
    # sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode: "Pid" is the port, Eth the netlink protocol
    try:
        lines = (PROC / "thread-self/net/netlink").read_text().splitlines()[1:]
    except OSError:
        return
    for line in lines:
        fields = line.split()
        if len(fields) >= 10 and fields[1] == "0":
            yield int(fields[2]), int(fields[9])


def _likely_first(ports: Collection[int]) -> Iterator[int]:
    """The first netlink socket of a process has its pid as port."""
    pids = {int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()}
    yield from pids & set(ports)
    yield from pids - set(ports)


def _sockets(pid: int) -> set[str]:
    """Raises PermissionError."""
    try:
        return {str(entry.readlink()) for entry in (PROC / str(pid) / "fd").iterdir()}
    except PermissionError:
        raise
    except OSError:
        return set()
