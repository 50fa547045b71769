"""The cluster of all scenarios, and whether a test on a cluster has failed."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from pathlib import Path

# Before grpc is imported: its fork handlers would slow down and endanger every subprocess.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import pytest
import pytest_asyncio

from tests.kubernetes import observing
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.sharing import REPORT, Shared, failed
from tests.kubernetes.skipping import skipped_if_unbuilt
from tests.kubernetes.worker import Worker

# One of each line of containerd, at least one of each packaging and of each mode of kube-proxy. The kubelets take
# more pods than an m5.large has addresses for, so that the scheduler sends too many.
WORKERS = (
    Worker("w16", containerd="1.6", proxy="nftables", ipamd="host", max_pods=45),
    Worker("w17", containerd="1.7", proxy="iptables", ipamd="daemonset", max_pods=45),
    Worker("w2", containerd="2", proxy="nftables", ipamd="daemonset", max_pods=45),
)
ADDRESSES = 27  # that an m5.large has for pods


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "call":
        item.stash[REPORT] = report
    return report


@asynccontextmanager
async def three_workers() -> AsyncIterator[Cluster]:
    with skipped_if_unbuilt(), tempfile.TemporaryDirectory(prefix="ipk-") as folder:
        async with Cluster.up(Path(folder), f"ks{secrets.token_hex(2)}", WORKERS, say=say) as cluster:
            yield cluster


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def scenarios() -> AsyncIterator[Shared]:
    sharing = Shared(three_workers)
    yield sharing
    await sharing.end()


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(scenarios: Shared, request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    """Afterwards the cluster, the daemons, the kernels and EC2 agree, on each node."""
    async with scenarios.lent(request.node) as lent:
        yield lent
        if not failed(request.node):
            await observing.agree(lent)


@pytest_asyncio.fixture(loop_scope="session")
async def space(cluster: Cluster) -> AsyncIterator[str]:
    """A namespace."""
    async with observing.namespace(cluster, f"test-{secrets.token_hex(3)}") as name:
        yield name
