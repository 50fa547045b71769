"""Kubernetes' own NetworkPolicy tests on ipamd's pods, with kube-router's policy controller as the engine.

`make test-kubernetes` runs a few of them; ARGS="-m slow" all that apply.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests.kubernetes import ginkgo, images
from tests.kubernetes.cluster import MANIFESTS, Cluster
from tests.kubernetes.conformance import PROGRAMS
from tests.kubernetes.pinned import Expected, Spec, focus, pinned, surprises
from tests.kubernetes.programs import built
from tests.kubernetes.skipping import skipped_if_unbuilt
from tests.kubernetes.worker import Node, Worker

pytestmark = pytest.mark.e2e

WORKERS: Final = (
    Worker("w1", type="m5.xlarge", containerd="1.6", proxy="nftables"),
    Worker("w2", type="m5.xlarge", containerd="2", proxy="iptables"),
)
PROCESSES: Final = 4
# Why the pinned list leaves them out, where no engine is there.
LEFT_OUT: Final = "wants a policy engine beside ipamd"
# One for each thing that an engine has to do: to close a pod, to close its way out, to tell pods of other namespaces
# by their labels, to select by addresses and ports, and to follow changes.
SOME: Final = (
    "between server and client should support a 'default-deny-ingress' policy",
    "should deny egress from all pods in a namespace",
    "should enforce policy based on Multiple PodSelectors and NamespaceSelectors",
    "should enforce except clause while egress access to server in CIDR block",
    "using UDP should enforce policy based on Ports",
    "should stop enforcing policies after they are deleted",
)


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


@pytest.fixture
async def programs() -> AsyncIterator[Path]:
    with skipped_if_unbuilt():
        yield await built(PROGRAMS | {"netpol"}, say)


def applying() -> list[Spec]:
    """With an engine these pass."""
    return [
        replace(spec, expected=Expected.PASS, reason="") for spec in pinned(["netpol"]) if spec.reason == LEFT_OUT
    ]


def some() -> list[Spec]:
    chosen = [spec for words in SOME for spec in applying() if f" {words} " in spec.name]
    assert len(chosen) == len(SOME)
    return chosen


async def test_some_policies_are_enforced(programs: Path, tmp_path: Path) -> None:
    assert await problems(programs, some(), tmp_path) == []


@pytest.mark.slow
async def test_every_policy_that_applies_is_enforced(programs: Path, tmp_path: Path) -> None:
    assert await problems(programs, applying(), tmp_path) == []


async def problems(programs: Path, specs: Sequence[Spec], folder: Path) -> list[str]:
    """What of the specs is not as expected, and what on the nodes afterwards, a line each."""
    async with Cluster.up(
        folder / "cluster", f"pol{os.getpid()}", WORKERS, archives=("agnhost", "netpol"), say=say
    ) as cluster:
        assert images.reference("netpol") in (MANIFESTS / "netpol.yaml").read_text()
        await cluster.apply((MANIFESTS / "netpol.yaml").read_text())
        await cluster.rolled_out("daemonset/netpol", "kube-system")
        place = ginkgo.Place(programs, cluster.plane.machine.netns, cluster.plane.kubeconfig, len(WORKERS))
        found = surprises(specs, await ginkgo.run(place, focus(specs), folder / "e2e", PROCESSES))
        for node in cluster.nodes.values():
            found += [f"{node.name}: {line}" for line in await complaints(node)]
            await node.ipamctl("audit")
    return found


async def complaints(node: Node) -> list[str]:
    """What doctor has against the engine's objects."""
    # It ends with another exit code than 0 for what it finds, on a machine that is no instance.
    doctor = (sys.executable, "-m", "ipamd.ctl", "doctor", "-o", "json")
    words = json.loads(await node.enter("sh", "-c", '"$@" || true', "sh", *doctor))
    checks = ("clashes", "forward chains", "other pod networks", "connection table")
    return [
        f"{each['check']}: {each['found']}" for each in words if each["check"] in checks and each["state"] != "ok"
    ]
