"""Kubernetes' own e2e program, run by ginkgo beside the control plane: the code of the specs is untouched."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ipamd.sim import netns as namespaces
from ipamd.sim.runtimes.process import Child, inside
from tests.kubernetes.junit import NoReport, Result, read

_REPORT: Final = "junit_01.xml"
_LIMIT: Final = "2h"  # of ginkgo's own; who calls may have less patience


@dataclass(frozen=True, slots=True)
class Place:
    """Where the specs run: `programs` has ginkgo, e2e.test and kubectl, `netns` reaches API server and nodes."""

    programs: Path
    netns: str
    kubeconfig: Path
    workers: int


class DidNotRun(Exception):
    """The program came to no report; the message ends with its output."""


async def names(programs: Path) -> str:
    """What `e2e.test --list-tests` prints: every spec of the program. Raises `netns.CommandError`."""
    return await namespaces.command(str(programs / "e2e.test"), "--list-tests")


async def run(place: Place, focus: str, folder: Path, processes: int) -> list[Result]:
    """Run the specs that `focus` selects, `processes` at a time; the report and the log are left in `folder`.

    Cancelled, it ends the program in good order, so that its namespaces are removed. Raises `DidNotRun`, OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    argv = inside(place.netns, *_command(place, focus, folder, processes))
    environment = {"PATH": f"{place.programs}:{os.defpath}:/usr/sbin:/sbin", "HOME": str(folder), "LANG": "C.UTF-8"}
    child = await Child.start(argv, folder / "log", environment)
    try:
        code = await child.wait()
    except asyncio.CancelledError:
        await child.stop(60.0)
        raise
    try:
        # Its exit code only repeats what the report says: some specs failed.
        return await asyncio.to_thread(read, folder / _REPORT)
    except NoReport as error:
        raise DidNotRun(f"{error}; ginkgo ended with exit code {code}:\n{child.last_words()}") from error


def _command(place: Place, focus: str, folder: Path, processes: int) -> Sequence[str | Path]:
    return (
        place.programs / "ginkgo",
        "run",
        f"--procs={processes}",
        "--no-color",
        f"--timeout={_LIMIT}",
        f"--focus={focus}",
        place.programs / "e2e.test",
        "--",
        "--provider=local",
        f"--kubeconfig={place.kubeconfig}",
        f"--kubectl-path={place.programs / 'kubectl'}",
        f"--num-nodes={place.workers}",
        "--node-os-distro=debian",
        "--disable-log-dump",
        f"--report-dir={folder}",
    )
