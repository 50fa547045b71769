"""What a daemon can tell of other processes that has no power over them, as in its unit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipamd.host.culprit import CLOSED, ENDED, processes_behind

pytestmark = pytest.mark.netns


def powerless(program: str) -> object:
    """What the program prints as JSON, run by root with CAP_NET_ADMIN alone."""
    drop = ("setpriv", "--inh-caps=-all", "--bounding-set=-all,+net_admin", "--no-new-privs")
    run = subprocess.run([*drop, sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return json.loads(run.stdout)


def test_unreadable_process_is_known_by_its_first_socket() -> None:
    """A process with more capabilities than the one that asks: its first netlink socket has its pid for a port."""
    program = "import socket, sys; s = [socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) for _ in range(2)]\n"
    program += "for each in s: each.bind((0, 0)); print(each.getsockname()[0], flush=True)\nsys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdin and other.stdout
    try:
        ports = [int(other.stdout.readline()) for _ in range(2)]
        assert ports[0] == other.pid
        program = "import json; from ipamd.host.culprit import processes_behind as behind\n"
        told = powerless(program + f"print(json.dumps(list(behind({[*ports, 1]}).values())))")
        name = Path(f"/proc/{other.pid}/comm").read_text().strip()
        assert told == [f"{name} (pid {other.pid})", CLOSED, ENDED]
        assert set(processes_behind(ports).values()) == {f"{name} (pid {other.pid})"}
    finally:
        other.stdin.close()
        other.wait()


def test_a_namespace_that_may_not_be_looked_at_is_there() -> None:
    """A runtime may name a pod's network namespace by a process, to which the link leads only who may trace it."""
    own = f"/proc/{os.getpid()}"
    paths = [f"{own}/ns/net", "/run/netns/no-such-pod", f"{own}/comm/net"]
    program = "import json; from ipamd.shell.readings import _is_gone\n"
    assert powerless(program + f"print(json.dumps([_is_gone(path) for path in {paths}]))") == [False, True, True]
