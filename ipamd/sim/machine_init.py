"""The first process of a machine of the VPC in a box: its mounts, its host name, and its life.

`ipamd.sim.machine` starts this file in new mount, PID, UTS and IPC namespaces, as PID 1. It needs the standard
library alone. It mounts what makes the machine one of its own, prints "up", and then waits. The end of its standard
input, or SIGKILL, is the machine's power cut: the kernel ends a PID namespace with its first process.

Folders of the machine that outlive a boot are bound from the machine's directory. What else is written below /etc,
/opt, /var/lib and /var/log stays in memory, and nothing is written to the real ones. /run is new at each boot.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import uuid
from pathlib import Path

KEPT = (
    "/etc/cni",
    "/etc/containerd",
    "/etc/ipamd",
    "/etc/kubernetes",
    "/opt/cni",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
)
_COVERED = ("/etc", "/opt", "/var/lib", "/var/log")
# What a kubelet would set for the whole machine: it reads here what it wants, and leaves it (setupKernelTunables in
# its pkg/kubelet/cm/container_manager_linux.go).
_SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
}

# <sys/mount.h>
_MS_BIND, _MS_MOVE, _MS_REC, _MS_SLAVE, _MS_SHARED = 0x1000, 0x2000, 0x4000, 1 << 19, 1 << 20
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    directory, name, nameserver = sys.argv[1:]
    # Children that lost their parent are this process's: the kernel reaps them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    kept = os.open(directory, os.O_PATH)  # its path may be hidden by what is mounted here
    # Nothing that is mounted here is seen elsewhere, and what is unmounted elsewhere is not kept here.
    mount("none", "/", flags=_MS_REC | _MS_SLAVE)
    socket.sethostname(name)
    new_run()
    new_sysfs()
    for folder in _COVERED:
        cover(folder)
    for folder in KEPT:
        source = f"/proc/self/fd/{kept}{folder}"
        for made in (source, folder):
            Path(made).mkdir(parents=True, exist_ok=True)
        mount(source, folder, flags=_MS_BIND)
    os.close(kept)
    name_it(name, nameserver)
    for path, value in (_SYSCTLS | {"kernel/random/boot_id": str(uuid.uuid4())}).items():
        replace_sysctl(path, value)
    # Volumes and namespaces that a runtime mounts are seen in containers.
    mount("none", "/", flags=_MS_REC | _MS_SHARED)
    os.chdir("/")
    os.write(sys.stdout.fileno(), b"up\n")
    while os.read(sys.stdin.fileno(), 1):
        pass


def mount(source: str, target: str, kind: str = "none", flags: int = 0, data: str = "") -> None:
    """As mount(2). Raises OSError."""
    if _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot mount {kind} on {target}: {os.strerror(code)}")


def unmount(target: str) -> None:
    """With all that is mounted below. Raises OSError."""
    if _libc.umount2(target.encode(), _MNT_DETACH) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot unmount {target}: {os.strerror(code)}")


def new_run() -> None:
    """What others have mounted below /run is theirs alone: a namespace lives as long as anybody has it mounted."""
    points = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    for point in sorted(points):
        if point.startswith("/run/") and not any(point.startswith(f"{other}/") for other in points - {"/", "/run"}):
            unmount(point)
    mount("tmpfs", "/run", "tmpfs", data="mode=755")
    for folder in ("/run/lock", "/run/netns", "/run/.machine"):
        Path(folder).mkdir()


def new_sysfs() -> None:
    """/sys shows the links of the network namespace in which it was mounted. The control groups stay."""
    new = "/run/.machine/sysfs"
    Path(new).mkdir()
    mount("sysfs", new, "sysfs")
    mount("/sys/fs/cgroup", f"{new}/fs/cgroup", flags=_MS_BIND | _MS_REC)
    unmount("/sys")
    mount(new, "/sys", flags=_MS_MOVE)


def cover(folder: str) -> None:
    """The folder as it is, with all changes in memory."""
    layers = {layer: f"/run/.machine{folder}/{layer}" for layer in ("upper", "work")}
    for layer in layers.values():
        Path(layer).mkdir(parents=True)
    data = f"lowerdir={folder},upperdir={layers['upper']},workdir={layers['work']}"
    mount("overlay", folder, "overlay", data=data)


def name_it(name: str, nameserver: str) -> None:
    texts = {
        "hostname": f"{name}\n",
        "hosts": f"127.0.0.1 localhost\n127.0.1.1 {name}\n",
        "machine-id": f"{uuid.uuid5(uuid.NAMESPACE_DNS, name).hex}\n",
        "resolv.conf": f"nameserver {nameserver}\n",
    }
    for file, text in texts.items():
        path = Path("/etc", file)
        path.unlink(missing_ok=True)  # it may be a link to somewhere else
        path.write_text(text)


def replace_sysctl(path: str, value: str) -> None:
    own = Path("/run/.machine/sys", path)
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text(f"{value}\n")
    mount(str(own), f"/proc/sys/{path}", flags=_MS_BIND)


if __name__ == "__main__":
    main()
