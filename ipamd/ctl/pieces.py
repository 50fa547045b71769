"""The pieces of a support bundle: name in it -> a function that returns the content or raises any exception."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sqlite3
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ipamd
from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.api.v1.introspection_pb2_grpc import IntrospectionStub
from ipamd.ctl import audit, explain, lists, status
from ipamd.ctl.connection import TIMEOUT, introspection
from ipamd.ctl.event import datum
from ipamd.ctl.redaction import REMOVED
from ipamd.neighbours.peer import listener
from ipamd.settings import DEFAULT_PATH, Settings

# Seconds for one command or call: a user waits, and a hang is a finding, too.
_PATIENCE = 20.0
_UNIT = "ipamd.service"
_EVENTS = 100_000

COMMANDS = {
    "kernel/links.txt": ("ip", "-details", "-statistics", "link"),
    "kernel/addresses.txt": ("ip", "address"),
    "kernel/neighbours.txt": ("ip", "neighbour"),
    "kernel/rules.txt": ("ip", "-4", "rule"),
    "kernel/rules6.txt": ("ip", "-6", "rule"),
    "kernel/routes.txt": ("ip", "-4", "route", "show", "table", "all"),
    "kernel/routes6.txt": ("ip", "-6", "route", "show", "table", "all"),
    "kernel/nftables.txt": ("nft", "list", "ruleset"),
    "systemd/journal.txt": (
        "journalctl", f"--unit={_UNIT}", "--lines=20000", "--no-pager", "--output=short-iso-precise",
    ),
    "systemd/unit.txt": ("systemctl", "show", "--no-pager", _UNIT),
    "systemd/unit-files.txt": ("systemctl", "cat", "--no-pager", _UNIT),
}  # fmt: skip
# Below /proc/sys, with wildcards.
SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/*/rp_filter",
    "net/ipv4/conf/*/forwarding",
    "net/ipv4/conf/*/proxy_arp",
    "net/ipv4/conf/*/src_valid_mark",
    "net/ipv4/neigh/default/gc_thresh*",
    "net/ipv6/conf/*/forwarding",
    "net/ipv6/conf/*/disable_ipv6",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
)
# Files in a CNI directory that are configurations; others, such as a plugin's kubeconfig, hold secrets.
_CNI_SUFFIXES = (".conf", ".conflist", ".json")
# The variables of a process that ipamd, the AWS SDK, gRPC and HTTP clients read. Settings that hold tags are left out
# as a whole.
_VARIABLES = ("IPAMD_", "AWS_", "GRPC_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy")
_TAGS = "IPAMD_EC2_TAGS"

Pieces = Iterator[tuple[str, Callable[[], bytes]]]


def pieces(at: Path, config: Path | None, settings: Settings) -> Pieces:
    """`at` is the daemon's socket, `config` its file if it was named."""
    yield from _daemon(at)
    for name, command in COMMANDS.items():
        yield name, lambda command=command: _output(command)  # type: ignore[misc]
    yield "kernel/sysctls.txt", _sysctls
    yield "versions.txt", _versions
    yield "config.toml", lambda: _config(config)
    yield "environment.txt", lambda: _environment(Path("/proc/self/environ"))
    yield "daemon/process.txt", lambda: _process(at)
    yield "doctor.json", lambda: _doctor(settings)
    yield "ledger.db", lambda: _ledger(settings.ledger.path)
    yield from _cni(settings)


def _daemon(at: Path) -> Pieces:
    def asked(question: Callable[[IntrospectionStub], Any]) -> Callable[[], bytes]:
        def ask() -> bytes:
            with introspection(at) as stub:
                return _json(question(stub))

        return ask

    yield "daemon/status.json", asked(_status)
    for name, listing in lists.LISTINGS.items():
        if name != "config":
            yield f"daemon/{name}.json", asked(listing.data)
    yield "daemon/settings.json", asked(_settings)
    yield "daemon/explain-pool.json", asked(_explained)
    yield "daemon/events.json", asked(_events)
    yield "daemon/audit.json", asked(lambda stub: audit.data(stub.Audit(pb.AuditRequest(), timeout=_PATIENCE)))


def _status(stub: IntrospectionStub) -> dict[str, Any]:
    node = stub.GetNode(pb.GetNodeRequest(), timeout=TIMEOUT)
    waiting = stub.ListWaiting(pb.ListWaitingRequest(), timeout=TIMEOUT).waiting
    return status.data(node, waiting, time.time())


def _settings(stub: IntrospectionStub) -> list[lists.Record]:
    found = lists.CONFIG.data(stub)
    for setting in found:
        if setting["key"] == "ec2.tags":
            setting["value"] = dict.fromkeys(setting["value"], REMOVED)
    return found


def _explained(stub: IntrospectionStub) -> dict[str, object]:
    return explain.data(stub.Explain(pb.ExplainRequest(pool=pb.PoolSubject()), timeout=TIMEOUT))


def _events(stub: IntrospectionStub) -> list[dict[str, Any]]:
    return [datum(event) for event in stub.WatchEvents(pb.WatchEventsRequest(last=_EVENTS), timeout=_PATIENCE)]


def _output(command: tuple[str, ...]) -> bytes:
    """The output of a command. Raises OSError, `subprocess.SubprocessError`."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, env={**os.environ, "LC_ALL": "C"}
    )
    if done.returncode and not done.stdout:
        raise OSError(f"{command[0]} ended with {done.returncode}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout + done.stderr


def _sysctls() -> bytes:
    root, lines = Path("/proc/sys"), []
    for pattern in SYSCTLS:
        for file in sorted(root.glob(pattern)):
            lines.append(f"{file.relative_to(root)} = {file.read_text().strip()}\n")
    return "".join(lines).encode()


def _versions() -> bytes:
    def first(*command: str) -> str:
        try:
            return _output(command).decode(errors="replace").splitlines()[0]
        except (OSError, subprocess.SubprocessError, IndexError) as error:
            return f"{command[0]}: {error}"

    release = platform.freedesktop_os_release().get("PRETTY_NAME", "?")
    packages = sorted(f"{each.name} {each.version}" for each in importlib.metadata.distributions())
    lines = [
        f"ipamd {ipamd.__version__}",
        f"Python {platform.python_version()}",
        f"{platform.system()} {platform.release()} {platform.version()} {platform.machine()}",
        release,
        first("ip", "-Version"),
        first("nft", "--version"),
        first("systemctl", "--version"),
        "",
        *packages,
    ]
    return "\n".join([*lines, ""]).encode()


def _config(path: Path | None) -> bytes:
    """Raises OSError, and `tomllib.TOMLDecodeError`: the tags can't be found in a file that is no TOML."""
    text = (path or DEFAULT_PATH).read_text()
    tags = tomllib.loads(text).get("ec2", {}).get("tags", {})
    for value in tags.values() if isinstance(tags, dict) else [tags]:
        for quote in "\"'":
            text = text.replace(f"{quote}{value}{quote}", f"{quote}{REMOVED}{quote}")
    return text.encode()


def _environment(file: Path) -> bytes:
    """In the form of /proc/PID/environ, see proc(5)."""
    lines = []
    for variable in file.read_bytes().decode(errors="replace").split("\0"):
        name, _, value = variable.partition("=")
        if name.startswith(_VARIABLES):
            lines.append(f"{name}={REMOVED if name == _TAGS else value}\n")
    return "".join(sorted(lines)).encode()


def _process(at: Path) -> bytes:
    """State and environment of the process that listens at the socket."""
    pid = listener(at)
    if not pid:
        raise OSError("nobody listens there" if pid is None else "its process is in another PID namespace")
    proc = Path(f"/proc/{pid}")
    parts = [(proc / name).read_bytes() for name in ("status", "limits")]
    return b"\n".join([*parts, _environment(proc / "environ")])


def _doctor(settings: Settings) -> bytes:
    from ipamd.doctor import examine, gather

    return _json([asdict(finding) for finding in examine(gather(settings))])


def _ledger(path: Path) -> bytes:
    """A consistent copy, no matter what the daemon writes meanwhile (sqlite.org/backup.html)."""
    with (
        closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)) as ledger,
        closing(sqlite3.connect(":memory:")) as copy,
    ):
        ledger.backup(copy)
        return copy.serialize()


def _cni(settings: Settings) -> Pieces:
    directory = settings.cni.conf_dir
    if directory is None:
        return
    folders = [str(each) for each in (directory, *settings.cni.bin_dirs) if each.is_dir()]
    yield "cni/files.txt", lambda: _output(("ls", "-lA", *folders))
    if directory.is_dir():
        for file in sorted(directory.iterdir()):
            if file.suffix in _CNI_SUFFIXES:
                yield f"cni/{file.name}", file.read_bytes


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=1) + "\n").encode()
