"""Executes plugins and times them: the part of the plugin's benchmark that runs in the node's network namespace.

A process of its own, so that neither the EC2 double nor an event loop takes part in what is timed. It reads what to
run as JSON from standard input, and writes what it measured as JSON to standard output:

    {"cases": [{"name", "argv", "config", "slow"}], "pods": [netns paths], "rounds", "bursts", "daemon": pid,
     "timed": {"argv", "config"}}
    {"alone": [{"round", "case", "ADD": {...}, "DEL": {...}, "gone_ms", "daemon_ms"}],
     "bursts": [the same; per pod, except gone_ms], "parts": [{part: ms}]}

A case that is `slow` takes part in one burst only.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
WARM_UP = 2  # rounds that don't count
POD_LINKS = ("ipm", "veth")  # how ours and ptp's begin
PATIENCE = 10.0  # seconds for a deleted link to go


def main() -> None:
    wanted = json.load(sys.stdin)
    runs = Runs(wanted["cases"], wanted["pods"], wanted["daemon"])
    alone = [row for number in range(wanted["rounds"] + WARM_UP) for row in runs.one_by_one(number)]
    bursts = [row for number in range(wanted["bursts"]) for row in runs.at_once(number)]
    parts = [runs.parts(wanted["timed"]) for _ in range(wanted["rounds"] + WARM_UP)]
    json.dump(
        {"alone": [row for row in alone if row["round"] >= WARM_UP], "bursts": bursts, "parts": parts[WARM_UP:]},
        sys.stdout,
    )


class Runs:
    def __init__(self, cases: list[dict[str, Any]], pods: list[str], daemon: int) -> None:
        self._cases = cases
        self._pods = pods
        self._daemon = daemon

    def one_by_one(self, number: int) -> list[dict[str, Any]]:
        """Each case once, in random order."""
        rows = []
        for case in random.sample(self._cases, len(self._cases)):
            container, before = secrets.token_hex(32), self._daemon_ms()
            row: dict[str, Any] = {"round": number, "case": case["name"]}
            for verb in ("ADD", "DEL"):
                process = Process(case, verb, container, self._pods[0])
                process.wait()
                row[verb] = {"ms": process.ms, "cpu_ms": process.cpu_ms}
            row["gone_ms"] = self._until_gone()
            row["daemon_ms"] = self._daemon_ms() - before
            rows.append(row)
        return rows

    def at_once(self, number: int) -> list[dict[str, Any]]:
        """As many as there are pods, all started before the first has ended. `ms`: until the last has, per pod."""
        rows = []
        cases = [case for case in self._cases if number == 0 or not case["slow"]]
        for case in random.sample(cases, len(cases)):
            containers, before = [secrets.token_hex(32) for _ in self._pods], self._daemon_ms()
            row: dict[str, Any] = {"round": number, "case": case["name"]}
            for verb in ("ADD", "DEL"):
                started = time.perf_counter()
                pairs = zip(containers, self._pods, strict=True)
                processes = [Process(case, verb, container, pod) for container, pod in pairs]
                for process in processes:
                    process.wait()
                row[verb] = {
                    "ms": (time.perf_counter() - started) * 1000 / len(processes),
                    "cpu_ms": sum(process.cpu_ms for process in processes) / len(processes),
                }
            row["gone_ms"] = self._until_gone()
            row["daemon_ms"] = (self._daemon_ms() - before) / len(self._pods)
            rows.append(row)
        return rows

    def parts(self, case: dict[str, Any]) -> dict[str, float]:
        """Milliseconds of each part of one ADD, in order, and in the end of the whole."""
        container = secrets.token_hex(32)
        with tempfile.NamedTemporaryFile() as marks:
            add = Process(case, "ADD", container, self._pods[0], marks.name)
            add.wait()
            pairs = [pair.rpartition("=") for pair in Path(marks.name).read_text().split("\n")]
        Process(case, "DEL", container, self._pods[0], os.devnull).wait()
        self._until_gone()
        found, before = {}, add.started
        for name, _, nanoseconds in pairs:
            found[name], before = (int(nanoseconds) / 1e9 - before) * 1000, int(nanoseconds) / 1e9
        found["exit"] = (add.started - before) * 1000 + add.ms
        return {**found, "the whole": add.ms}

    def _until_gone(self) -> float:
        """Milliseconds until no link of a pod is left."""
        started = time.perf_counter()
        while any(name.startswith(POD_LINKS) for _, name in socket.if_nameindex()):
            if time.perf_counter() - started > PATIENCE:
                sys.exit("links of removed pods stay")
            time.sleep(0.0005)
        return (time.perf_counter() - started) * 1000

    def _daemon_ms(self) -> float:
        """CPU time of the daemon so far (proc(5), /proc/[pid]/task/[tid]/schedstat: nanoseconds)."""
        tasks = Path(f"/proc/{self._daemon}/task").iterdir()
        return sum(map(_nanoseconds, tasks)) / 1e6


def _nanoseconds(task: Path) -> int:
    """Of a thread's CPU time; gRPC's come and go."""
    try:
        return int((task / "schedstat").read_text().split()[0])
    except (FileNotFoundError, ProcessLookupError):
        return 0


class Process:
    """One run of a plugin, from exec to exit. Ends the benchmark when the plugin fails."""

    def __init__(self, case: dict[str, Any], verb: str, container: str, pod: str, errors: str = "") -> None:
        """`errors`: the file for standard error, by default the benchmark's own."""
        self._what = f"{case['argv'][0]} {verb}"
        environment = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": pod,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": case.get("path", ""),
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME={container[:8]}",
            "PATH": PATH,
        }
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, case["config"], os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        ]
        if errors:
            actions.append((os.POSIX_SPAWN_OPEN, 2, errors, os.O_WRONLY, 0))
        self.started = time.monotonic()
        self._pid = os.posix_spawn(case["argv"][0], case["argv"], environment, file_actions=actions)

    def wait(self) -> None:
        _, status, usage = os.wait4(self._pid, 0)
        self.ms = (time.monotonic() - self.started) * 1000
        self.cpu_ms = (usage.ru_utime + usage.ru_stime) * 1000  # with those it waited for: ptp executes host-local
        if status:
            sys.exit(f"{self._what}: exit code {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    main()
