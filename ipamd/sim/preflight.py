"""What a machine lacks for a VPC in a box, all of it at once: found before anything is built, so that no error of the
clean-up comes in front of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

# Bits of CapEff in proc_pid_status(5), linux/capability.h.
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21}
_CONTAINER = (
    "in a container: docker or podman run --privileged, or at least --cap-add=NET_ADMIN --cap-add=NET_RAW "
    "--cap-add=SYS_ADMIN --security-opt apparmor=unconfined --security-opt seccomp=unconfined, with a writable "
    "/proc/sys (--security-opt systempaths=unconfined)"
)

# Program -> Debian's package of it.
VPC = {"ip": "iproute2", "nft": "nftables", "nsenter": "util-linux", "mount": "mount"}
CONTAINERD = {"containerd": "containerd", "ctr": "containerd", "runc": "runc", "busybox": "busybox-static"}


def lacking(programs: dict[str, str]) -> list[str]:
    """A sentence for each thing that is not there; empty: all is. Runs for some milliseconds, changes nothing."""
    if os.geteuid() != 0:
        return ["Network namespaces need root: run it as root (sudo)."]
    return [*_programs(programs), *_rights(), *_kernel()]


def _programs(programs: dict[str, str]) -> Iterator[str]:
    missing = {program: package for program, package in programs.items() if shutil.which(program) is None}
    if missing:
        packages = " ".join(dict.fromkeys(missing.values()))
        yield f"Programs are missing: {', '.join(missing)}. On Debian or Ubuntu: apt-get install {packages}"


def _rights() -> Iterator[str]:
    held = _effective()
    missing = [name for name, bit in _CAPABILITIES.items() if not held >> bit & 1]
    if missing:
        yield f"Root lacks {', '.join(missing)}: {_CONTAINER}"
        return
    if refused := _fails(["unshare", "--net", "--mount", "--propagation", "slave", "true"]):
        yield f"The kernel lets nobody make a network namespace here ({refused}): {_CONTAINER}"
    elif os.statvfs("/proc/sys").f_flag & os.ST_RDONLY:
        yield f"/proc/sys is read-only: {_CONTAINER}"


def _kernel() -> Iterator[str]:
    if not Path("/proc/net/if_inet6").exists():
        yield "The kernel has no IPv6, which the fabric needs: boot without ipv6.disable=1."
    if shutil.which("nft") and (refused := _fails(["unshare", "--net", "nft", "list", "ruleset"])):
        yield f"nftables can't be used here ({refused}): the kernel needs nf_tables (modprobe nf_tables)"


def _effective() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _fails(command: Sequence[str]) -> str:
    """Why it fails; empty: it does not, or can't be tried."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        return ""
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if not done.returncode:
        return ""
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
