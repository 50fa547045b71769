"""Container runtimes that the demo and the tests drive as a node agent would: start a pod, end a pod.

A runtime calls the CNI plugin on its own account, in the node's network namespace; nothing here knows what the
plugin does. `containerd` is the real one, through the interface that a kubelet uses; `direct` makes the calls of a
runtime itself, which shows the plugin's cost alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class RuntimeFailure(Exception):
    """The runtime can't be started, or failed to do what it was asked; the message holds its own words."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A running pod. `id` is the container id that the plugin sees."""

    name: str
    namespace: str
    id: str
    ip: str
    netns: Path  # can be entered with setns(2) or `nsenter --net=`
    add_seconds: float  # from asking the runtime until the pod was up


class Runtime(Protocol):
    """Pods may be started and ended concurrently. Both methods raise `RuntimeFailure`."""

    async def run_pod(self, name: str, namespace: str = "default") -> Pod: ...

    async def remove_pod(self, pod: Pod) -> None:
        """End the pod. Ending one that is gone already is no failure."""
