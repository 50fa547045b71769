"""What the kubelet tells the scheduler of this node: how many pods it takes, beside how many there are addresses for.

The scheduler knows nothing else of addresses. Where the kubelet takes more pods than that, those beyond are sent here
and wait for others to end.

Read on each `ipamctl status`, so nobody but root may have a say in it: other users' processes, whatever they call
themselves, and files that are not root's, no plain files or too large are passed over.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# The kubelet's own default (KubeletConfiguration v1beta1, maxPods).
DEFAULT_MAX_PODS = 110

# EKS user guide, "Choosing an EC2 instance type": pods of the host's own network that every node has (kube-proxy and
# the network's own) count for a kubelet's max-pods, but take no address.
HOST_NETWORK_PODS = 2

# Bytes: a configuration has some thousand. And of a command line, whose flags may be many.
_LARGEST_FILE, _LARGEST_COMMAND = 1 << 20, 128 << 10


@dataclass(frozen=True, slots=True)
class Kubelet:
    """`origin`: where its limit on pods comes from: a flag, a file, or its default."""

    max_pods: int
    origin: str

    def beyond(self, addresses: int) -> int:
        """How many pods it takes beyond those that have an address or use the host's network."""
        return max(self.max_pods - fitting(addresses), 0)


def fitting(addresses: int, host_network: int = HOST_NETWORK_PODS) -> int:
    """The max-pods of a node with so many addresses for pods."""
    return addresses + host_network


def find(root: Path) -> Kubelet | None:
    """The one that runs on the node whose file system is at `root`; None: none is seen. Raises nothing."""
    for process in (root / "proc").glob("[0-9]*"):
        words = _text(process / "cmdline", _LARGEST_COMMAND).split("\0")
        if Path(words[0]).name == "kubelet" and _of_this_node(process):
            return _limit(words[1:], root)
    return None


def _of_this_node(process: Path) -> bool:
    """A kubelet is root's, and in the node's own network namespace, as this process is: one in another is another
    node's. The owner of the files in /proc does not tell: they are root's for any process that can't be traced."""
    if not (process / "ns").exists():
        return True  # a copy of what stands in /proc
    users = re.search(r"(?m)^Uid:(.*)$", _text(process / "status", _LARGEST_COMMAND))
    try:
        same = (process / "ns/net").stat().st_ino == Path("/proc/self/ns/net").stat().st_ino
    except OSError:
        return False
    return same and users is not None and set(users[1].split()) <= {"0", str(os.geteuid())}


def _limit(flags: list[str], root: Path) -> Kubelet:
    """A flag wins over the files, and of these the last that names it (kubelet --config, --config-dir)."""
    if (value := _flag(flags, "--max-pods")).isdigit():
        return Kubelet(int(value), "--max-pods")
    import yaml  # a tenth of the start of `ipamctl status`, which needs it on a node with a kubelet alone

    found = Kubelet(DEFAULT_MAX_PODS, "its default")
    for name in _files(flags, root):
        try:
            document = yaml.safe_load(_text(root / name.relative_to("/"), _LARGEST_FILE))
        except yaml.YAMLError:
            continue
        if isinstance(document, dict) and isinstance(most := document.get("maxPods"), int):
            found = Kubelet(most, f"maxPods in {name}")
    return found


def _files(flags: list[str], root: Path) -> Iterator[Path]:
    """Relative names are left out: relative to what, nobody knows."""
    if (name := Path(_flag(flags, "--config"))).is_absolute():
        yield name
    if (folder := Path(_flag(flags, "--config-dir"))).is_absolute():
        for path in sorted((root / folder.relative_to("/")).glob("*.conf")):
            yield Path("/") / path.relative_to(root)


def _flag(words: list[str], name: str) -> str:
    """As --name=value or --name value; the last one wins."""
    value = ""
    for index, word in enumerate(words):
        if word.startswith(f"{name}="):
            value = word.partition("=")[2]
        elif word == name and index + 1 < len(words):
            value = words[index + 1]
    return value


def _text(path: Path, largest: int) -> str:
    """What is in a plain file of root's, or of this process's user; else empty. It never waits: O_NONBLOCK is for a
    pipe that stands in the file's place."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return ""
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid()) or status.st_size > largest:
            return ""
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read(largest).decode(errors="replace").rstrip("\n")
    except OSError:
        return ""
    finally:
        os.close(descriptor)
