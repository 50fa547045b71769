"""Every command in README.md and docs/ is run as it stands there, on a node of the VPC in a box, or is in the list
of those that can't be, with the reason. A command that is in neither way known fails this test."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import botocore.session
import pytest
import yaml

from ipamd.api.v1 import ipam_pb2
from tests.netns.boxed import Daemon, box, cni_call
from tests.unit.test_config_vpc_cni import DAEMON_SET

pytestmark = pytest.mark.netns

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

# By their beginning, and who shows them instead.
ELSEWHERE = {
    "make ": "CI itself, and tests/e2e/test_e2e_demo.py",
    "python3 -m cni_shim.static.build": "tests/executable.py builds it for many tests",
    "apt-get ": "changes the host's packages",
    "python3 -m venv": "tests/unit/test_install.py installs a wheel",
    "pip install": "tests/unit/test_install.py installs a wheel",
    "ipamd install": "tests/e2e/test_e2e_systemd.py",
    "ipamd uninstall": "tests/e2e/test_e2e_systemd.py",
    "ipamd demo": "tests/e2e/test_e2e_demo.py",
    "ipamd simulate vpc": "tests/netns/test_simulate_vpc.py: it runs until it is stopped",
    "ipamd simulate enter": "tests/netns/test_machines.py",
    "ipamd run": "every test with a daemon",
    "systemctl ": "tests/e2e/test_e2e_systemd.py",
    "systemd-analyze ": "tests/e2e/test_e2e_systemd.py",
    "journalctl ": "tests/e2e/test_e2e_systemd.py: a journal needs a booted systemd",
    "install -m 755 deploy/kubernetes/kubectl-ipamd": "tests/unit/test_kubectl_ipamd.py copies and runs it",
    ".venv/bin/python -m tests.kubernetes.conformance": "tests/kubernetes/test_conformance.py",
    "kubectl ipamd ": "tests/unit/test_kubectl_ipamd.py",
    "sed ": "what it makes goes to kubectl",
    "kubectl ": "needs a cluster; manifests: tests/unit/test_kubernetes.py",
    "podman ": "needs a registry; deploy/image/check.py runs the image (make image-check)",
    "usermod ": "changes the host's users",
    "groupadd ": "changes the host's users",
}

# Those that run until a signal, and those that ask.
UNTIL_STOPPED = re.compile(r"^ipamctl (events .*(-f|--record)|top)\b")
ASKS = re.compile(r"^ipamctl (release|collect|drain|undrain)\b")

INTERRUPTED = 128 + signal.SIGINT

# done, a mismatch or a finding, something calls for attention
LAWFUL = (0, 1, 3)


def commands() -> Iterator[tuple[str, str]]:
    """(page, command) of each line with a prompt in a console block; comments cut off, continued lines joined."""
    for page in PAGES:
        for block in re.findall(r"^ *```console\n(.*?)^ *```", page.read_text(), re.S | re.M):
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                if match := re.match(r"\s*[#$] (\S.*)", line):
                    command = re.sub(r"\s{2,}# .*", "", match[1]).strip().replace("/opt/ipamd/bin/", "")
                    yield page.name, command


def aws_problem(command: str) -> str:
    """What EC2's or IAM's model in botocore does not know of a line for the AWS CLI; empty if all is known."""
    _, service, operation, *words = shlex.split(command)
    model = botocore.session.get_session().get_service_model(service)
    names = {re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower(): name for name in model.operation_names}
    if operation not in names:
        return f"{service} has no {operation}"
    shape = model.operation_model(names[operation]).input_shape
    known = {re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower() for name in (shape.members if shape else {})}
    general = {"region", "output", "query", "profile"}
    unknown = [word for word in words if word.startswith("--") and word[2:] not in known | general]
    return f"{operation} has no {', '.join(unknown)}" if unknown else ""


def wrapper(file: Path, *command: object) -> None:
    file.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, command))} "$@"\n')
    file.chmod(0o755)


async def shell(line: str, folder: Path, bin_dir: Path) -> tuple[int, str, str]:
    path = f"{bin_dir}:{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "TERM": "xterm"}
    asking = ASKS.match(line) is not None
    if UNTIL_STOPPED.match(line):
        line = f"timeout --preserve-status -s INT 2 {line}"
    elif asking:  # only at a terminal does it ask
        line = f"script -qec {shlex.quote(line)} /dev/null"
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", line, cwd=folder, env=environ, stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate(b"y\n" if asking else b"")
    finally:
        with suppress(ProcessLookupError):  # as a rule nobody of its group is left
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def test_commands_are_found_and_skipped_ones_have_a_reason() -> None:
    found = list(commands())
    assert len(found) > 30
    for page, command in found:
        first = command.split()[0]
        known = first in ("ipamctl", "ipamd", "aws") or any(command.startswith(begin) for begin in ELSEWHERE)
        assert known or "| ipam" in command, f"{page}: {command}"
    for page, command in found:
        if command.startswith("aws "):
            assert not aws_problem(command), f"{page}: {command}: {aws_problem(command)}"


async def test_every_command_does_what_it_says(tmp_path: Path, prefix: str) -> None:
    bin_dir, folder = tmp_path / "bin", tmp_path / "here"
    bin_dir.mkdir()
    folder.mkdir()
    async with box(tmp_path / "box", prefix, POOL_COOLDOWN=1) as (daemon, _):
        await daemon.ready()
        await daemon.settled(free=5)
        inside = ("ip", "netns", "exec", daemon.node.netns, sys.executable, "-m")
        wrapper(bin_dir / "ipamctl", *inside, "ipamd.ctl", "--socket", daemon.node.socket)
        wrapper(bin_dir / "ipamd", *inside, "ipamd")
        (folder / "aws-node.yaml").write_text(yaml.safe_dump(DAEMON_SET))
        (bin_dir / "kubectl").write_text(f"#!/bin/sh\ncat {folder / 'aws-node.yaml'}\n")
        (bin_dir / "kubectl").chmod(0o755)
        failures = []
        for page, command in dict.fromkeys(commands()):
            elsewhere = any(command.startswith(begin) for begin in ELSEWHERE) and "| ipam" not in command
            if elsewhere or command.startswith("aws "):
                continue
            command = command.replace("10.0.0.5", await stage(daemon))
            code, out, err = await shell(command, folder, bin_dir)
            if UNTIL_STOPPED.match(command) and code == INTERRUPTED:
                code = 0
            silent = not out and ">" not in command and not command.startswith("ipamctl events")
            if code not in LAWFUL or "usage:" in err or "Traceback" in err or (silent and "| grep" not in command):
                failures.append(f"{page}: {command}\n  exit code {code}\n{out[-500:]}\n{err[-500:]}")
        assert not failures, "\n".join(failures)


async def stage(daemon: Daemon) -> str:
    """What the pages speak of is there: a pod that waits for nothing, and a container. Returns the pod's address."""
    held = await daemon.held()
    for name in {"web-0", "4f1c9d1f2a6b"} - held.keys():
        call = cni_call(name)
        call.netns = "/proc/self/ns/net"  # one that stays: without a trace in the kernel they are collected
        await daemon.ipam.Allocate(ipam_pb2.AllocateRequest(cni=call), timeout=10)
    return (await daemon.held())["web-0"]
