"""A cluster that tests share: kept while they pass, replaced after one that failed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from tests.kubernetes.cluster import Cluster
from tests.kubernetes.sharing import REPORT, Shared


class FakeCluster:
    parts: tuple[()] = ()

    def __init__(self, number: int) -> None:
        self.number = number

    async def state(self) -> str:
        return f"the state of cluster {self.number}"


class Maker:
    """Makes clusters 1, 2, ..., and knows which of them are up. `why`: making fails with it."""

    def __init__(self, why: BaseException | None = None) -> None:
        self.why = why
        self.made = 0
        self.up: list[int] = []

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Cluster]:
        self.made += 1
        if self.why is not None:
            raise self.why
        self.up.append(number := self.made)
        yield cast(Cluster, FakeCluster(number))
        self.up.remove(number)


class FakeTest:
    """A test that has run with this outcome."""

    def __init__(self, outcome: str) -> None:
        self.stash = pytest.Stash()
        words: dict[str, Any] = {"nodeid": "t", "location": ("t", 0, "t"), "keywords": {}, "longrepr": None}
        self.stash[REPORT] = pytest.TestReport(outcome=cast(Any, outcome), when="call", **words)


def item(outcome: str) -> pytest.Item:
    return cast(pytest.Item, FakeTest(outcome))


async def number(shared: Shared, test: pytest.Item) -> int:
    async with shared.lent(test) as cluster:
        return cast(FakeCluster, cluster).number


async def test_tests_that_pass_share_one_cluster() -> None:
    maker = Maker()
    shared = Shared(maker)
    assert [await number(shared, item("passed")) for _ in range(3)] == [1, 1, 1]
    assert maker.up == [1]
    await shared.end()
    assert maker.up == []


async def test_a_failed_test_leaves_its_cluster_to_nobody() -> None:
    maker = Maker()
    shared = Shared(maker)
    test = item("failed")
    assert await number(shared, test) == 1
    assert maker.up == []
    assert dict(test.stash[REPORT].sections)["the cluster"].startswith("the state of cluster 1")
    assert await number(shared, item("passed")) == 2
    await shared.end()


async def test_a_check_that_fails_afterwards_ends_the_cluster() -> None:
    maker = Maker()
    shared = Shared(maker)
    with pytest.raises(AssertionError) as caught:
        async with shared.lent(item("passed")):
            raise AssertionError("they do not agree")
    assert caught.value.__notes__ == ["the state of cluster 1"]
    assert maker.up == []


@pytest.mark.parametrize("why", [OSError("no room"), pytest.skip.Exception("no Go")])
async def test_a_cluster_that_does_not_start_is_tried_once(why: BaseException) -> None:
    maker = Maker(why)
    shared = Shared(maker)
    for _ in range(2):
        with pytest.raises(type(why), match=str(why)):
            await number(shared, item("passed"))
    assert maker.made == 1
