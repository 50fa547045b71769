"""EC2 for one node in virtual time, as its daemon calls it: each call waits for its turn in the node's rate budget,
and then takes its time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ipamd.cloud.budget import Ticket
from ipamd.cloud.port import Priority
from ipamd.sim.ec2.caller import Before, CallerCloud
from ipamd.sim.virtual.budget import VirtualBudget
from ipamd.sim.virtual.clock import Wait
from ipamd.sim.virtual.ec2 import Instance, VirtualEc2

T = TypeVar("T")


class VirtualCloud(CallerCloud):
    def __init__(
        self,
        ec2: VirtualEc2,
        instance: Instance,
        budget: VirtualBudget,
        priority: Priority = Priority.POD,
        before: Before | None = None,
    ) -> None:
        super().__init__(instance, before)
        self._ec2 = ec2
        self._instance = instance
        self._budget = budget
        self._priority = priority

    def at(self, priority: Priority, before: Before | None = None) -> VirtualCloud:
        return VirtualCloud(self._ec2, self._instance, self._budget, priority, before)

    async def _call(self, action: str, change: Callable[[], T]) -> T:
        turn: Wait[Ticket] = Wait(lambda go_on: self._budget.admit(action, self._priority, go_on))
        ticket = await turn
        if self._before is not None:
            await self._before()
        await self._ec2.clock.sleep(self._ec2.begin(self._instance, action))
        result = change()
        self._budget.succeeded(action, ticket)
        return result
