"""Tasks beside the main job: each failure is a condition and another try, and none leaves the task group."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from ipamd.process import supervision
from ipamd.process.supervision import Unserved, keep, keep_running
from ipamd.telemetry.conditions import Conditions

NAME = "metrics.not_served"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(supervision, "LONGEST_PAUSE", 0.004)


@pytest.mark.parametrize(
    "error",
    [Unserved("The port is taken.", listen="x"), OSError(24, "Too many open files"), KeyError("x"), RuntimeError()],
    ids=["foreseen", "system", "fault", "without words"],
)
async def test_a_failure_is_a_condition_until_a_try_succeeds(error: Exception) -> None:
    conditions = Conditions()
    seen: list[list[str]] = []

    async def work(well: Callable[[], None]) -> None:
        seen.append([condition.name for condition in conditions.active()])
        if len(seen) < 4:
            raise error
        well()

    with capture_logs() as logs:
        await asyncio.wait_for(keep(conditions, NAME, work, "serving metrics"), 20)
    assert seen == [[], [NAME], [NAME], [NAME]] and conditions.active() == []
    assert [entry["event"] for entry in logs if entry["event"] == NAME] == [NAME], "told once"


async def test_a_fault_of_its_own_is_logged_with_its_traceback_once() -> None:
    tries = 0

    async def work(well: Callable[[], None]) -> None:
        nonlocal tries
        tries += 1
        if tries < 5:
            raise KeyError("x")

    with capture_logs() as logs:
        await asyncio.wait_for(keep(Conditions(), NAME, work, "serving metrics"), 20)
    crashes = [entry for entry in logs if entry["event"] == "task.crashed"]
    assert len(crashes) == 1 and crashes[0]["exc_info"]


async def test_what_is_foreseen_says_its_own_words_and_fields() -> None:
    conditions = Conditions()
    task = asyncio.create_task(keep(conditions, NAME, _refuse, "serving metrics"))
    with capture_logs() as logs:
        while not conditions.active():  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert conditions.active()[0].text == "The port is taken."
    assert (logs[0]["event"], logs[0]["listen"]) == (NAME, "127.0.0.1:1")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _refuse(well: Callable[[], None]) -> None:
    raise Unserved("The port is taken.", listen="127.0.0.1:1")


async def test_a_task_that_goes_on_long_enough_is_well_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "SURVIVED", 0.01)
    conditions = Conditions()
    runs = 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise OSError(105, "No buffer space available")
        await asyncio.Event().wait()

    task = asyncio.create_task(keep_running(conditions, NAME, run, "watching"))
    async with asyncio.timeout(20):
        while runs < 3 or conditions.active():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
