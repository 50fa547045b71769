"""Executes the plugin on several nodes in turns and times it: the part of the policy agent's benchmark that runs in a
process of its own, so that neither the EC2 double nor an event loop takes part in what is timed.

It reads {"cases": [{"name", "argv", "config", "netns", "pod"}], "rounds"} as JSON from standard input, and writes
[{"round", "case", "ADD": milliseconds, "DEL": milliseconds}] to standard output.
"""

from __future__ import annotations

import json
import random
import secrets
import sys
from typing import Any

from plugin_runs import WARM_UP, Process

from ipamd.sim import netns


def main() -> None:
    wanted = json.load(sys.stdin)
    rows = [
        {"round": number, **run(case)}
        for number in range(wanted["rounds"] + WARM_UP)
        for case in random.sample(wanted["cases"], len(wanted["cases"]))
    ]
    json.dump([row for row in rows if row["round"] >= WARM_UP], sys.stdout)


def run(case: dict[str, Any]) -> dict[str, Any]:
    container = secrets.token_hex(32)
    row: dict[str, Any] = {"case": case["name"]}
    for verb in ("ADD", "DEL"):
        process = netns.run_in(case["netns"], lambda verb=verb: Process(case, verb, container, case["pod"]))
        process.wait()
        row[verb] = process.ms
    return row


if __name__ == "__main__":
    main()
