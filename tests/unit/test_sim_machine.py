"""Processes on a machine of the VPC in a box, as far as it takes no machine."""

from __future__ import annotations

import signal
import subprocess
from typing import cast

from ipamd.sim.machine import MachineProcess
from ipamd.sim.runtimes.process import Child


class Entering:
    """The nsenter of a process: it has reaped it, and its own end is not known here yet."""

    exit_code: int | None = None


def test_a_signal_to_a_process_that_has_just_ended_is_nothing() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    MachineProcess(cast(Child, Entering()), ended.pid).signal(signal.SIGKILL)
