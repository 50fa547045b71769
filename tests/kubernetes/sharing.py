"""A cluster that several tests use, one after the other: to build one takes longer than most of them.

A test that failed may have left anything behind. The next test gets a new cluster, so that one fault is one failure,
and the report of the failed test has what the old cluster says: its nodes, pods and events, and the end of each log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final

import pytest

from tests.kubernetes.cluster import Cluster

REPORT: Final = pytest.StashKey[pytest.TestReport]()  # of the test itself, without its fixtures
_LINES: Final = 40  # of each log


class Shared:
    """`make` builds a cluster and takes it down."""

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[Cluster]]) -> None:
        self._make = make
        self._stack = AsyncExitStack()
        self._cluster: Cluster | None = None
        self._failure: BaseException | None = None

    @asynccontextmanager
    async def lent(self, test: pytest.Item) -> AsyncIterator[Cluster]:
        """The cluster, for one test. It is taken down at the end if the test or the block has failed. Raises what
        `make` raises; the same again for each further test, for a second attempt would take as long to fail."""
        cluster = await self._get()
        try:
            yield cluster
        except Exception as error:
            error.add_note(await description(cluster))
            await self.end()
            raise
        if failed(test):
            test.stash[REPORT].sections.append(("the cluster", await description(cluster)))
            await self.end()

    async def _get(self) -> Cluster:
        if self._failure is not None:
            raise self._failure
        if self._cluster is None:
            try:
                self._cluster = await self._stack.enter_async_context(self._make())
            except (Exception, pytest.skip.Exception) as why:
                self._failure = why
                raise
        return self._cluster

    async def end(self) -> None:
        """Take the cluster down, if there is one."""
        self._cluster = None
        await self._stack.aclose()


def failed(test: pytest.Item) -> bool:
    """Whether the test itself has failed, whatever becomes of its fixtures."""
    return REPORT in test.stash and test.stash[REPORT].failed


async def description(cluster: Cluster) -> str:
    """What the API server and the parts of a cluster say, for people."""
    return "\n".join([await cluster.state(), *_logs(cluster)])


def _logs(cluster: Cluster) -> Iterator[str]:
    for part in cluster.parts:
        yield f"\n{part.log} ({'runs' if part.runs else 'does not run'}):"
        yield part.last_words(_LINES)
